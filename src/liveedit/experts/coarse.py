"""Vectors in files, with 8-bit copies in memory: most products with a query are known well enough without the files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import torch
from jaxtyping import Float, Int8
from torch import Tensor

from .blocks import BlockLayout, MappedColumn, Products

_KEY_LEVELS: Final = 127
_QUERY_LEVELS: Final = 63
"""Half the range of 8 bits: processors that add pairs of products in 16 bits cannot overflow then."""

_MOST_WIDE: Final = 16
_WIDE: Final = 2.0
"""Up to `_MOST_WIDE` components that are this many times as large as the median one are kept in full precision."""


class CoarseBlock:
    """8-bit copies of the vectors of a block, and how far each may be from its vector.

    A component j of vector x is stored as round(x_j / s_j), with a scale s_j for the whole block. A few components that
    are much larger than others (flags beside a unit vector) are kept as they are: they would make the scales of
    queries too coarse. width: at least 2, since torch multiplies 8-bit matrices of width 1 wrongly.
    """

    def __init__(self, vectors: Float[Tensor, "rows width"]):
        largest = vectors.abs().amax(0)
        self._wide = _wide_components(largest)
        scales = largest / _KEY_LEVELS
        self._scales = torch.where(scales > 0, scales, 1.0)
        self._narrow = torch.ones_like(largest).index_fill_(0, self._wide, 0.0)
        # What is 0 in every vector of the block must not decide how finely a query is stored.
        self._compared = self._narrow * (largest > 0)
        self._keys: Int8[Tensor, "rows width"] = torch.empty(vectors.shape, dtype=torch.int8)
        self._whole = vectors.new_empty(len(vectors), len(self._wide))
        self._errors, self._lengths = vectors.new_empty(len(vectors)), vectors.new_empty(len(vectors))
        self.write(slice(None), vectors)

    def write(self, rows: slice, vectors: Float[Tensor, "rows width"]) -> None:
        """Replace the copies of these rows."""
        keys = (vectors * self._compared / self._scales).round().clamp(-_KEY_LEVELS, _KEY_LEVELS)
        self._keys[rows] = keys.to(torch.int8)
        self._whole[rows] = vectors[:, self._wide]
        self._errors[rows] = ((vectors * self._narrow).double() - keys.double() * self._scales).norm(dim=1).float()
        self._lengths[rows] = keys.norm(dim=1)

    def products(self, queries: Float[Tensor, "batch width"], rows: int) -> Products:
        """Products with the first rows, (batch, rows), and bounds on their errors.

        With x = s k + e for a vector and q s = a p + r for a query, k and p in 8 bits, the product is computed as
        a (p . k), so that it is wrong by at most |q| |e| + |r| |k|. Rounding in float32 is not part of the bounds.
        """
        scaled = queries * self._compared * self._scales
        steps = scaled.abs().amax(1, keepdim=True) / _QUERY_LEVELS
        steps = torch.where(steps > 0, steps, 1.0)
        levels = (scaled / steps).round()
        found = torch._int_mm(self._keys[:rows], levels.to(torch.int8).T).T * steps
        missing = (scaled.double() - levels.double() * steps).norm(dim=1, keepdim=True).float()
        bounds = (queries * self._narrow).norm(dim=1, keepdim=True) * self._errors[:rows] + missing * self._lengths[
            :rows
        ]
        return found + queries[:, self._wide] @ self._whole[:rows].T, bounds


class CoarseColumn(MappedColumn):
    """A mapped column of vectors with a `CoarseBlock` for each block that is full."""

    def __init__(self, layout: BlockLayout, shape: Sequence[int], folder: Path | None):
        super().__init__(layout, shape, folder)
        self._coarse: list[CoarseBlock | None] = []

    def append_block(self, rows: int) -> None:
        """Append a block of this many uninitialised rows."""
        super().append_block(rows)
        self._coarse.append(None)

    def drop_block(self) -> None:
        """Release the last block and its file."""
        super().drop_block()
        self._coarse.pop()

    @torch.inference_mode(False)
    def write(self, row: int, values: Tensor) -> None:
        """Set one row. Rows are first written in ascending order."""
        super().write(row, values)
        block, place = self._layout.place_of(row)
        coarse, vectors = self._coarse[block], self._blocks[block]
        if coarse is not None:
            coarse.write(slice(place, place + 1), vectors[place : place + 1].clone())
        elif place == len(vectors) - 1:
            self._coarse[block] = CoarseBlock(vectors)
            self._release_pages(block, 0, len(vectors))

    def products(self, queries: Float[Tensor, "batch width"], rows: int) -> Iterator[Products]:
        """Products of queries with the first rows, block by block, with bounds on their errors."""
        for part, coarse in zip(self.parts(rows), self._coarse, strict=False):
            if coarse is None:
                yield queries @ part.T, queries.new_zeros(1, 1)
            else:
                yield coarse.products(queries, len(part))


def _wide_components(largest: Float[Tensor, " width"]) -> Tensor:
    """Indices of the components that are kept in full precision. largest: of each component over a block."""
    found = largest.topk(min(_MOST_WIDE, len(largest)))
    return found.indices[found.values > _WIDE * largest.median()]
