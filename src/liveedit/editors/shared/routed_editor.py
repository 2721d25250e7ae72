"""The skeleton of editors whose experts are low-rank, kept in an `ExpertRepository`, and routed at the edit layer."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from ...answers import Fired
from ...backbones import HiddenTokens, TokenBatch
from ...errors import CheckpointError
from ...experts import ExpertRepository, LowRankExpert
from ...experts.blocks import ExpertsOn
from ...experts.repository import FEATURES
from ..base import ExpertEditor
from .routing import AS_PUBLISHED, ExpertForm, QueryFeatures, Routing, Similarities, route
from .routing_hook import RoutingHook

_ScopedQueries = tuple[QueryFeatures, Tensor]
"""Features of queries, and which of them are in the editor's scope, (batch,) booleans."""


class RoutedEditor(ExpertEditor[LowRankExpert]):
    """An editor that keeps its experts in a repository and adds the routed ones to the output of one layer.

    A subclass calls `_attach`, and gives `make_expert`, `similarities`, `query` and `feature_shapes`.
    """

    expert_class: ClassVar[type[Any]] = LowRankExpert
    thread_safe: ClassVar[bool] = True

    layer: int
    """The edit layer, counted from 0."""

    def _attach(self, layer: int, form: ExpertForm) -> None:
        """Attach to the backbone. form: what experts change."""
        self.layer, self.form = layer, form
        self.device = self.backbone.layer_device(layer)
        self.repository = ExpertRepository(self.device)
        self.combining = AS_PUBLISHED
        """How experts are combined; it may be replaced at any time."""
        self._weight_factor = 1.0
        self._hook = RoutingHook(self.backbone, layer, form, self._route_prefill, _ActiveExperts(self))

    # -- for subclasses ----------------------------------------------------------------------------------

    @property
    @abstractmethod
    def similarities(self) -> Similarities:
        """How features of queries and edits are compared."""

    @abstractmethod
    def query(self, tokens: HiddenTokens) -> QueryFeatures:
        """Features of queries, from float32 hidden states at the edit layer."""

    @property
    @abstractmethod
    def feature_shapes(self) -> Mapping[str, tuple[int, ...]]:
        """The shapes of an expert's features by field name."""

    @property
    def read_layers(self) -> tuple[int, ...]:
        """The layers whose hidden states `query` reads, in ascending order; the last one is the edit layer."""
        return (self.layer,)

    # -- editing -----------------------------------------------------------------------------------------

    def read(self, inputs: TokenBatch) -> HiddenTokens:
        """Hidden states at the edit layer of the unedited model."""
        with self.paused():
            hidden_states = self.backbone.hidden_states(inputs, self.layer).float()
        return HiddenTokens.of(inputs, hidden_states.to(self.device), self.backbone.embeddings(inputs).float())

    def add(self, edit_id: str, expert: LowRankExpert) -> None:
        """Make an expert active."""
        self.repository.add(edit_id, expert)
        self._hook.edits_changed()

    def number(self, numbers: Mapping[str, int]) -> None:
        """Number active edits in the order in which they were made. Raises `NotFoundError`."""
        self.repository.number(numbers)
        self._hook.edits_changed()

    def undo(self, edit_id: str) -> None:
        """Undo one edit: the model is as if it had never been made. Raises `NotFoundError`."""
        self.repository.remove(edit_id)
        self._hook.edits_changed()

    def get(self, edit_id: str) -> LowRankExpert:
        """The expert of an active edit. Raises `NotFoundError`."""
        return self.repository.get(edit_id)

    @property
    def ids(self) -> tuple[str, ...]:
        """Ids of the active edits."""
        return self.repository.ids

    @property
    def ids_by_age(self) -> list[str]:
        """Ids of the active edits, the newest last."""
        return [self.repository.id_of(row) for row in self.repository.rows_by_age]

    def __len__(self) -> int:
        return len(self.repository)

    def __contains__(self, edit_id: str) -> bool:
        return edit_id in self.repository

    @contextmanager
    def scaled_weights(self, factor: float) -> Iterator[None]:
        """Inside the block, every weight is multiplied by `factor`, before the threshold of weights if there is one."""
        before, self._weight_factor = self._weight_factor, factor
        try:
            yield
        finally:
            self._weight_factor = before

    def reset(self) -> None:
        """Undo every edit."""
        self.repository.clear()
        self._hook.edits_changed()

    def detach(self) -> None:
        """Remove hooks and edits from the backbone."""
        self._hook.remove()
        self.reset()

    def paused(self) -> AbstractContextManager[None]:
        """The model runs unedited inside the block; the active experts stay in place."""
        return self._hook.paused()

    def keep_experts_on(self, place: ExpertsOn, folder: str | Path | None = None) -> None:
        """Keep the experts' u and v on the device or the host from now on, as `ExpertRepository` does.

        Active experts are moved. Raises `StoreError` if they cannot be; then nothing changes.
        """
        moved = ExpertRepository(self.device, experts_on=place, folder=folder)
        for row, edit_id in enumerate(self.ids):
            moved.add(edit_id, self.repository.get(edit_id))
            moved.number({edit_id: self.repository.age_of(row)})
        self.repository = moved

    # -- saving and restoring the active edits -----------------------------------------------------------

    def restore(self, tensors: dict[str, Tensor], note: dict[str, Any]) -> None:
        """Replace the active edits by those of `edited_state`: answers are the same again, bit for bit.

        Raises `CheckpointError` if they do not fit this editor; then nothing changes.
        """
        self._check_saved(tensors, note)
        super().restore(tensors, note)

    def _check_saved(self, tensors: dict[str, Tensor], note: dict[str, Any]) -> None:
        ids = note.get("ids")
        if not isinstance(ids, list) or not all(isinstance(name, str) for name in ids) or len(set(ids)) != len(ids):
            raise CheckpointError(
                "Saved edits need a list of ids without repetition. These were not saved by this editor, or they are "
                "damaged."
            )
        for number in range(len(ids)):
            rank = len(tensors.get(f"{number}.u", ()))
            matrix = (rank, self.backbone.width)
            wanted = {"u": matrix, "v": matrix} | {name: self.feature_shapes[name] for name in FEATURES}
            found = {name: tuple(tensors[key].shape) for name in wanted if (key := f"{number}.{name}") in tensors}
            if found != wanted or not rank:
                raise CheckpointError(
                    f"A saved edit has the shapes {found}; this editor takes {wanted}. Use the editor that made it."
                )

    # -- answering ---------------------------------------------------------------------------------------

    def fired(self) -> list[tuple[Fired, ...]] | None:
        """The edits that took part in the last batch, for each query; an empty list if none did."""
        routing = self._hook.routing
        return [] if routing is None else list(routing.fired)

    @property
    def routing_seconds(self) -> float:
        """Seconds that routing the last batch took."""
        return self._hook.routing_seconds

    def reachable(self, tokens: HiddenTokens) -> Tensor:
        """(batch,) booleans: which queries are in the editor's scope. All of them here."""
        return torch.ones_like(tokens.has_image)

    @torch.no_grad()
    def route(self, tokens: TokenBatch, hidden_states: Mapping[int, Tensor]) -> Routing | None:
        """The experts of queries whose hidden states another engine has computed; None if no expert passes.

        The layers of the backbone compute nothing (`weightless_backbone`). hidden_states: (batch, tokens, width) by
        layer, for `read_layers`.
        """
        return self._route([self._external_queries(tokens, hidden_states)]) if len(self.repository) else None

    @torch.no_grad()
    def route_each(self, questions: Sequence[tuple[TokenBatch, Mapping[int, Tensor]]]) -> list[Routing | None]:
        """`route` of single questions of different lengths. The features of the experts are read once for all."""
        if not questions or not len(self.repository):
            return [None] * len(questions)
        routing = self._route([self._external_queries(*question) for question in questions])
        return [None if routing is None else routing.of_row(row) for row in range(len(questions))]

    def _external_queries(self, tokens: TokenBatch, hidden_states: Mapping[int, Tensor]) -> _ScopedQueries:
        """Queries that another engine has read. hidden_states: as for `route`."""
        for layer in self.read_layers:
            self.backbone.layers[layer](hidden_states[layer])  # Its hooks keep what `query` reads.
        return self._queries(HiddenTokens.of(tokens, hidden_states[self.layer]))

    def _queries(self, tokens: HiddenTokens) -> _ScopedQueries:
        return self.query(replace(tokens, hidden_states=tokens.hidden_states.float())), self.reachable(tokens)

    @torch.no_grad()
    def _route_prefill(self, tokens: HiddenTokens) -> Routing | None:
        """The experts of the batch that the backbone reads: what the hook calls at prefill."""
        return self._route([self._queries(tokens)]) if len(self.repository) else None

    def _route(self, batches: Sequence[_ScopedQueries]) -> Routing | None:
        """The experts of several batches of queries, as of one."""
        query, reachable = QueryFeatures.joined([one for one, _ in batches]), torch.cat([one for _, one in batches])
        return route(self.similarities, query, reachable, self.repository, self.combining, self._weight_factor)


class _ActiveExperts:
    """Its length is the number of active experts, also after `keep_experts_on` has replaced the repository."""

    def __init__(self, editor: RoutedEditor):
        self._editor = editor

    def __len__(self) -> int:
        return len(self._editor.repository)
