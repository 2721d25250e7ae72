"""The expert repository in memory: one row per edit, ready for the forward pass."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import InvalidInputError, NotFoundError
from .expert import Expert


class ExpertRepository:
    """`{(U, V, phi_hat, psi_hat)}` as four tensors that grow by doubling (paper, section 4.1).

    Rows are in no particular order: removing one moves the last into its place. What is computed from them
    must not depend on the order, so experts are mixed by their digest. The tensors handed out are views: they
    are good until the next `add` or `remove`.
    """

    def __init__(self, device: torch.device | str = "cpu"):
        self.device = torch.device(device)
        self._buffers: dict[str, Tensor] = {}
        self._ids: list[str] = []
        self._digests: list[str] = []
        self._rows: dict[str, int] = {}

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

    @property
    def u(self) -> Tensor:
        """(edits, rank, width)."""
        return self._part("u")

    @property
    def v(self) -> Tensor:
        """(edits, rank, width)."""
        return self._part("v")

    @property
    def visual_features(self) -> Tensor:
        """(edits, k * d_m): phi_hat."""
        return self._part("visual_feature")

    @property
    def prompt_features(self) -> Tensor:
        """(edits, k * d_m): psi_hat."""
        return self._part("prompt_feature")

    def add(self, edit_id: str, expert: Expert) -> None:
        """Append an expert. Raises `InvalidInputError` for a known id or another shape."""
        if edit_id in self._rows:
            raise InvalidInputError(f"The edit {edit_id!r} is already there. Undo it first or use another id.")
        # Before making room: growing would stretch another shape over the rows that are there.
        self._check_shapes(expert)
        row, digest = len(self._ids), expert.digest
        self._make_room(expert, row + 1)
        for name, tensor in expert.tensors.items():
            self._buffers[name][row] = tensor.detach().to(self.device)
        self._ids.append(edit_id)
        self._digests.append(digest)
        self._rows[edit_id] = row

    def get(self, edit_id: str) -> Expert:
        """A copy of an edit's expert. Raises `NotFoundError`."""
        row = self._row(edit_id)
        return Expert(**{name: buffer[row].clone() for name, buffer in self._buffers.items()})

    def remove(self, edit_id: str) -> None:
        """Take an expert out. Raises `NotFoundError`."""
        row, last = self._row(edit_id), len(self._ids) - 1
        if row != last:
            for buffer in self._buffers.values():
                buffer[row] = buffer[last]
            self._ids[row], self._digests[row] = self._ids[last], self._digests[last]
            self._rows[self._ids[row]] = row
        del self._rows[edit_id]
        self._ids.pop()
        self._digests.pop()

    def clear(self) -> None:
        """Take every expert out."""
        self._ids, self._digests, self._rows, self._buffers = [], [], {}, {}

    def _row(self, edit_id: str) -> int:
        if edit_id not in self._rows:
            raise NotFoundError(f"There is no edit {edit_id!r}. {len(self)} edits are in force.")
        return self._rows[edit_id]

    def _part(self, name: str) -> Tensor:
        if name not in self._buffers:
            raise NotFoundError("The repository is empty: there is no expert yet.")
        return self._buffers[name][: len(self._ids)]

    def _check_shapes(self, expert: Expert) -> None:
        for name, tensor in expert.tensors.items():
            buffer = self._buffers.get(name)
            if buffer is not None and tensor.shape != buffer.shape[1:]:
                raise InvalidInputError(
                    f"An expert's {name} has shape {tuple(tensor.shape)}; this repository holds "
                    f"{tuple(buffer.shape[1:])}. It was made by another editor."
                )

    # Buffers made in inference mode could not be written to outside of it.
    @torch.inference_mode(False)
    def _make_room(self, expert: Expert, rows: int) -> None:
        for name, tensor in expert.tensors.items():
            buffer = self._buffers.get(name)
            if buffer is not None and len(buffer) >= rows:
                continue
            grown = torch.zeros((max(64, 2 * (rows - 1)), *tensor.shape), device=self.device)
            if buffer is not None:
                grown[: len(buffer)] = buffer
            self._buffers[name] = grown
