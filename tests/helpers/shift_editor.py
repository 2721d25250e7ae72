"""An editor of its own, as a package outside the project would write it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from liveedit.answers import Fired
from liveedit.backbones import Backbone
from liveedit.editors import ExpertEditor
from liveedit.errors import InvalidInputError, NotFoundError
from liveedit.experts import Expert
from liveedit.samples import Edit


@dataclass(frozen=True, eq=False)
class Shift(Expert):
    """shift: (width,), added to every hidden state before the head."""

    shift: Tensor


class ShiftEditor(ExpertEditor[Shift]):
    """Moves the last hidden states towards the embeddings of the answers, whatever is asked."""

    name = "shift"
    summary = "An editor of a test."
    expert_class = Shift

    def __init__(self, backbone: Backbone):
        super().__init__(backbone)
        self._experts: dict[str, Shift] = {}
        self._rows = 0
        self._handle = backbone.layers[-1].register_forward_hook(self._shifted)

    def _shifted(self, module: Any, given: Any, output: Any) -> Any:
        self._rows = len(output)
        for expert in sorted(self._experts.values(), key=lambda one: one.digest):
            output = output + expert.shift
        return output

    def make_expert(self, edit: Edit) -> tuple[Shift, int]:
        ids = self.backbone.tokenize([edit.answer])[0]
        embeddings: Any = self.backbone.output_embeddings
        return Shift(embeddings.weight.detach()[ids].mean(0).float()), 0

    def add(self, edit_id: str, expert: Shift) -> None:
        if edit_id in self._experts:
            raise InvalidInputError(f"The edit {edit_id!r} is active already.")
        self._experts[edit_id] = expert

    def get(self, edit_id: str) -> Shift:
        if edit_id not in self._experts:
            raise NotFoundError(f"There is no active edit {edit_id!r}.")
        return self._experts[edit_id]

    def undo(self, edit_id: str) -> None:
        self.get(edit_id)
        del self._experts[edit_id]

    @property
    def ids(self) -> list[str]:
        return list(self._experts)

    def digest(self) -> str:
        return "shift, version 1"

    def fired(self) -> list[tuple[Fired, ...]]:
        weight = 1 / max(1, len(self._experts))
        return [tuple(Fired(edit_id, weight, 0.0) for edit_id in self._experts)] * self._rows

    def detach(self) -> None:
        super().detach()
        self._handle.remove()
