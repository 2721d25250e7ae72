"""The expert repository in memory: one row per edit, read by the forward pass."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from ..errors import InvalidInputError, NotFoundError
from . import blocks
from .blocks import ExpertsOn, Products
from .coarse import CoarseColumn
from .expert import LowRankExpert
from .rows import Rows

Feature = Literal["visual_feature", "prompt_feature", "query_feature"]

FEATURES: Final = ("visual_feature", "prompt_feature", "query_feature")
"""The parts that queries are compared with. The matrices u and v are needed only for experts that fire."""


class ExpertRepository:
    """The repository `{(U, V, phi_hat, psi_hat)}` of the LiveEdit paper, section 4.1, in blocks of rows.

    Adding an edit writes its own row and copies no other. Experts may have different ranks. Removing an expert moves
    the last row into the freed one, so the order of rows is arbitrary; experts are therefore mixed in the order of
    their digests.
    experts_on: where experts are. On the "host" they are in unnamed memory-mapped files in `folder` (by default the
    system's temporary folder), and what a query needs is copied to the device, bit for bit. The visual features, with
    which every query is compared, then have 8-bit copies in memory (`CoarseColumn`); on a device with memory of its own
    they stay there as they are.

    Raises `StoreError` if a file on the host cannot be created.
    """

    def __init__(
        self,
        device: torch.device | str = "cpu",
        *,
        experts_on: ExpertsOn | str = "device",
        folder: str | Path | None = None,
    ):
        if experts_on not in ("device", "host"):
            raise InvalidInputError(f"Experts cannot be kept on {experts_on!r}. Give device or host.")
        self.device, self.experts_on = torch.device(device), experts_on
        self._folder = Path(folder) if folder is not None else None
        self.clear()

    def clear(self) -> None:
        """Remove every expert."""
        self._features: Rows | None = None
        self._matrices: dict[int, Rows] = {}
        """The rows of u and v, by rank."""
        self._places: list[tuple[int, int]] = []
        """Of each expert: its rank, and its row among the experts of that rank."""
        self._owners: dict[int, list[int]] = {}
        """Of each rank: the row of the expert that each row of u and v belongs to."""
        self._ids: list[str] = []
        self._digests: list[str] = []
        self._ages: list[int] = []
        self._next_age = 0
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

    def rank_of(self, edit_id: str) -> int:
        """The rank of an edit's expert. Raises `NotFoundError`."""
        return self._places[self._row(edit_id)][0]

    def age_of(self, row: int) -> int:
        """The number of a row's expert: the newest has the largest."""
        return self._ages[row]

    @property
    def rows_by_age(self) -> list[int]:
        """All rows, the newest last."""
        return sorted(range(len(self)), key=self._ages.__getitem__)

    # -- changing ----------------------------------------------------------------------------------------

    def add(self, edit_id: str, expert: LowRankExpert) -> None:
        """Add an expert, the newest so far.

        Raises `InvalidInputError` for a known id or another shape; nothing changes then.
        """
        if edit_id in self._rows:
            raise InvalidInputError(f"The edit {edit_id!r} is already there. Undo it first or use another id.")
        self._check_shapes(expert)
        tensors, rank, digest = expert.tensors, len(expert.u), expert.digest
        features = {name: tensors[name] for name in FEATURES}
        matrices = {name: tensors[name] for name in ("u", "v")}
        length = float(expert.visual_feature.detach().double().norm())
        keys = self._new_rows(features, expert) if self._features is None else self._features
        shelf = self._matrices[rank] if rank in self._matrices else self._new_rows(matrices, expert)
        place = shelf.append(matrices)
        try:
            row = keys.append(features)
        except BaseException:
            shelf.remove(place)
            raise
        self._features, self._matrices[rank] = keys, shelf
        self._owners.setdefault(rank, []).append(row)
        self.longest_visual_feature = max(self.longest_visual_feature, length)
        self._places.append((rank, place))
        self._ids.append(edit_id)
        self._digests.append(digest)
        self._ages.append(self._next_age)
        self._next_age += 1
        self._rows[edit_id] = row

    def number(self, numbers: Mapping[str, int]) -> None:
        """Number experts in the order in which their edits were made. Raises `NotFoundError`.

        An expert that comes back is then as new as it was before.
        """
        for edit_id, number in numbers.items():
            self._ages[self._row(edit_id)] = number
            self._next_age = max(self._next_age, number + 1)

    def remove(self, edit_id: str) -> None:
        """Remove an expert. Raises `NotFoundError`."""
        row, last = self._row(edit_id), len(self._ids) - 1
        rank, place = self._places[row]
        self._matrices[rank].remove(place)
        owners = self._owners[rank]
        owners[place] = owners[-1]
        self._places[owners[place]] = (rank, place)
        owners.pop()
        self._keys.remove(row)
        if row != last:
            for column in (self._ids, self._digests, self._ages, self._places):
                column[row] = column[last]  # type: ignore[index]
            self._rows[self._ids[row]] = row
            moved_rank, moved_place = self._places[row]
            self._owners[moved_rank][moved_place] = row
        del self._rows[edit_id]
        for column in (self._ids, self._digests, self._ages, self._places):
            column.pop()

    # -- reading -----------------------------------------------------------------------------------------

    def get(self, edit_id: str) -> LowRankExpert:
        """A copy of an edit's expert. Raises `NotFoundError`."""
        row = self._row(edit_id)
        rank, place = self._places[row]
        parts = {**self._matrices[rank].read(place), **self._keys.read(row)}
        return LowRankExpert(**{name: part.to(self.device) for name, part in parts.items()})

    def parts(self, name: Feature, largest: int | None = None) -> Iterator[Float[Tensor, "rows ..."]]:
        """One feature of all experts, in the order of their rows, as views of at most `largest` rows: (rows, ...).

        The views are valid until the next change.
        """
        return self._keys.parts(name, largest)

    def products(self, queries: Float[Tensor, "batch feature"]) -> Iterator[Products]:
        """Products of queries with the visual features of all experts, block by block, in the order of their rows.

        Each comes with bounds on its error, beside that of rounding: 0 where the features themselves were read.
        """
        return self._keys.products("visual_feature", queries)

    def gather(self, rows: Int64[Tensor, "*wanted"] | Sequence[int], *names: Feature) -> list[Float[Tensor, "*part"]]:
        """Copies of features of the experts in these rows, on the device: (*shape of rows, ...) each."""
        wanted = _on_cpu(rows)
        found = self._keys.gather(wanted.flatten(), *names)
        return [part.to(self.device).unflatten(0, wanted.shape) for part in found]

    def gather_matrices(
        self, rows: Int64[Tensor, "*wanted"] | Sequence[int]
    ) -> tuple[Float[Tensor, "*wanted r d"], Float[Tensor, "*wanted r d"]]:
        """Copies of u and v of the experts in these rows, on the device.

        r: the largest rank among them. Experts of smaller rank are filled up with zeros, which add nothing.
        """
        wanted = _on_cpu(rows)
        flat = wanted.flatten().tolist()
        by_rank: dict[int, list[int]] = {}
        for index, row in enumerate(flat):
            by_rank.setdefault(self._places[row][0], []).append(index)
        if len(by_rank) == 1:
            (rank,) = by_rank
            places = torch.tensor([self._places[row][1] for row in flat])
            u, v = (part.to(self.device) for part in self._matrices[rank].gather(places, "u", "v"))
            return u.unflatten(0, wanted.shape), v.unflatten(0, wanted.shape)
        width = self._width
        filled = [torch.zeros(len(flat), max(by_rank, default=0), width, device=self.device) for _ in range(2)]
        for rank, indices in by_rank.items():
            places = torch.tensor([self._places[flat[index]][1] for index in indices])
            for whole, part in zip(filled, self._matrices[rank].gather(places, "u", "v"), strict=True):
                whole[torch.tensor(indices, device=self.device), :rank] = part.to(self.device)
        u, v = (part.unflatten(0, wanted.shape) for part in filled)
        return u, v

    @property
    def u(self) -> Float[Tensor, "edits rank width"]:
        """The matrices U of all experts, a copy."""
        return self._all_matrices[0]

    @property
    def v(self) -> Float[Tensor, "edits rank width"]:
        """The matrices V of all experts, a copy."""
        return self._all_matrices[1]

    @property
    def visual_features(self) -> Float[Tensor, "edits feature"]:
        """phi_hat of all experts, a copy."""
        return self._whole("visual_feature")

    @property
    def prompt_features(self) -> Float[Tensor, "edits feature"]:
        """psi_hat of all experts, a copy."""
        return self._whole("prompt_feature")

    # -- inside ------------------------------------------------------------------------------------------

    def _new_rows(self, example: Mapping[str, Tensor], expert: LowRankExpert) -> Rows:
        largest = blocks.LARGEST_FILE_BYTES if self.experts_on == "host" else blocks.LARGEST_BLOCK_BYTES
        return Rows(example, blocks.BlockLayout(expert.store_bytes, largest), self._new_column)

    def _new_column(self, name: str, layout: blocks.BlockLayout, shape: Sequence[int]) -> blocks.Column:
        if self.experts_on == "device":
            return blocks.Column(layout, shape, self.device)
        if name != "visual_feature":
            return blocks.MappedColumn(layout, shape, self._folder)
        if self.device.type == "cpu":
            return CoarseColumn(layout, shape, self._folder)
        # Other devices have their own memory and compare the features as they are.
        return blocks.Column(layout, shape, self.device)

    def _row(self, edit_id: str) -> int:
        if edit_id not in self._rows:
            raise NotFoundError(f"There is no edit {edit_id!r}. {len(self)} edits are active.")
        return self._rows[edit_id]

    @property
    def _keys(self) -> Rows:
        if self._features is None:
            raise NotFoundError("The repository is empty: there is no expert yet.")
        return self._features

    @property
    def _width(self) -> int:
        return next(iter(self._matrices.values())).shapes["u"][-1]

    @property
    def _all_matrices(self) -> tuple[Tensor, Tensor]:
        _ = self._keys
        return self.gather_matrices(range(len(self)))

    def _whole(self, name: Feature) -> Tensor:
        keys = self._keys
        none = torch.empty((0, *keys.shapes[name]), device=self.device)
        return torch.cat([none, *(part.to(self.device) for part in keys.parts(name))])

    def _check_shapes(self, expert: LowRankExpert) -> None:
        if self._features is None:
            return
        rank = len(expert.u)
        held = {**self._features.shapes, "u": (rank, self._width), "v": (rank, self._width)}
        for name, tensor in expert.tensors.items():
            if tuple(tensor.shape) != held[name]:
                raise InvalidInputError(
                    f"An expert's {name} has shape {tuple(tensor.shape)}; this repository holds "
                    f"{held[name]}. It was made by another editor."
                )


def _on_cpu(rows: Tensor | Sequence[int]) -> Tensor:
    return torch.as_tensor(rows, dtype=torch.long, device="cpu")
