"""Bundles: the edits of a store as one file, to keep or to send. `importing.py` reads them into a store.

A bundle is a safetensors file, so that reading it runs no code. It has two tensors of bytes (uint8): `blobs`, the
experts, thumbnails and images one after the other, and `records`, everything else as JSON (`BundleContents`). The
header names the format and the SHA-256 of the records; the records have the length and the SHA-256 of every blob.
Experts and images pass through memory one edit at a time, both ways.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Final

from pydantic import BaseModel, ConfigDict, NonNegativeInt, ValidationError
from safetensors import SafetensorError, safe_open
from sqlalchemy import ColumnElement, Connection, select

from ..errors import StoreError, issues_of
from ..files import written_atomically
from . import queries
from .checksums import damaged_edits, damaged_events
from .records import Binding, BlobKind, Event, StoredEdit
from .schema import BLOBS, EDITS, INTERVALS
from .validation import expert_problem
from .verify import blob_problem, damaged_history

FORMAT: Final = "liveedit-edits-3"
"""Named in the header. Formats 1 and 2 were used before the first release; they cannot be read."""

_HEADER_BYTES: Final = 504
"""Length of the JSON header, padded with spaces. It is written last, once the lengths of the tensors are known."""


class BundleContents(BaseModel):
    """The records of a bundle.

    revision: of the store at the export. whole: with undone edits and the whole history; otherwise only the edits that
    were active. intervals: (edit id, revision added, revision removed). blobs: length in bytes and SHA-256 of each
    blob, by edit id and kind, in their order in the bundle.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    binding: Binding | None
    revision: int
    whole: bool
    edits: tuple[StoredEdit, ...]
    events: tuple[Event, ...] = ()
    intervals: tuple[tuple[str, int, int | None], ...] = ()
    blobs: dict[str, dict[BlobKind, tuple[NonNegativeInt, str]]] = {}


# -- export ----------------------------------------------------------------------------------------------------


def export_bundle(connection: Connection, whole: bool, path: Path) -> BundleContents:
    """Write a bundle: all of it, synchronised to the disk, or nothing.

    Raises `StoreError` if the file exists or cannot be written, or if what is to be exported is damaged.
    """
    if path.exists():
        raise StoreError(f"The bundle {str(path)!r} is there already. Give another name, or move it away.")
    wanted = () if whole else (queries.active(),)
    _check_records(connection, whole, *wanted)
    edits = queries.edits_where(connection, *wanted)
    with _write_errors(path), written_atomically(path, durable=True) as temporary, temporary.open("wb") as file:
        file.write(bytes(8 + _HEADER_BYTES))
        blobs: dict[str, dict[BlobKind, tuple[int, str]]] = {}
        for edit in edits:
            if edit.purged_at is not None:
                continue
            for kind, sha256, data in _blobs(connection, edit):
                file.write(data)
                blobs.setdefault(edit.id, {})[kind] = len(data), sha256
        contents = BundleContents(
            binding=queries.binding_of(connection),
            revision=queries.latest_revision(connection),
            whole=whole,
            edits=tuple(edits),
            events=tuple(queries.events_where(connection)) if whole else (),
            intervals=_intervals(connection) if whole else (),
            blobs=blobs,
        )
        _finish(file, contents)
    return contents


def _finish(file: BinaryIO, contents: BundleContents) -> None:
    """Write the records after the blobs, then the header before them.

    By hand, because `save_file` of safetensors copies every tensor into memory.
    """
    blobs_end = file.tell() - 8 - _HEADER_BYTES
    text = contents.model_dump_json().encode()
    file.write(text)
    end = blobs_end + len(text)
    header: dict[str, Any] = {
        "__metadata__": {"format": FORMAT, "contents_sha256": hashlib.sha256(text).hexdigest()},
        "blobs": {"dtype": "U8", "shape": [blobs_end], "data_offsets": [0, blobs_end]},
        "records": {"dtype": "U8", "shape": [len(text)], "data_offsets": [blobs_end, end]},
    }
    file.seek(0)
    file.write(_HEADER_BYTES.to_bytes(8, "little") + json.dumps(header).encode().ljust(_HEADER_BYTES))


@contextmanager
def _write_errors(path: Path) -> Iterator[None]:
    """Turn errors of writing into a `StoreError`."""
    advice = "Nothing was left there. Give a path in a folder that exists and has room."
    if not path.parent.is_dir():
        raise StoreError(f"The bundle {str(path)!r} could not be written (there is no such folder). {advice}")
    try:
        yield
    except OSError as error:
        raise StoreError(f"The bundle {str(path)!r} could not be written ({error}). {advice}") from error


def _check_records(connection: Connection, whole: bool, *wanted: ColumnElement[bool]) -> None:
    for edit_id, problem in damaged_edits(connection, *wanted):
        raise StoreError(
            f"The record of edit {edit_id!r} is damaged: {problem}. Undo that edit and export the active edits, or go "
            "back to a backup."
        )
    for revision, problem in damaged_events(connection) if whole else ():
        raise StoreError(f"{damaged_history(revision, problem)} Export the active edits, or go back to a backup.")


def _blobs(connection: Connection, edit: StoredEdit) -> Iterator[tuple[BlobKind, str, bytes]]:
    """(kind, SHA-256, bytes) of an edit's expert and images. Raises `StoreError` if one is damaged or missing."""
    statement = select(BLOBS.c.kind, BLOBS.c.sha256, BLOBS.c.data).where(BLOBS.c.edit_number == edit.number)
    found = connection.execute(statement).all()
    if all(kind != "expert" for kind, *_ in found):
        raise StoreError(f"The edit {edit.id!r} has no expert. Undo it and export the active edits.")
    for kind, sha256, data in found:
        if (problem := blob_problem(kind, sha256, data)) is not None:
            raise StoreError(
                f"The {kind} of edit {edit.id!r} is damaged: {problem}. Undo that edit and export the active edits, "
                "or go back to a backup."
            )
        yield kind, sha256, data


def _intervals(connection: Connection) -> tuple[tuple[str, int, int | None], ...]:
    statement = select(EDITS.c.id, INTERVALS.c.revision_added, INTERVALS.c.revision_removed)
    statement = statement.join(EDITS, EDITS.c.number == INTERVALS.c.edit_number)
    return tuple((row[0], row[1], row[2]) for row in connection.execute(statement.order_by(INTERVALS.c.revision_added)))


# -- reading ---------------------------------------------------------------------------------------------------


class Bundle:
    """A bundle that is open for reading."""

    def __init__(self, path: Path, reader: Any, sha256: str | None):
        self.path = path
        # Slices, because of these only the bytes of one blob are read at a time.
        self._tensors = {name: reader.get_slice(name) for name in reader.keys()}  # noqa: SIM118 - no mapping
        text = reader.get_tensor("records").tobytes() if "records" in self._tensors else b""
        if hashlib.sha256(text).hexdigest() != sha256:
            raise self._damaged("its records do not have the digest given in its header")
        try:
            self.contents = BundleContents.model_validate_json(text)
        except ValidationError as error:
            raise self._damaged(issues_of(error)) from error
        self._starts: dict[tuple[str, str], int] = {}
        end = 0
        for edit_id, blobs in self.contents.blobs.items():
            for kind, (length, _) in blobs.items():
                self._starts[edit_id, kind] = end
                end += length

    def check(self) -> None:
        """Read every blob once. Raises `StoreError` if one is not what was exported."""
        for edit in self.contents.edits:
            if edit.purged_at is None:
                self.blobs(edit)

    def blobs(self, edit: StoredEdit) -> dict[BlobKind, bytes]:
        """The expert of an edit, and its thumbnail and image if it has them. Raises `StoreError` for damage."""
        entries = self.contents.blobs.get(edit.id, {})
        found: dict[BlobKind, bytes] = {kind: self._read(edit, kind, *entry) for kind, entry in entries.items()}
        if "expert" not in found:
            raise self._damaged(f"the edit {edit.id!r} has no expert")
        if entries["expert"][1] != edit.expert_digest:
            raise self._damaged(f"the expert of edit {edit.id!r} does not have the digest that the edit names")
        if (problem := expert_problem(found["expert"])) is not None:
            raise self._damaged(f"the expert of edit {edit.id!r} cannot be used: {problem}")
        return found

    def _read(self, edit: StoredEdit, kind: BlobKind, length: int, sha256: str) -> bytes:
        start = self._starts[edit.id, kind]
        try:
            data = self._tensors["blobs"][start : start + length].tobytes()
        except (SafetensorError, LookupError, OverflowError, TypeError, ValueError) as error:
            raise self._damaged(f"the {kind} of edit {edit.id!r} cannot be read: {error}") from error
        if hashlib.sha256(data).hexdigest() != sha256:
            raise self._damaged(f"the {kind} of edit {edit.id!r} does not have its digest")
        return data

    def _damaged(self, why: str) -> StoreError:
        return StoreError(
            f"The bundle {str(self.path)!r} is damaged: {why}. Nothing was imported. Export it again, or go back to "
            "another copy."
        )


@contextmanager
def open_bundle(path: Path) -> Iterator[Bundle]:
    """Open a bundle for reading. Raises `StoreError` if it is none, of another format, or damaged."""
    if not path.is_file():
        raise StoreError(f"There is no bundle {str(path)!r}. Check the path.")
    try:
        reader = safe_open(path, framework="numpy")
    except (OSError, SafetensorError) as error:
        raise StoreError(
            f"{str(path)!r} is no bundle of edits: it is not safetensors ({error}). Give a file that `liveedit edits "
            "export` wrote as a bundle; the edits of rows are made by `liveedit edits add`."
        ) from error
    with reader:
        header = reader.metadata() or {}
        if (found := header.get("format")) != FORMAT:
            raise StoreError(
                f"The bundle {str(path)!r} cannot be read: its format is {found!r}; this version of LiveEdit reads "
                f"{FORMAT!r}. Nothing was imported. Make the edits again, or use the version of LiveEdit that wrote it."
            )
        yield Bundle(path, reader, header.get("contents_sha256"))
