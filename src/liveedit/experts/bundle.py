"""A store's edits as one file to keep or to send: safetensors, with everything but numbers as JSON in its header.

Tensors: `ID.u`, `ID.v`, `ID.visual_feature`, `ID.prompt_feature` (float32), and `ID.thumbnail`, `ID.picture` (the bytes
of an image file, uint8) where there are any. Reading one runs no code, and any safetensors library shows what is in it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..errors import StoreError, issues_of
from .expert import Expert
from .records import Binding, BlobKind, Event, StoredEdit

_FORMAT: Final = "liveedit-edits-1"
LARGEST_HEADER_BYTES: Final = 100_000_000
"""What safetensors reads; it would write more."""

_PARTS: Final = ("u", "v", "visual_feature", "prompt_feature")
_ADVICE: Final = "Export it again, or go back to another copy."


class BundleContents(BaseModel):
    """What the header of a bundle says.

    revision: the store's at the export. whole: with what was undone, and the whole history; else the edits that were
    in force. spans: (edit id, revision added, revision removed). files: SHA-256 of thumbnails and pictures by edit id.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    binding: Binding | None
    revision: int
    whole: bool
    edits: tuple[StoredEdit, ...]
    events: tuple[Event, ...] = ()
    spans: tuple[tuple[str, int, int | None], ...] = ()
    files: dict[str, dict[BlobKind, str]] = {}


@dataclass(frozen=True, slots=True)
class Imported:
    """What an import did, as ids."""

    added: tuple[str, ...]
    already_there: tuple[str, ...]
    """The same edits were in the store; they stay as they are, in force or not."""
    purged_here: tuple[str, ...]
    """Purged from the store before; not brought back."""


def write_bundle(
    path: Path, contents: BundleContents, experts: Mapping[str, Expert], files: Mapping[str, dict[BlobKind, bytes]]
) -> None:
    """Write a bundle, whole or not at all. Raises `StoreError` where a file is there, or it cannot be written."""
    if path.exists():
        raise StoreError(f"The bundle {str(path)!r} is there already. Give another name, or move it away.")
    tensors: dict[str, Tensor] = {}
    for edit_id, expert in experts.items():
        tensors |= {f"{edit_id}.{name}": tensor for name, tensor in expert.tensors.items()}
    for edit_id, kinds in files.items():
        for kind, data in kinds.items():
            tensors[f"{edit_id}.{kind}"] = torch.from_numpy(np.frombuffer(bytearray(data), dtype=np.uint8))
    text = contents.model_dump_json()
    header = {"format": _FORMAT, "contents": text, "contents_sha256": hashlib.sha256(text.encode()).hexdigest()}
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.unfinished")
    try:
        save_file(tensors, unfinished, header)
        with unfinished.open("rb+") as file:
            header_bytes = int.from_bytes(file.read(8), "little")
            os.fsync(file.fileno())
        if header_bytes > LARGEST_HEADER_BYTES:
            raise StoreError(
                f"The bundle {str(path)!r} would have a header of {header_bytes:,} bytes; safetensors allows "
                f"{LARGEST_HEADER_BYTES:,}. Export only the edits in force, or copy the edits file itself."
            )
        unfinished.replace(path)
    except (OSError, SafetensorError) as error:
        raise StoreError(f"The bundle {str(path)!r} could not be written ({error}). Nothing was left there.") from error
    finally:
        unfinished.unlink(missing_ok=True)


class Bundle:
    """A bundle that is open for reading."""

    def __init__(self, path: Path, reader: Any):
        self._path, self._reader = path, reader
        header = reader.metadata() or {}
        if header.get("format") != _FORMAT:
            found = header.get("format", "none")
            raise StoreError(
                f"{str(path)!r} is no bundle of edits that this version reads: its format is {found!r}, not "
                f"{_FORMAT!r}. Export it with this version."
            )
        text = header.get("contents", "")
        if hashlib.sha256(text.encode()).hexdigest() != header.get("contents_sha256"):
            raise self._damaged("what its header says does not have the digest given there")
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

    def expert(self, edit: StoredEdit) -> Expert:
        """An edit's expert. Raises `StoreError` where it is not the one that was exported."""
        expert = Expert(**{part: self._tensor(edit.id, part) for part in _PARTS})
        if any(tensor.dtype != torch.float32 for tensor in expert.tensors.values()):
            raise self._damaged(f"a part of the expert of edit {edit.id!r} is not float32")
        if expert.digest != edit.expert_digest:
            raise self._damaged(f"the expert of edit {edit.id!r} does not have its digest")
        return expert

    def files(self, edit: StoredEdit) -> dict[BlobKind, bytes]:
        """An edit's thumbnail and picture, if there. Raises `StoreError` alike."""
        found: dict[BlobKind, bytes] = {}
        for kind, sha256 in self.contents.files.get(edit.id, {}).items():
            found[kind] = self._tensor(edit.id, kind).numpy().tobytes()
            if hashlib.sha256(found[kind]).hexdigest() != sha256:
                raise self._damaged(f"the {kind} of edit {edit.id!r} does not have its digest")
        return found

    def _tensor(self, edit_id: str, part: str) -> Tensor:
        try:
            return self._reader.get_tensor(f"{edit_id}.{part}")
        except SafetensorError as error:
            raise self._damaged(f"the {part} of edit {edit_id!r} cannot be read: {error}") from error

    def _damaged(self, why: str) -> StoreError:
        return StoreError(f"The bundle {str(self._path)!r} is damaged: {why}. Nothing was imported. {_ADVICE}")


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
        yield Bundle(path, reader)
