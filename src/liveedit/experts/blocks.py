"""Tensors that grow block by block, so that rows never move: on a device, or in files on the host."""

from __future__ import annotations

import math
import mmap
import os
import tempfile
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, Literal

import numpy as np
import torch
from torch import Tensor

from ..errors import StoreError

ExpertsOn = Literal["device", "host"]
"""Where the large parts of experts are: in the device's memory, or in memory-mapped files on the host."""

FIRST_ROWS: Final = 1024
FIRST_BLOCK_BYTES: Final = 8 * 2**20
"""The first block has `FIRST_ROWS` rows, or fewer if they would take more than `FIRST_BLOCK_BYTES`."""

LARGEST_BLOCK_BYTES: Final = 64 * 2**20
"""Every other block has as many rows as all before it, but at most this size. It bounds the unused memory."""

LARGEST_FILE_BYTES: Final = 2**30
"""The same for blocks in files, of which each keeps a file open."""

_ZEROS: Final = bytes(2**20)


Group = tuple[int, Tensor, Tensor]

Products = tuple[Tensor, Tensor]
"""Products of queries with the vectors of a block, (batch, rows), and how far they may be off, beside rounding."""


class BlockLayout:
    """The blocks of a repository: 1024, 1024, 2048, ... rows, each up to a size in bytes."""

    def __init__(self, row_bytes: int, largest: int | None = None):
        """largest: of a block, in bytes; by default `LARGEST_BLOCK_BYTES`."""
        row_bytes = max(1, row_bytes)
        self._first = max(1, min(FIRST_ROWS, FIRST_BLOCK_BYTES // row_bytes))
        self._most = max(self._first, (largest or LARGEST_BLOCK_BYTES) // row_bytes)
        self.starts: list[int] = []
        """The first row of each block."""
        self.rows = 0

    @property
    def next_block(self) -> int:
        """Number of rows of the next block."""
        return min(max(self._first, self.rows), self._most)

    def grow(self) -> None:
        """Append a block."""
        self.starts.append(self.rows)
        self.rows += self.next_block

    def shrink(self) -> None:
        """Remove the last block."""
        self.rows = self.starts.pop()

    def has_block_to_spare(self, used_rows: int) -> bool:
        """Whether the last two blocks are empty. One empty block stays: alternating adds and removes are then cheap."""
        return len(self.starts) > 1 and used_rows <= self.starts[-2]

    def place_of(self, row: int) -> tuple[int, int]:
        """(block, index in it) of a row."""
        block = bisect_right(self.starts, row) - 1
        return block, row - self.starts[block]

    def groups(self, rows: Tensor) -> list[Group]:
        """(block, indices in it, indices in `rows`) of these rows, block by block. rows: (wanted,) on the CPU."""
        of_block = torch.bucketize(rows, torch.tensor(self.starts), right=True) - 1
        counts = of_block.bincount().tolist()
        orders = of_block.argsort(stable=True).split(counts)
        return [
            (number, rows[order] - self.starts[number], order) for number, order in enumerate(orders) if counts[number]
        ]


class Column:
    """One part of every expert, (rows, *shape), float32, in the blocks of a layout."""

    def __init__(self, layout: BlockLayout, shape: Sequence[int], device: torch.device):
        self.shape, self.device = tuple(shape), device
        self._layout, self._blocks = layout, list[Tensor]()

    # Blocks created in inference mode could not be written to outside of it.
    @torch.inference_mode(False)
    def append_block(self, rows: int) -> None:
        """Append a block of this many uninitialised rows."""
        self._blocks.append(self._new_block((rows, *self.shape)))

    def drop_block(self) -> None:
        """Release the last block."""
        self._blocks.pop()

    @property
    def block_count(self) -> int:
        """Number of blocks."""
        return len(self._blocks)

    def write(self, row: int, values: Tensor) -> None:
        """Set one row."""
        block, place = self._layout.place_of(row)
        self._blocks[block][place] = values.detach().to(self.device)

    def read(self, row: int) -> Tensor:
        """A copy of one row, on the device of the rows."""
        block, place = self._layout.place_of(row)
        return self._blocks[block][place].clone()

    def parts(self, rows: int) -> Iterator[Tensor]:
        """The first rows, block by block, as views: (rows of the block, *shape)."""
        for start, block in zip(self._layout.starts, self._blocks, strict=True):
            if start < rows:
                yield block[: rows - start]

    def products(self, queries: Tensor, rows: int) -> Iterator[Products]:
        """Products of queries, (batch, width), with the first rows of a column of vectors, block by block."""
        for part in self.parts(rows):
            yield queries @ part.T, queries.new_zeros(1, 1)

    def at(self, places: list[tuple[int, int]]) -> Tensor:
        """Copies of the rows at these (block, index) pairs: (wanted, *shape), on the column's device."""
        return torch.stack([self._blocks[block][place] for block, place in places])

    def copy(self, groups: list[Group], to: Tensor) -> None:
        """Copy rows, grouped by the layout, into `to`: (wanted, *shape), on the column's device."""
        for number, places, order in groups:
            found = self._blocks[number].index_select(0, places.to(self.device))
            to.index_copy_(0, order.to(self.device), found)

    def _new_block(self, shape: tuple[int, ...]) -> Tensor:
        return torch.empty(shape, device=self.device, dtype=torch.float32)


class MappedColumn(Column):
    """A column in memory-mapped files on the host, which the system may page out.

    The files have no names, so they vanish with the process, however it ends. Raises `StoreError` if the folder cannot
    be written to or the disk is full. Disk space is reserved when a block is created, so that writing rows never fails.
    """

    def __init__(self, layout: BlockLayout, shape: Sequence[int], folder: Path | None):
        super().__init__(layout, shape, torch.device("cpu"))
        self._folder, self._maps = Path(folder or tempfile.gettempdir()), list[np.memmap]()
        self._row_bytes = 4 * math.prod(shape)

    def drop_block(self) -> None:
        """Release the last block and its file."""
        super().drop_block()
        self._maps.pop()

    def write(self, row: int, values: Tensor) -> None:
        """Set one row and release its pages, so that writing many rows takes no memory of the process."""
        super().write(row, values)
        block, place = self._layout.place_of(row)
        self._release_pages(block, place, place + 1)

    def _release_pages(self, block: int, first: int, end: int) -> None:
        pages: mmap.mmap = self._maps[block]._mmap  # pyright: ignore[reportAttributeAccessIssue]
        if hasattr(pages, "madvise") and hasattr(mmap, "MADV_DONTNEED"):  # Not on Windows.
            start = first * self._row_bytes // mmap.PAGESIZE * mmap.PAGESIZE
            # Only this process's view of the shared mapping is dropped; the page cache keeps the data.
            pages.madvise(mmap.MADV_DONTNEED, start, end * self._row_bytes - start)

    def _new_block(self, shape: tuple[int, ...]) -> Tensor:
        size = 4 * math.prod(shape)
        try:
            with tempfile.TemporaryFile(dir=self._folder) as file:
                _allocate(file.fileno(), size)
                mapped = np.memmap(file, dtype=np.float32, mode="r+", shape=shape)
        except OSError as error:
            raise StoreError(
                f"Experts could not be kept in memory-mapped files: {size:,} bytes more in the folder "
                f"{str(self._folder)!r} ({error.strerror or error}). Free some space there, give another folder, or "
                "keep experts on the device."
            ) from error
        self._maps.append(mapped)
        return torch.from_numpy(mapped)


def _allocate(descriptor: int, size: int) -> None:
    """Reserve the disk space now: writing to a mapped page on a full disk would kill the process."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, size)
        return
    for start in range(0, size, len(_ZEROS)):
        os.write(descriptor, _ZEROS[: size - start])
