"""The skeleton of editors that keep edits in a memory and retrieve them for each question."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Generic, TypeVar

import torch
from torch import Tensor

from ...answers import Fired
from ...backbones import Backbone
from ...backbones.prompt_transforms import PreparedQuestion
from ...errors import InvalidInputError
from ...experts.expert import Expert
from ...samples import Edit, Question
from ..base import ExpertEditor, Neighbour
from .memory import FeatureMemory


@dataclass(frozen=True, eq=False)
class RetrievedExpert(Expert):
    """An edit as a row in a memory.

    feature: (features,), what the edit is found by.
    """

    feature: Tensor


@dataclass(frozen=True, eq=False)
class TextExpert(RetrievedExpert):
    """An edit that is answered from its text: the image has done its part once the feature is computed.

    prompt, answer: UTF-8 bytes, one per number. Experts are float32 throughout, which holds every byte exactly.
    """

    prompt: Tensor
    answer: Tensor

    @classmethod
    def of(cls, edit: Edit, feature: Tensor) -> TextExpert:
        """The expert of an edit that is found by `feature`."""
        return cls(feature.detach().float(), _encoded(edit.question.prompt), _encoded(edit.answer))

    @cached_property
    def edit(self) -> Edit:
        """The edit as text, without image and scope."""
        return Edit(Question(_decoded(self.prompt)), _decoded(self.answer))

    @property
    def store_bytes(self) -> int:
        """Bytes of the feature and of the texts in UTF-8."""
        return self.feature.nbytes + len(self.prompt) + len(self.answer)


AnyRetrieved = TypeVar("AnyRetrieved", bound=RetrievedExpert)


class RetrievalEditor(ExpertEditor[AnyRetrieved], Generic[AnyRetrieved]):
    """An editor whose model stays as it is: questions are prepared with what a memory of edits has for them.

    The order in which edits are added counts: of edits that are equally near to a query the latest is found.

    A subclass gives `layer`, `expert_shapes`, `make_expert`, and `_prepare`, which is called with the questions of
    each batch while there are edits and sets `_fired`. Its `_activate` and `_deactivate` may do more than set and
    remove the prompt transform.
    """

    def __init__(self, backbone: Backbone):
        super().__init__(backbone)
        self.memory = FeatureMemory()
        self._experts: dict[str, AnyRetrieved] = {}
        self._fired: list[tuple[Fired, ...]] = []

    # -- what a method gives -----------------------------------------------------------------------------

    @property
    @abstractmethod
    def layer(self) -> int:
        """The decoder layer whose states features are made of, counted from 0."""

    @abstractmethod
    def expert_shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shapes of the expert's fields that are the same for every edit, by field name."""

    @abstractmethod
    def _prepare(self, questions: Sequence[Question]) -> list[PreparedQuestion]:
        """The questions of a batch as they reach the model. Sets `_fired`."""

    def _activate(self) -> None:
        """Called when an edit is added; may be called again while active."""
        self.backbone.set_transform(self._prepare)

    def _deactivate(self) -> None:
        """Called when the last edit is gone; may be called when inactive."""
        self.backbone.remove_transform(self._prepare)

    def _similarity(self, features: Tensor) -> Tensor:
        """(queries, edits) of query features, (queries, features): larger is nearer."""
        return self.memory.similarity(features)

    # -- editing -----------------------------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        """Where features are computed and compared: the device of `layer`."""
        return self.backbone.layer_device(self.layer)

    def add(self, edit_id: str, expert: AnyRetrieved) -> None:
        """Make an expert active. Raises `InvalidInputError` if the id is active already or a shape does not fit."""
        found, wanted = {name: tuple(part.shape) for name, part in expert.tensors.items()}, self.expert_shapes()
        for name, shape in wanted.items():
            if found[name] != shape:
                raise InvalidInputError(
                    f"The expert of {edit_id!r} has a {name} of shape {found[name]}; this {self.name} editor takes "
                    f"{shape}. Use the editor that made it."
                )
        if edit_id not in self.memory:
            self._activate()
        self.memory.add(edit_id, expert.feature.to(self.device))
        self._experts[edit_id] = expert

    def get(self, edit_id: str) -> AnyRetrieved:
        """The expert of an active edit. Raises `NotFoundError`."""
        self.memory.check(edit_id)
        return self._experts[edit_id]

    @property
    def ids(self) -> tuple[str, ...]:
        """Ids of the active edits, in the order in which they were added."""
        return self.memory.ids

    def undo(self, edit_id: str) -> None:
        """Undo one edit: answers are as if it had never been made. Raises `NotFoundError`."""
        self.memory.remove(edit_id)
        del self._experts[edit_id]
        if not len(self.memory):
            self.reset()

    def reset(self) -> None:
        """Undo every edit."""
        self._deactivate()
        self.memory.clear()
        self._experts.clear()
        self._fired = []

    @contextmanager
    def _paused(self) -> Iterator[None]:
        self._fired = []
        was_active = len(self.memory) > 0
        self._deactivate()
        try:
            yield
        finally:
            if was_active:
                self._activate()

    def neighbours(self, expert: AnyRetrieved, most: int) -> list[Neighbour]:
        """Up to `most` active edits whose features are most similar to those of the expert, most similar first."""
        if not len(self.memory) or most < 1:
            return []
        (similarity,) = self._similarity(expert.feature.to(self.device)[None]).tolist()
        found = sorted(zip(similarity, self.ids, strict=True), key=lambda one: (-one[0], one[1]))
        return [Neighbour(edit_id, near) for near, edit_id in found[:most]]

    def fired(self) -> list[tuple[Fired, ...]] | None:
        """The edits retrieved for each question of the last batch, nearest first; their margins are `_prepare`'s."""
        return list(self._fired)


def _encoded(text: str) -> Tensor:
    return torch.tensor(list(text.encode()), dtype=torch.float32)


def _decoded(data: Tensor) -> str:
    return bytes(data.to("cpu", torch.uint8).tolist()).decode()
