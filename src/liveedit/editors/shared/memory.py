"""The feature rows by which a retrieving editor finds its edits."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from ...errors import InvalidInputError, NotFoundError

_EQUAL_WITHIN = 1e-5
"""Similarities that differ by less count as equal: products of equal rows may differ in their last bits."""


class FeatureMemory:
    """Feature rows by edit id, in the order in which they were added.

    Of edits that are equally near to a query the latest is found, so that a second answer to the same question
    replaces the first; undoing the latest brings the earlier one back.
    """

    def __init__(self) -> None:
        self._rows: dict[str, Tensor] = {}
        self._stacked: Tensor | None = None

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, edit_id: str) -> bool:
        return edit_id in self._rows

    @property
    def ids(self) -> tuple[str, ...]:
        """Edit ids, row by row."""
        return tuple(self._rows)

    @property
    def features(self) -> Float[Tensor, "edits features"]:
        """All rows, float32. Raises `NotFoundError` if there is no edit."""
        if not self._rows:
            raise NotFoundError("There is no edit to be found. Make one first.")
        if self._stacked is None:
            self._stacked = torch.stack(list(self._rows.values()))
        return self._stacked

    def add(self, edit_id: str, feature: Float[Tensor, " features"]) -> None:
        """Add a row. Raises `InvalidInputError` for a known id."""
        if edit_id in self._rows:
            raise InvalidInputError(f"The edit {edit_id!r} is already there. Undo it first or use another id.")
        self._rows[edit_id] = feature.detach().float()
        self._stacked = None

    def check(self, edit_id: str) -> None:
        """Raise `NotFoundError` for an unknown id."""
        if edit_id not in self._rows:
            raise NotFoundError(f"There is no edit {edit_id!r}. There are {len(self)} edits.")

    def remove(self, edit_id: str) -> None:
        """Remove one row. Raises `NotFoundError` for an unknown id."""
        self.check(edit_id)
        del self._rows[edit_id]
        self._stacked = None

    def clear(self) -> None:
        """Remove all rows."""
        self._rows.clear()
        self._stacked = None

    def similarity(self, queries: Float[Tensor, "queries features"]) -> Float[Tensor, "queries edits"]:
        """Dot products in float32: cosines, if rows have unit length. Raises `NotFoundError` if there is no edit."""
        features = self.features
        with torch.autocast(features.device.type, enabled=False):  # bfloat16 products would blur similarities.
            return queries.float().to(features.device) @ features.T

    def nearest(self, queries: Float[Tensor, "queries features"]) -> tuple[list[str], Float[Tensor, " queries"]]:
        """The id of the nearest edit of each query, and its similarity. Raises `NotFoundError` if there is no edit."""
        places, found = nearest(self.similarity(queries))
        ids = self.ids
        return [ids[row[0]] for row in places], found[:, 0]

    def retrieve(
        self, queries: Float[Tensor, "queries features"], count: int, threshold: float | None = None
    ) -> list[list[tuple[str, float]]]:
        """Up to `count` edits for each query with their similarities, nearest first.

        With a threshold only edits of a similarity above it. Raises `NotFoundError` if there is no edit.
        """
        places, found = nearest(self.similarity(queries), count)
        ids = self.ids
        return [
            [(ids[place], near) for place, near in zip(*row, strict=True) if threshold is None or near > threshold]
            for row in zip(places, found.tolist(), strict=True)
        ]


def nearest(
    similarity: Float[Tensor, "queries edits"], count: int = 1
) -> tuple[list[list[int]], Float[Tensor, "queries found"]]:
    """Columns of the `count` largest values of each row (or of all, if there are fewer), and these values.

    Of columns that are equal within 1e-5 the last comes first.
    """
    left = similarity
    columns = torch.arange(similarity.shape[1], device=similarity.device)
    places: list[Tensor] = []
    values: list[Tensor] = []
    for _ in range(min(count, similarity.shape[1])):
        best = left.amax(1, keepdim=True)
        latest = torch.where(left >= best - _EQUAL_WITHIN, columns, -1).amax(1, keepdim=True)
        places.append(latest)
        values.append(best)
        left = left.scatter(1, latest, float("-inf"))
    return torch.cat(places, 1).tolist(), torch.cat(values, 1)
