"""Rows of tensors of one shape, in blocks: adding one writes its own row and moves no other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final

import torch
from torch import Tensor

from .blocks import BlockLayout, Column, Products

_COPIED_ONE_BY_ONE: Final = 128
"""Up to this many rows are copied one by one. For more, grouping them by block first costs less."""

_ROWS_PER_COPY: Final = 256
"""Few enough that rows copied twice stay in the processor's cache."""


NewColumn = Callable[[str, BlockLayout, Sequence[int]], Column]
"""Makes an empty column of a name and a shape."""


class Rows:
    """Named columns, (rows, *shape) each, that grow together."""

    def __init__(self, example: Mapping[str, Tensor], layout: BlockLayout, new_column: NewColumn):
        """example: the tensors of one row, which give names and shapes."""
        self._layout = layout
        self._columns = {name: new_column(name, layout, tensor.shape) for name, tensor in example.items()}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of one row of each column."""
        return {name: column.shape for name, column in self._columns.items()}

    @property
    def capacity(self) -> int:
        """Number of rows that the blocks hold."""
        return self._layout.rows

    # -- changing ----------------------------------------------------------------------------------------

    def append(self, values: Mapping[str, Tensor]) -> int:
        """Append a row and return its number. Raises `StoreError` if there is no room; nothing changes then."""
        row = self._count
        self._make_room(row)
        for name, column in self._columns.items():
            column.write(row, values[name])
        self._count += 1
        return row

    def remove(self, row: int) -> int:
        """Remove a row: the last row moves into its place. Returns the number that the last row had."""
        last = self._count - 1
        if row != last:
            for column in self._columns.values():
                column.write(row, column.read(last))
        self._count = last
        while self._layout.has_block_to_spare(last):
            self._layout.shrink()
            for column in self._columns.values():
                column.drop_block()
        return last

    # -- reading -----------------------------------------------------------------------------------------

    def read(self, row: int) -> dict[str, Tensor]:
        """Copies of the tensors of a row, where the columns are."""
        return {name: column.read(row) for name, column in self._columns.items()}

    def parts(self, name: str, largest: int | None = None) -> Iterator[Tensor]:
        """A column as views of at most `largest` rows, valid until the next change."""
        for part in self._columns[name].parts(self._count):
            yield from part.split(largest or len(part))

    def products(self, name: str, queries: Tensor) -> Iterator[Products]:
        """Products of queries, (batch, width), with a column of vectors, block by block, and bounds on their errors."""
        return self._columns[name].products(queries, self._count)

    def gather(self, rows: Tensor, *names: str) -> list[Tensor]:
        """Copies of these rows of columns, where the columns are: (wanted, *shape) each.

        rows: (wanted,), on the CPU.
        """
        columns = [self._columns[name] for name in names]
        if 0 < len(rows) <= _COPIED_ONE_BY_ONE:
            places = [self._layout.place_of(row) for row in rows.tolist()]
            return [column.at(places) for column in columns]
        found = [torch.empty((len(rows), *column.shape), device=column.device) for column in columns]
        for start in range(0, len(rows), _ROWS_PER_COPY):
            some = slice(start, start + _ROWS_PER_COPY)
            groups = self._layout.groups(rows[some])
            for column, to in zip(columns, found, strict=True):
                column.copy(groups, to[some])
        return found

    # -- inside ------------------------------------------------------------------------------------------

    def _make_room(self, row: int) -> None:
        if row < self._layout.rows:
            return
        try:
            for column in self._columns.values():
                column.append_block(self._layout.next_block)
        except BaseException:
            # If memory or disk ran out, restore the state before.
            for column in self._columns.values():
                while column.block_count > len(self._layout.starts):
                    column.drop_block()
            raise
        self._layout.grow()
