"""A map over an image: which parts an editor reads, or which parts change what it finds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor


@dataclass(frozen=True)
class HeatMap:
    """A map over an image.

    kind: "attention" values are shares that sum to 1; a "change" value is 1 - cos(feature, feature with this cell
    covered by the image's mean colour).
    over: "cells" if the values cut the image into equal cells; "tokens" if they belong to image tokens that have no
    place in the image, in one row.
    values: rows from top to bottom.
    note: what was measured, in one phrase.
    """

    kind: Literal["attention", "change"]
    over: Literal["cells", "tokens"]
    values: tuple[tuple[float, ...], ...]
    note: str


def rows_of(values: Tensor) -> tuple[tuple[float, ...], ...]:
    """`HeatMap.values` from a tensor, (rows, columns)."""
    return tuple(tuple(row) for row in values.tolist())
