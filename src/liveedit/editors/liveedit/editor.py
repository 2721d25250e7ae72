"""LiveEdit: each edit becomes a low-rank expert in one forward pass, found by what is seen and what is asked."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ...answers import Fired
from ...backbones import Backbone, HiddenTokens, TokenBatch
from ...backbones.hidden_states import HiddenStateCache
from ...errors import BackboneError, CheckpointError
from ...experts import ExpertRepository, LowRankExpert
from ...experts.blocks import Place
from ...samples import Edit, EditCase, Question
from ...training.distributed import ALONE, Processes
from ...training.trainer import StageConfig, Task
from ..base import ExpertEditor, Neighbour
from ..heat_map import HeatMap
from ..trained import Report, TrainedEditor
from .attention import attention_map
from .config import LiveEditConfig
from .hook import RoutingHook
from .modules import EditFeatures, LiveEditModules
from .neighbours import estimated_weights, neighbours
from .routing import Routing, route


class LiveEdit(TrainedEditor, ExpertEditor[LowRankExpert]):
    """The editor of "Lifelong Vision Language Model Editing with Generative Low-Rank Experts" (LiveEdit).

    For an edit, the states h = [h_v; h_p; h_o] at the edit layer give an expert (U, V) and features phi_hat, psi_hat
    (equations 1 to 3). For a query, experts with phi_bar . phi_hat > phi_bar . phi_bar_sentinel are kept (equation 5)
    and h <- h + sum_e w_e relu(h U_e^T) V_e, w = sigmoid(s) softmax(s), s = psi_bar . psi_hat (equations 6 and 7).
    Where `LiveEditConfig` departs from the paper, its field says so.
    """

    name = "liveedit"
    summary = "an expert per edit, generated in one forward pass (LiveEdit)"

    config_class = LiveEditConfig
    expert_class = LowRankExpert
    has_forms = True
    training_cases = 16_000

    def __init__(self, backbone: Backbone, modules: LiveEditModules):
        check_fit(backbone, modules.config)
        super().__init__(backbone, modules)
        self.device = backbone.layer_device(self.config.layer)
        self.modules = modules.to(self.device)
        self.repository = ExpertRepository(self.device)
        self._hook = RoutingHook(backbone, self.config, self._route, _InForce(self))

    # -- its trained parts -------------------------------------------------------------------------------

    @classmethod
    def shape(cls, backbone: Backbone) -> dict[str, Any]:
        """Width, edit layer, length of the sentinel, scope."""
        return {
            "width": backbone.width,
            "layer": backbone.default_edit_layer(),
            "image_tokens": max(1, backbone.image_tokens),
            "scope": "image" if backbone.reads_images else "text+image",
        }

    @classmethod
    def new_modules(cls, backbone: Backbone, config: LiveEditConfig) -> LiveEditModules:
        """Untrained generator and extractors."""
        check_fit(backbone, config)
        return LiveEditModules(config)

    @classmethod
    def default_stages(cls) -> tuple[StageConfig, ...]:
        """Routing alone, then the generator alone.

        Both together afterwards gained nothing on the built-in backbones (docs/EXPERIMENTS.md); the stage can be given.
        """
        return (
            StageConfig(name="routing", steps=1600, batch=160, rate=1e-3),
            StageConfig(name="generator", steps=2400, batch=32, rate=1e-3),
            StageConfig(name="joint", steps=0, batch=48, rate=2e-4),
        )

    @classmethod
    def paper_stages(cls) -> tuple[StageConfig, ...]:
        """For the paper's form, which mixes the experts of a batch in training: a start for each part, then all."""
        return (
            StageConfig(name="routing", steps=1200, batch=160, rate=1e-3),
            StageConfig(name="generator", steps=800, batch=32, rate=1e-3),
            StageConfig(name="joint", steps=300, batch=32, rate=3e-4),
        )

    @classmethod
    def make_task(
        cls,
        backbone: Backbone,
        config: LiveEditConfig,
        cases: Sequence[EditCase],
        folder: Path,
        report: Report,
        processes: Processes = ALONE,
        losses: Any = None,
    ) -> Task:
        """Cases with their states at the edit layer; `losses` are `LiveEditLosses`, the improved ones by default."""
        from .task import LiveEditLosses, LiveEditTask  # The task makes experts as the editor does.

        place = folder / ("states" if processes.is_first else f"states-{processes.rank}")
        store = HiddenStateCache(backbone, config.layer, place)
        chosen = losses or LiveEditLosses.model_validate({})
        task = LiveEditTask(backbone, config.layer, cases, chosen, store, processes)
        task.prepare(lambda done, total: report("states at the edit layer", done, total, {}))
        return task

    def settings_for_digest(self) -> str:
        """As it was before the ablations' switches."""
        return self.config.for_digest()

    # -- editing -----------------------------------------------------------------------------------------

    def make_experts(self, edits: Sequence[Edit]) -> list[LowRankExpert]:
        """One expert per edit, in one forward pass of the unedited model. Nothing is stored."""
        inputs = self.backbone.encode([edit.question for edit in edits], [edit.answer for edit in edits])
        with torch.no_grad():
            return split_experts(self.modules.edit(self.read(inputs)))

    def read(self, inputs: TokenBatch) -> HiddenTokens:
        """Hidden states at the edit layer of the unedited model."""
        with self.paused():
            hidden_states = self.backbone.hidden_states(inputs, self.config.layer).float()
        return HiddenTokens.of(inputs, hidden_states.to(self.device), self.backbone.embeddings(inputs).float())

    def add(self, edit_id: str, expert: LowRankExpert) -> None:
        """Put an expert into force."""
        self.repository.add(edit_id, expert)

    def make_expert(self, edit: Edit) -> tuple[LowRankExpert, int]:
        """The expert of one edit, and the gradient steps that it took."""
        return self.make_experts([edit])[0], 0

    def undo(self, edit_id: str) -> None:
        """Take one edit out: the model is as if it had never been there. Raises `NotFoundError`."""
        self.repository.remove(edit_id)

    def get(self, edit_id: str) -> LowRankExpert:
        """The expert of an active edit. Raises `NotFoundError`."""
        return self.repository.get(edit_id)

    @property
    def ids(self) -> tuple[str, ...]:
        """Ids of the active edits."""
        return self.repository.ids

    def __len__(self) -> int:
        return len(self.repository)

    def __contains__(self, edit_id: str) -> bool:
        return edit_id in self.repository

    @property
    def needs_image(self) -> bool:
        """Whether only questions with an image can be edited: the configuration's scope."""
        return self.config.scope == "image"

    def neighbours(self, expert: LowRankExpert, most: int) -> list[Neighbour]:
        """The active edits whose keys are most similar to those of the expert."""
        return neighbours(self.modules, expert, self.repository, most)

    def estimated_weights(self, expert: LowRankExpert, margin: float) -> dict[str, float]:
        """As `neighbours.estimated_weights` computes them from the keys alone."""
        return estimated_weights(self.modules, expert, margin, self.repository)

    def attention_map(self, question: Question, side: Literal["edit", "query"] = "query") -> HeatMap:
        """Where in its image phi is read from, by the extractor of queries or that of edits; see `attention`."""
        extractor = self.modules.bar if side == "query" else self.modules.hat
        return attention_map(self.backbone, extractor, self.read, question)

    occlusion_feature = "visual feature"

    def occlusion_features(self, questions: Sequence[Question]) -> Tensor:
        """phi of the queries, (questions, k d_m)."""
        return self.modules.query(self.read(self.backbone.encode(questions, padding="left"))).visual

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

    def keep_experts_on(self, place: Place, folder: str | Path | None = None) -> None:
        """Where the experts' u and v lie from now on, as for `ExpertRepository`; edits in force move along.

        Raises `StoreError` where they cannot; they stay where they are then.
        """
        moved = ExpertRepository(self.device, experts_on=place, folder=folder)
        for edit_id in self.repository.ids:
            moved.add(edit_id, self.repository.get(edit_id))
        self.repository = moved

    # -- keeping what edits left behind ------------------------------------------------------------------

    def edited_state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The experts in force, sorted by their edits' ids: u, v (edits, r, d); visual_feature, prompt_feature."""
        ids = sorted(self.repository.ids)
        parts = [self.repository.get(edit_id).tensors for edit_id in ids]
        names = parts[0] if parts else ()
        return {name: torch.stack([part[name] for part in parts]).cpu() for name in names}, {"ids": ids}

    def restore(self, tensors: dict[str, Tensor], note: dict[str, Any]) -> None:
        """Put what `edited_state` gave in place of the edits in force: answers are the same again, bit for bit.

        Raises `CheckpointError` where it does not fit this editor, and changes nothing then.
        """
        experts = _experts_of(tensors, note, self.config)
        self.reset()
        for edit_id, expert in experts:
            self.add(edit_id, expert)

    # -- answering ---------------------------------------------------------------------------------------

    def fired(self) -> list[tuple[Fired, ...]] | None:
        """Which edits took part in the last batch, query by query, with weights and margins; empty where none did."""
        routing = self._hook.routing
        return [] if routing is None else list(routing.fired)

    @property
    def routing_seconds(self) -> float:
        """How long it took to find the edits of the last batch that was routed."""
        return self._hook.routing_seconds

    @torch.no_grad()
    def _route(self, tokens: HiddenTokens) -> Routing | None:
        if not len(self.repository):
            return None
        precise = replace(tokens, hidden_states=tokens.hidden_states.float())
        reachable = tokens.has_image if self.config.scope == "image" else torch.ones_like(tokens.has_image)
        return route(self.modules, self.modules.query(precise), reachable, self.repository)


class _InForce:
    """As many as there are experts in the editor's repository, whichever that is at the time."""

    def __init__(self, editor: LiveEdit):
        self._editor = editor

    def __len__(self) -> int:
        return len(self._editor.repository)


def check_fit(backbone: Backbone, config: LiveEditConfig) -> None:
    """Raise `BackboneError` where an editor of this shape cannot be put on the backbone."""
    if config.width != backbone.width or config.layer >= len(backbone.layers) - 1:
        raise BackboneError(
            f"This editor was made for width {config.width} and layer {config.layer}; {backbone.name} "
            f"has width {backbone.width} and {len(backbone.layers)} layers. Train one for it: liveedit train."
        )


def split_experts(features: EditFeatures) -> list[LowRankExpert]:
    """A batch of edits' features as single experts."""
    parts: tuple[Tensor, ...] = (features.u, features.v, features.visual, features.prompt)
    return [LowRankExpert(*(part[row].clone() for part in parts)) for row in range(len(features.u))]


def _experts_of(
    tensors: dict[str, Tensor], note: dict[str, Any], config: LiveEditConfig
) -> list[tuple[str, LowRankExpert]]:
    """Kept experts with their ids. Raises `CheckpointError`."""
    ids = note.get("ids")
    if not isinstance(ids, list) or not all(isinstance(name, str) for name in ids) or len(set(ids)) != len(ids):
        raise CheckpointError("Kept edits have no list of ids, each of them once. They are not LiveEdit's, or damaged.")
    feature = config.feature_parts * config.module_width
    one: dict[str, tuple[int, ...]] = {
        "u": (config.rank, config.width),
        "v": (config.rank, config.width),
        "visual_feature": (feature,),
        "prompt_feature": (feature,),
    }
    wanted = {name: (len(ids), *shape) for name, shape in one.items()} if ids else {}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if found != wanted:
        raise CheckpointError(f"Kept edits have the shapes {found}; this editor takes {wanted}. Use the same editor.")
    parts = {name: tensor.float() for name, tensor in tensors.items()}
    return [(name, LowRankExpert(**{part: parts[part][row] for part in parts})) for row, name in enumerate(ids)]
