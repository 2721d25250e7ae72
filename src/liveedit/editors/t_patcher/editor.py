"""T-Patcher: the last FFN gets a neuron for every wrong token of an edit, and keeps all that it had."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ...backbones import BUILT_IN, Backbone
from ...errors import CheckpointError, InvalidInputError, NotFoundError
from ...images import open_image
from ...progress import Progress, no_progress
from ...samples import Edit, Question
from ..base import Editor, EditRecord
from .config import TPatcherConfig
from .memory import default_memory, memory_queries
from .patches import PatchedFeedForward, Patches, activation_loss, memory_loss
from .tail import Passage, Tail

_PARTS = ("keys", "biases", "values")


@dataclass(frozen=True)
class _MadeEdit:
    """One edit: its patches, and its own queries, (answer tokens, d), for the memory of later edits."""

    edit_id: str
    scope: tuple[str, str]
    patches: Patches
    queries: Tensor


class TPatcher(Editor):
    """The editor of "Transformer-Patcher: One Mistake worth One Neuron" (https://arxiv.org/abs/2301.09785).

    For each token of the edit's answer that the model predicts wrongly, one patch (k_p, b_p, v_p) is added to the FFN
    of the last layer: FFN'(q) = FFN(q) + relu(q . k_p + b_p) v_p. The patches of an edit are trained together on
    l_e + a l_a + m l_m: the answer is likely, each patch is active on its own query, and silent on the
    queries of a memory. If all tokens are right, no patch is made. Patches of earlier edits stay as they are.

    Memory: `default_memory` and the questions given, each with the unedited model's own answer; and the queries of
    earlier edits, except those of the same scope, which an edit may overrule.

    Undo removes an edit's patches. Patches of later edits stay, though they were trained in their presence.

    Departures from the paper: neurons are ReLU's, beside gated FFNs (Llama) too, whose own neurons have two keys; the
    value starts at zero; the worst memory queries are taken patch by patch (see `patches`).
    """

    name = "t-patcher"
    summary = "a neuron in the last FFN for every wrong token of an edit (T-Patcher)"
    table_order = 40
    settings_class = TPatcherConfig

    def __init__(self, backbone: Backbone, config: TPatcherConfig | None = None, memory: Sequence[Question] = ()):
        super().__init__(backbone)
        self.config = config or TPatcherConfig()
        self._rate = self.config.rate_for(backbone.name in BUILT_IN)
        self._given_memory = tuple(memory)
        self._made: dict[str, _MadeEdit] = {}
        self._memory: Tensor | None = None
        self._feed_forward = PatchedFeedForward(backbone.layers[-1])
        self._tail = Tail(backbone, self._feed_forward)

    # -- editing -----------------------------------------------------------------------------------------

    def edit(self, edits: Sequence[tuple[str, Edit]], progress: Progress = no_progress) -> list[EditRecord]:
        """Make edits. Raises `InvalidInputError` for an id that is there already, before any is made."""
        ids = [edit_id for edit_id, _ in edits]
        for place, edit_id in enumerate(ids):
            if edit_id in self._made or edit_id in ids[:place]:
                raise InvalidInputError(f"The edit {edit_id!r} is already there. Undo it first or use another id.")
        if edits and self._memory is None:  # Not counted in the time of an edit.
            self._memory = self._read_memory()
        return super().edit(edits, progress)

    def _edit_one(self, edit_id: str, edit: Edit) -> dict[str, Any]:
        passage = self._tail.read(self.backbone.encode([edit.question], [edit.answer]))
        patches, steps = self._train(passage, self._memory_of(edit.scope))
        remembered = passage.queries if self.config.remember_edits else passage.queries[:0]
        self._made[edit_id] = _MadeEdit(edit_id, edit.scope, patches, remembered)
        self._activate()
        size = sum(tensor.numel() * tensor.element_size() for tensor in patches.tensors)
        return {"refine_steps": steps, "store_bytes": size, "details": {"patches": len(patches)}}

    def _train(self, passage: Passage, memory: Tensor) -> tuple[Patches, int]:
        """The patches of an edit, and the steps that they took."""
        none = Patches.start(passage.queries[:0])
        with torch.no_grad():
            wrong = self._tail.logits(passage, none).argmax(-1) != passage.targets
        if not bool(wrong.any()):
            return none, 0
        own = passage.queries[wrong]
        patches = Patches.start(own)
        for tensor in patches.tensors:
            tensor.requires_grad_(True)
        optimizer = torch.optim.Adam(patches.tensors, lr=self._rate)
        for step in range(self.config.steps):
            edit_loss = F.cross_entropy(self._tail.logits(passage, patches), passage.targets)
            on_own = (own * patches.keys).sum(-1) + patches.biases
            on_memory = patches.scores(memory)
            if self._is_done(edit_loss, on_own, on_memory):
                return _frozen(patches), step
            loss = edit_loss + self._quietness_loss(on_own, on_memory)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
        return _frozen(patches), self.config.steps

    def _quietness_loss(self, on_own: Tensor, on_memory: Tensor) -> Tensor:
        config = self.config
        quiet = memory_loss(on_own, on_memory, config.memory_bound, config.margin, config.largest)
        return config.activation_weight * activation_loss(on_own) + config.memory_weight * quiet

    def _is_done(self, edit_loss: Tensor, on_own: Tensor, on_memory: Tensor) -> bool:
        learned = edit_loss.item() < self.config.stop_below_nats
        return learned and bool((on_own > 0).all()) and bool((on_memory <= 0).all())

    # -- memory ------------------------------------------------------------------------------------------

    def _read_memory(self) -> Tensor:
        questions = [*default_memory(self.backbone, self.config.memory_questions), *self._given_memory]
        return memory_queries(self.backbone, self._feed_forward, questions)

    def _memory_of(self, scope: tuple[str, str]) -> Tensor:
        """(queries, d): the memory of an edit of this scope."""
        assert self._memory is not None
        return torch.cat([self._memory, *(made.queries for made in self._made.values() if made.scope != scope)])

    # -- undo, saving -------------------------------------------------------------------------------------

    def undo(self, edit_id: str) -> None:
        """Remove an edit's patches. Raises `NotFoundError`."""
        if edit_id not in self._made:
            raise NotFoundError(f"There is no edit {edit_id!r}. {len(self._made)} edits are active.")
        del self._made[edit_id]
        self._activate()

    def reset(self) -> None:
        """Remove all patches."""
        self._made = {}
        self._activate()

    def detach(self) -> None:
        """Remove hooks and patches from the backbone."""
        self._feed_forward.remove()
        self.reset()

    def _activate(self) -> None:
        parts = [made.patches for made in self._made.values()]
        joined = Patches.join(parts, self.backbone.width)
        self._feed_forward.patches = joined if len(joined) else None

    def edited_state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """keys, values (patches, d), biases (patches,) and queries (remembered queries, d), edit by edit."""
        made = list(self._made.values())
        joined = Patches.join([edit.patches for edit in made], self.backbone.width)
        queries = torch.cat([torch.zeros(0, self.backbone.width), *(edit.queries.cpu() for edit in made)])
        tensors = {name: tensor.cpu() for name, tensor in zip(_PARTS, joined.tensors, strict=True)}
        rows = [
            {"id": edit.edit_id, "scope": edit.scope, "patches": len(edit.patches), "queries": len(edit.queries)}
            for edit in made
        ]
        return {**tensors, "queries": queries}, {"edits": rows}

    def restore(self, tensors: dict[str, Tensor], note: dict[str, Any]) -> None:
        """Replace the active patches by saved ones. Raises `CheckpointError` if they do not fit."""
        rows, width = note["edits"], self.backbone.width
        patches, queries = (sum(row[name] for row in rows) for name in ("patches", "queries"))
        wanted = {
            "keys": (patches, width),
            "biases": (patches,),
            "values": (patches, width),
            "queries": (queries, width),
        }
        found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        if found != wanted:
            raise CheckpointError(
                f"Saved patches have the shapes {found}, but {wanted} are needed. Use the same editor."
            )
        moved = {name: tensor.to(self._tail.device) for name, tensor in tensors.items()}
        split = {name: moved[name].split([row["patches"] for row in rows]) for name in _PARTS}
        remembered = moved["queries"].split([row["queries"] for row in rows])
        self._made = {
            row["id"]: _MadeEdit(
                row["id"], tuple(row["scope"]), Patches(*(split[name][place] for name in _PARTS)), remembered[place]
            )
            for place, row in enumerate(rows)
        }
        self._activate()

    def configuration(self) -> dict[str, Any]:
        """The whole `TPatcherConfig`, with the rate that is taken."""
        return {**self.config.model_dump(), "rate": self._rate}

    def digest(self) -> str:
        """SHA-256 of the questions given for the memory, "" if there are none."""
        digest = hashlib.sha256()
        for question in self._given_memory:
            image = b"" if question.image is None else open_image(question.image).tobytes()
            digest.update(repr(question.prompt).encode() + image)
        return digest.hexdigest() if self._given_memory else ""


def _frozen(patches: Patches) -> Patches:
    return Patches(*(tensor.detach() for tensor in patches.tensors))
