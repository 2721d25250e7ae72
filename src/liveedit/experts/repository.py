"""The expert repository in memory: one row per edit, read by the forward pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from ..errors import InvalidInputError, NotFoundError
from .blocks import BlockLayout, Column, ExpertsOn, MappedColumn
from .expert import LowRankExpert

Part = Literal["u", "v", "visual_feature", "prompt_feature"]

_KEYS: Final = ("visual_feature", "prompt_feature")
"""The parts that every query is compared with. The other parts are needed only for experts that fire."""

_COPIED_ONE_BY_ONE: Final = 128
"""Up to this many rows are copied one by one. For more, grouping them by block first costs less."""

_ROWS_PER_COPY: Final = 256
"""Few enough that rows copied twice stay in the processor's cache."""


class ExpertRepository:
    """The repository `{(U, V, phi_hat, psi_hat)}` of the LiveEdit paper, section 4.1, in blocks of rows.

    Adding an edit writes its own row and copies no other. The features, by which experts are found, are on the device.
    experts_on: where u and v are. On the "host" they are in unnamed memory-mapped files in `folder` (by default the
    system's temporary folder), and the experts that fire are copied to the device, bit for bit. Removing an expert
    moves the last row into the freed one, so the order of rows is arbitrary; experts are therefore mixed in the order
    of their digests.

    Raises `StoreError` if a file on the host cannot be created.
    """

    def __init__(
        self, device: torch.device | str = "cpu", *, experts_on: ExpertsOn = "device", folder: str | Path | None = None
    ):
        if experts_on not in ("device", "host"):
            raise InvalidInputError(f"Experts cannot be kept on {experts_on!r}. Give device or host.")
        self.device, self.experts_on = torch.device(device), experts_on
        self._folder = Path(folder) if folder is not None else None
        self.clear()

    def clear(self) -> None:
        """Remove every expert."""
        self._layout = BlockLayout(0)
        self._columns: dict[str, Column] = {}
        self._ids: list[str] = []
        self._digests: list[str] = []
        self._rows: dict[str, int] = {}
        self.longest_visual_feature = 0.0
        """Upper bound of the norms of all visual features that are, or were, in the repository."""

    def __len__(self) -> int:
        return len(self._ids)

    def __contains__(self, edit_id: str) -> bool:
        return edit_id in self._rows

    @property
    def ids(self) -> tuple[str, ...]:
        """Edit ids, row by row."""
        return tuple(self._ids)

    def id_of(self, row: int) -> str:
        """The edit id of a row."""
        return self._ids[row]

    def digest_of(self, row: int) -> str:
        """The digest of a row's expert."""
        return self._digests[row]

    # -- changing ----------------------------------------------------------------------------------------

    def add(self, edit_id: str, expert: LowRankExpert) -> None:
        """Add an expert. Raises `InvalidInputError` for a known id or another shape; nothing changes then."""
        if edit_id in self._rows:
            raise InvalidInputError(f"The edit {edit_id!r} is already there. Undo it first or use another id.")
        self._check_shapes(expert)
        row, digest = len(self._ids), expert.digest
        length = float(expert.visual_feature.detach().double().norm())
        self._make_room(expert, row)
        for name, tensor in expert.tensors.items():
            self._columns[name].write(row, tensor)
        self.longest_visual_feature = max(self.longest_visual_feature, length)
        self._ids.append(edit_id)
        self._digests.append(digest)
        self._rows[edit_id] = row

    def remove(self, edit_id: str) -> None:
        """Remove an expert. Raises `NotFoundError`."""
        row, last = self._row(edit_id), len(self._ids) - 1
        if row != last:
            for column in self._columns.values():
                column.write(row, column.read(last))
            self._ids[row], self._digests[row] = self._ids[last], self._digests[last]
            self._rows[self._ids[row]] = row
        del self._rows[edit_id]
        self._ids.pop()
        self._digests.pop()
        while self._layout.has_block_to_spare(len(self._ids)):
            self._layout.shrink()
            for column in self._columns.values():
                column.drop_block()

    # -- reading -----------------------------------------------------------------------------------------

    def get(self, edit_id: str) -> LowRankExpert:
        """A copy of an edit's expert. Raises `NotFoundError`."""
        row = self._row(edit_id)
        return LowRankExpert(**{name: column.read(row).to(self.device) for name, column in self._columns.items()})

    def parts(self, name: Part, largest: int | None = None) -> Iterator[Float[Tensor, "rows ..."]]:
        """One part of all experts, in the order of their rows, as views of at most `largest` rows: (rows, ...).

        The views are valid until the next change.
        """
        for part in self._column(name).parts(len(self)):
            yield from part.split(largest or len(part))

    def gather(self, rows: Int64[Tensor, "*wanted"] | Sequence[int], *names: Part) -> list[Float[Tensor, "*part"]]:
        """Copies of parts of the experts in these rows, on the device: (*shape of rows, ...) each."""
        wanted = torch.as_tensor(rows, dtype=torch.long, device="cpu")
        flat = wanted.flatten()
        columns = [self._column(name) for name in names]
        if 0 < len(flat) <= _COPIED_ONE_BY_ONE:
            places = [self._layout.place_of(row) for row in flat.tolist()]
            found = [column.at(places) for column in columns]
        else:
            found = self._gather_many(flat, columns)
        return [part.to(self.device).unflatten(0, wanted.shape) for part in found]

    @property
    def u(self) -> Float[Tensor, "edits rank width"]:
        """The matrices U of all experts, a copy."""
        return self._whole("u")

    @property
    def v(self) -> Float[Tensor, "edits rank width"]:
        """The matrices V of all experts, a copy."""
        return self._whole("v")

    @property
    def visual_features(self) -> Float[Tensor, "edits feature"]:
        """phi_hat of all experts, a copy."""
        return self._whole("visual_feature")

    @property
    def prompt_features(self) -> Float[Tensor, "edits feature"]:
        """psi_hat of all experts, a copy."""
        return self._whole("prompt_feature")

    # -- inside ------------------------------------------------------------------------------------------

    def _gather_many(self, rows: Tensor, columns: list[Column]) -> list[Tensor]:
        found = [torch.empty((len(rows), *column.shape), device=column.device) for column in columns]
        for start in range(0, len(rows), _ROWS_PER_COPY):
            some = slice(start, start + _ROWS_PER_COPY)
            groups = self._layout.groups(rows[some])
            for column, to in zip(columns, found, strict=True):
                column.copy(groups, to[some])
        return found

    def _row(self, edit_id: str) -> int:
        if edit_id not in self._rows:
            raise NotFoundError(f"There is no edit {edit_id!r}. {len(self)} edits are active.")
        return self._rows[edit_id]

    def _column(self, name: Part) -> Column:
        if name not in self._columns:
            raise NotFoundError("The repository is empty: there is no expert yet.")
        return self._columns[name]

    def _whole(self, name: Part) -> Tensor:
        column = self._column(name)
        none = torch.empty((0, *column.shape), device=column.device)
        return torch.cat([none, *column.parts(len(self))]).to(self.device)

    def _check_shapes(self, expert: LowRankExpert) -> None:
        for name, tensor in expert.tensors.items():
            column = self._columns.get(name)
            if column is not None and tensor.shape != column.shape:
                raise InvalidInputError(
                    f"An expert's {name} has shape {tuple(tensor.shape)}; this repository holds "
                    f"{tuple(column.shape)}. It was made by another editor."
                )

    def _make_room(self, expert: LowRankExpert, row: int) -> None:
        if not self._columns:
            self._layout = BlockLayout(expert.store_bytes)
            self._columns = {name: self._new_column(name, tensor) for name, tensor in expert.tensors.items()}
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
            if not self._layout.starts:
                self._columns = {}
            raise
        self._layout.grow()

    def _new_column(self, name: str, tensor: Tensor) -> Column:
        if self.experts_on == "host" and name not in _KEYS:
            return MappedColumn(self._layout, tensor.shape, self._folder)
        return Column(self._layout, tensor.shape, self.device)
