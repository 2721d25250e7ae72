"""LiveEdit: each edit becomes a low-rank expert in one forward pass, found by what is seen and what is asked."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from ...backbones import BUILT_IN, Backbone, Inputs, built_in_folder
from ...checkpoints import load_tensors, save_tensors
from ...errors import BackboneError, CheckpointError, NotFoundError
from ...experts import Expert, ExpertRepository
from ...samples import Edit
from ..base import Editor, Fired
from .config import LiveEditConfig
from .hook import RoutingHook
from .modules import EditFeatures, LiveEditModules, TokenStates
from .routing import Routing, route

_FILE, _CONFIG = "editor.safetensors", "editor.json"


class LiveEdit(Editor):
    """The editor of "Lifelong Vision Language Model Editing with Generative Low-Rank Experts" (LiveEdit).

    For an edit, the states h = [h_v; h_p; h_o] at the edit layer give an expert (U, V) and features phi_hat, psi_hat
    (equations 1 to 3). For a query, experts with phi_bar . phi_hat > phi_bar . phi_bar_sentinel are kept (equation 5)
    and h <- h + sum_e w_e relu(h U_e^T) V_e, w = sigmoid(s) softmax(s), s = psi_bar . psi_hat (equations 6 and 7).
    Where `LiveEditConfig` departs from the paper, its field says so.
    """

    name = "liveedit"
    summary = "an expert per edit, generated in one forward pass (LiveEdit)"

    def __init__(self, backbone: Backbone, modules: LiveEditModules):
        super().__init__(backbone)
        self.config = modules.config
        if self.config.width != backbone.width or self.config.layer >= len(backbone.layers) - 1:
            raise BackboneError(
                f"This editor was made for width {self.config.width} and layer {self.config.layer}; {backbone.name} "
                f"has width {backbone.width} and {len(backbone.layers)} layers. Train one for it: liveedit train."
            )
        self.device = backbone.layer_device(self.config.layer)
        self.modules = modules.to(self.device).eval()
        self.repository = ExpertRepository(self.device)
        self._hook = RoutingHook(backbone, self.config, self._route, self.repository)

    # -- making, saving, loading -------------------------------------------------------------------------

    @classmethod
    def untrained(cls, backbone: Backbone, config: LiveEditConfig, seed: int = 0) -> Self:
        """An editor whose modules have random weights."""
        torch.manual_seed(seed)
        return cls(backbone, LiveEditModules(config))

    @classmethod
    def load(cls, backbone: Backbone, source: str | None = None) -> Self:
        """The trained editor in `source`, or the one that ships with a built-in backbone."""
        shipped = f"{backbone.name}-liveedit"
        folder = Path(source or (built_in_folder(shipped) if backbone.name in BUILT_IN else shipped))
        if not (folder / _CONFIG).is_file():
            inside = folder / "editor"
            hint = f" There is one in {str(inside)!r}." if (inside / _CONFIG).is_file() else ""
            raise NotFoundError(
                f"There is no trained LiveEdit editor for {backbone.name!r} in {str(folder)!r}.{hint} Train one with "
                f"`liveedit train --backbone {backbone.name} --out DIR` and give it with --editor-path DIR/editor."
            )
        return cls.from_pretrained(folder, backbone)

    @classmethod
    def from_pretrained(cls, folder: str | Path, backbone: Backbone) -> Self:
        """Load what `save_pretrained` wrote. Raises `CheckpointError` where the two files do not fit."""
        config = LiveEditConfig.create(**_read_json(Path(folder) / _CONFIG))
        modules = LiveEditModules(config)
        tensors, metadata = load_tensors(Path(folder) / _FILE)
        meant, found = metadata.get("trained_for"), backbone.fingerprint
        if meant is not None and meant != found:
            others = [name for name in found if meant.get(name) != found[name]]
            differing = ", ".join(f"{name} {meant.get(name)}, here {found[name]}" for name in others)
            raise BackboneError(
                f"The editor in {folder} was trained for another model ({differing}). Give the editor of "
                f"{backbone.name}, or train one: liveedit train."
            )
        try:
            modules.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
        except RuntimeError as error:
            raise CheckpointError(f"{folder}: weights and configuration do not fit ({error}).") from error
        return cls(backbone, modules)

    def save_pretrained(self, folder: str | Path, dtype: torch.dtype = torch.float16) -> None:
        """Write the weights as safetensors and the whole configuration as JSON."""
        folder = Path(folder)
        tensors = {name: tensor.to(dtype) for name, tensor in self.modules.state_dict().items()}
        save_tensors(folder / _FILE, tensors, {"trained_for": self.backbone.fingerprint})
        (folder / _CONFIG).write_text(self.config.model_dump_json(indent=2) + "\n", encoding="utf-8")

    def configuration(self) -> dict[str, Any]:
        """The whole `LiveEditConfig`."""
        return self.config.model_dump()

    def digest(self) -> str:
        """SHA-256 of configuration and weights."""
        digest = hashlib.sha256(self.config.model_dump_json().encode())
        for name, tensor in sorted(self.modules.state_dict().items()):
            digest.update(name.encode() + tensor.cpu().float().contiguous().numpy().tobytes())
        return digest.hexdigest()

    # -- editing -----------------------------------------------------------------------------------------

    def make_experts(self, edits: Sequence[Edit]) -> list[Expert]:
        """One expert per edit, in one forward pass of the unedited model. Nothing is stored."""
        inputs = self.backbone.encode([edit.question for edit in edits], [edit.answer for edit in edits])
        with torch.no_grad():
            return split_experts(self.modules.edit(self.read(inputs)))

    def read(self, inputs: Inputs) -> TokenStates:
        """States at the edit layer of the unedited model, with the kinds of their tokens."""
        with self.paused():
            states = self.backbone.states(inputs, self.config.layer).float()
        embeddings = self.backbone.embeddings(inputs).float()
        parts = (inputs.image_mask, inputs.prompt_mask, inputs.answer_mask, embeddings)
        return TokenStates(states.to(self.device), *(part.to(self.device) for part in parts))

    def add(self, edit_id: str, expert: Expert) -> None:
        """Put an expert into force."""
        self.repository.add(edit_id, expert)

    def make_expert(self, edit: Edit) -> tuple[Expert, int]:
        """The expert of one edit, and the gradient steps that it took."""
        return self.make_experts([edit])[0], 0

    def _edit_one(self, edit_id: str, edit: Edit) -> dict[str, Any]:
        expert, steps = self.make_expert(edit)
        self.add(edit_id, expert)
        return {"store_bytes": expert.store_bytes, "refine_steps": steps}

    def undo(self, edit_id: str) -> None:
        """Take one edit out: the model is as if it had never been there. Raises `NotFoundError`."""
        self.repository.remove(edit_id)

    def reset(self) -> None:
        """Take every edit out."""
        self.repository.clear()

    def detach(self) -> None:
        """Take hooks and edits off the backbone."""
        self._hook.remove()
        self.reset()

    def paused(self) -> AbstractContextManager[None]:
        """The model runs unedited inside."""
        return self._hook.paused()

    # -- answering ---------------------------------------------------------------------------------------

    def fired(self) -> list[tuple[Fired, ...]] | None:
        """Which edits took part in the last batch, query by query, with weights and margins; empty where none did."""
        routing = self._hook.routing
        return [] if routing is None else list(routing.fired)

    @torch.no_grad()
    def _route(self, tokens: TokenStates) -> Routing | None:
        if not len(self.repository):
            return None
        precise = TokenStates(tokens.states.float(), tokens.image, tokens.prompt, tokens.answer, tokens.embeddings)
        pictured = tokens.image.any(1)
        reachable = pictured if self.config.scope == "image" else torch.ones_like(pictured)
        return route(self.modules, self.modules.query(precise), reachable, self.repository)


def split_experts(features: EditFeatures) -> list[Expert]:
    """A batch of edits' features as single experts."""
    parts: tuple[Tensor, ...] = (features.u, features.v, features.visual, features.prompt)
    return [Expert(*(part[row].clone() for part in parts)) for row in range(len(features.u))]


def _read_json(file: Path) -> dict[str, Any]:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{file} could not be read as a configuration ({error}).") from error
