"""A store's edits as one file to keep or to send: safetensors, so that reading it runs no code.

Tensors: `u.N`, `v.N` (experts, rank, width), `visual_feature.N`, `prompt_feature.N` (experts, numbers), float32, one
row for each expert, N = 0 unless experts have several shapes; `files`, the bytes of thumbnails and images one after
the other; `records`, everything else as JSON (`BundleContents`). Few tensors, because safetensors limits the header
that names them; experts and images pass through memory one at a time, both ways.

The first format, `liveedit-edits-1`, had tensors `ID.u`, `ID.thumbnail`, ... for each edit and the records in the
header's metadata. It is read as before.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Final, Self, cast

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..errors import StoreError, issues_of
from ..experts.expert import LowRankExpert
from .records import Binding, BlobKind, Event, StoredEdit

_FIRST_FORMAT: Final = "liveedit-edits-1"
_FORMAT: Final = "liveedit-edits-2"
_PARTS: Final = ("u", "v", "visual_feature", "prompt_feature")
_ADVICE: Final = "Export it again, or go back to another copy."


class BundleContents(BaseModel):
    """What the records of a bundle say.

    revision: the store's at the export. whole: with what was undone, and the whole history; else the edits that were
    in force. spans: (edit id, revision added, revision removed). files: SHA-256 of thumbnails and images by edit id.
    file_bytes: their lengths, in their order in the bundle. shapes: N of the experts that are not among the first
    tensors, by edit id.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    binding: Binding | None
    revision: int
    whole: bool
    edits: tuple[StoredEdit, ...]
    events: tuple[Event, ...] = ()
    spans: tuple[tuple[str, int, int | None], ...] = ()
    files: dict[str, dict[BlobKind, str]] = {}
    file_bytes: dict[str, dict[BlobKind, int]] = {}
    shapes: dict[str, int] = {}


@dataclass(frozen=True, slots=True)
class Imported:
    """What an import did, as ids."""

    added: tuple[str, ...]
    already_there: tuple[str, ...]
    """The same edits were in the store; they stay as they are, in force or not."""
    purged_here: tuple[str, ...]
    """Purged from the store before; not brought back."""


class BundleWriter:
    """Writes a bundle, whole or not at all; experts and files one by one, in the order of the edits.

    What was added lies in files without names in the bundle's folder until `finish`: it takes its space twice there for
    a moment. Raises `StoreError` where a file is there already, or it cannot be written.
    """

    def __init__(self, path: Path):
        self._path, self._open = path, ExitStack()
        if path.exists():
            raise StoreError(f"The bundle {str(path)!r} is there already. Give another name, or move it away.")
        self._parts: dict[str, tuple[BinaryIO, tuple[int, ...]]] = {}
        """File and shape of a row, by the tensor's name."""
        self._shapes: dict[tuple[tuple[int, ...], ...], int] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(OSError):  # Closing tries once more to write what could not be written, which was said.
            self._open.close()

    def add_expert(self, expert: LowRankExpert) -> int:
        """The next expert; returns the number of its shapes."""
        shapes = tuple(tuple(tensor.shape) for tensor in expert.tensors.values())
        number = self._shapes.setdefault(shapes, len(self._shapes))
        for name, tensor in expert.tensors.items():
            self._append(f"{name}.{number}", tuple(tensor.shape), tensor.contiguous().numpy().tobytes())
        return number

    def add_file(self, data: bytes) -> None:
        """The next thumbnail or image."""
        self._append("files", (), data)

    def finish(self, contents: BundleContents) -> None:
        """Write the bundle, on the disk when this returns."""
        text = contents.model_dump_json().encode()
        self._append("records", (), text)
        header = {"format": _FORMAT, "contents_sha256": hashlib.sha256(text).hexdigest()}
        unfinished = self._path.with_name(f".{self._path.name}.{os.getpid()}.unfinished")
        with self._explained():
            try:
                save_file({name: self._tensor(name) for name in sorted(self._parts)}, unfinished, header)
                with unfinished.open("rb+") as file:
                    os.fsync(file.fileno())
                unfinished.replace(self._path)
            finally:
                unfinished.unlink(missing_ok=True)

    def _append(self, name: str, shape: tuple[int, ...], data: bytes) -> None:
        with self._explained():
            if name not in self._parts:
                file = self._open.enter_context(tempfile.TemporaryFile(dir=self._path.parent))  # noqa: SIM115 - closed with the rest
                self._parts[name] = cast(BinaryIO, file), shape
            self._parts[name][0].write(data)

    def _tensor(self, name: str) -> Tensor:
        """What was appended, mapped into memory."""
        file, shape = self._parts[name]
        file.flush()
        kind = np.float32 if shape else np.uint8
        if not os.fstat(file.fileno()).st_size:
            return torch.zeros(0, *shape, dtype=torch.uint8)
        mapped = np.memmap(file, dtype=kind, mode="r+")
        return torch.from_numpy(mapped.reshape(-1, *shape))

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (OSError, SafetensorError) as error:
            raise StoreError(
                f"The bundle {str(self._path)!r} could not be written ({error}). Nothing was left there."
            ) from error


class Bundle(ABC):
    """A bundle that is open for reading."""

    def __init__(self, path: Path, reader: Any, text: bytes, sha256: str | None):
        self._path, self._reader = path, reader
        if hashlib.sha256(text).hexdigest() != sha256:
            raise self._damaged("its records do not have the digest given in its header")
        try:
            self.contents = BundleContents.model_validate_json(text)
        except ValidationError as error:
            raise self._damaged(issues_of(error)) from error

    def check(self) -> None:
        """Read everything once. Raises `StoreError` where something is not what was exported."""
        for edit in self.contents.edits:
            if edit.purged_at is None:
                self.expert(edit)
                self.files(edit)

    def expert(self, edit: StoredEdit) -> LowRankExpert:
        """An edit's expert. Raises `StoreError` where it is not the one that was exported."""
        expert = LowRankExpert(**{part: self._read(edit, part) for part in _PARTS})
        if any(tensor.dtype != torch.float32 for tensor in expert.tensors.values()):
            raise self._damaged(f"a part of the expert of edit {edit.id!r} is not float32")
        if expert.digest != edit.expert_digest:
            raise self._damaged(f"the expert of edit {edit.id!r} does not have its digest")
        return expert

    def files(self, edit: StoredEdit) -> dict[BlobKind, bytes]:
        """An edit's thumbnail and image, if there. Raises `StoreError` alike."""
        found: dict[BlobKind, bytes] = {}
        for kind, sha256 in self.contents.files.get(edit.id, {}).items():
            found[kind] = self._read(edit, kind).numpy().tobytes()
            if hashlib.sha256(found[kind]).hexdigest() != sha256:
                raise self._damaged(f"the {kind} of edit {edit.id!r} does not have its digest")
        return found

    @abstractmethod
    def _tensor(self, edit: StoredEdit, part: str) -> Tensor:
        """A part of an expert, or the bytes of a file. Raises `SafetensorError`, or as dictionaries and lists do."""

    def _read(self, edit: StoredEdit, part: str) -> Tensor:
        try:
            return self._tensor(edit, part)
        except (SafetensorError, LookupError, RuntimeError) as error:
            raise self._damaged(f"the {part} of edit {edit.id!r} cannot be read: {error}") from error

    def _damaged(self, why: str) -> StoreError:
        return StoreError(f"The bundle {str(self._path)!r} is damaged: {why}. Nothing was imported. {_ADVICE}")


class _TensorsByEdit(Bundle):
    """The first format."""

    def __init__(self, path: Path, reader: Any, header: Mapping[str, str]):
        super().__init__(path, reader, header.get("contents", "").encode(), header.get("contents_sha256"))

    def _tensor(self, edit: StoredEdit, part: str) -> Tensor:
        return self._reader.get_tensor(f"{edit.id}.{part}")


class _RowsByEdit(Bundle):
    """The second format: an edit's place follows from those of the edits before it."""

    def __init__(self, path: Path, reader: Any, header: Mapping[str, str]):
        # One row at a time is read of these.
        self._slices = {name: reader.get_slice(name) for name in reader.keys()}  # noqa: SIM118 - no mapping
        text = reader.get_tensor("records").numpy().tobytes() if "records" in self._slices else b""
        super().__init__(path, reader, text, header.get("contents_sha256"))
        self._rows: dict[str, tuple[int, int]] = {}
        """N of an edit's expert, and its row there."""
        self._places: dict[tuple[str, str], tuple[int, int]] = {}
        """Where an edit's file begins and ends."""
        counts: dict[int, int] = {}
        end = 0
        for edit in self.contents.edits:
            if edit.purged_at is not None:
                continue
            number = self.contents.shapes.get(edit.id, 0)
            self._rows[edit.id] = number, counts.get(number, 0)
            counts[number] = counts.get(number, 0) + 1
            for kind, length in self.contents.file_bytes.get(edit.id, {}).items():
                self._places[edit.id, kind] = end, end + length
                end += length

    def _tensor(self, edit: StoredEdit, part: str) -> Tensor:
        if part in _PARTS:
            number, row = self._rows[edit.id]
            found = self._slices[f"{part}.{number}"]
            if row >= found.get_shape()[0]:
                raise IndexError(f"there are {found.get_shape()[0]} rows")
            return found[row]
        begin, end = self._places[edit.id, part]
        return self._slices["files"][begin:end]


_FORMATS: Final = {_FIRST_FORMAT: _TensorsByEdit, _FORMAT: _RowsByEdit}


@contextmanager
def open_bundle(path: Path) -> Iterator[Bundle]:
    """A bundle to read from. Raises `StoreError` where this is none, or it is damaged."""
    if not path.is_file():
        raise StoreError(f"There is no bundle {str(path)!r}. Check the path.")
    try:
        reader = safe_open(path, framework="pt")
    except (OSError, SafetensorError) as error:
        raise StoreError(f"{str(path)!r} is no bundle of edits: it is not safetensors ({error}).") from error
    with reader:
        header = reader.metadata() or {}
        found = header.get("format", "none")
        if found not in _FORMATS:
            raise StoreError(
                f"{str(path)!r} is no bundle of edits that this version reads: its format is {found!r}, not one of "
                f"{', '.join(_FORMATS)}. Export it with this version."
            )
        yield _FORMATS[found](path, reader, header)
