"""Bundles: the edits of a store as one file, to keep or to send, and their import into a store.

A bundle is a safetensors file, so that reading it runs no code. It has two tensors of bytes (uint8): `blobs`, the
experts, thumbnails and images one after the other, and `records`, everything else as JSON (`BundleContents`). The
header names the format and the SHA-256 of the records; the records have the length and the SHA-256 of every blob.
Experts and images pass through memory one edit at a time, both ways.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, BinaryIO, Final

from pydantic import BaseModel, ConfigDict, NonNegativeInt, ValidationError
from safetensors import SafetensorError, safe_open
from sqlalchemy import ColumnElement, Connection, insert, select

from ..errors import InvalidInputError, StoreError, issues_of
from ..files import written_atomically
from . import queries, writes
from .checksums import NO_STATE_CHANGE, StateChange, damaged_edits, damaged_events, state_changes
from .records import Binding, BlobKind, Event, NewEdit, StoredEdit
from .schema import BLOBS, EDITS, INTERVALS
from .thumbnails import check_image, check_thumbnail
from .validation import check_edit, expert_problem
from .verify import blob_problem, damaged_history, history_problems

FORMAT: Final = "liveedit-edits-3"
"""Named in the header. Formats 1 and 2 were used before the first release; they cannot be read."""

_HEADER_BYTES: Final = 504
"""Length of the JSON header, padded with spaces. It is written last, once the lengths of the tensors are known."""

_ID: Final = re.compile(r"[0-9a-f]{8,64}")


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


@dataclass(frozen=True, slots=True)
class Imported:
    """The result of an import, as ids."""

    added: tuple[str, ...]
    already_there: tuple[str, ...]
    """The same edits were in the store; they stay as they are, active or not."""
    purged_here: tuple[str, ...]
    """Purged from the store before, and not restored."""


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
        self._path = path
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
            f"The bundle {str(self._path)!r} is damaged: {why}. Nothing was imported. Export it again, or go back to "
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
        raise StoreError(f"{str(path)!r} is no bundle of edits: it is not safetensors ({error}).") from error
    with reader:
        header = reader.metadata() or {}
        if (found := header.get("format")) != FORMAT:
            raise StoreError(
                f"The bundle {str(path)!r} cannot be read: its format is {found!r}; this version of LiveEdit reads "
                f"{FORMAT!r}. Nothing was imported. Make the edits again, or use the version of LiveEdit that wrote it."
            )
        yield Bundle(path, reader, header.get("contents_sha256"))


# -- import ----------------------------------------------------------------------------------------------------


def import_bundle(connection: Connection, bundle: Bundle) -> Imported:
    """Write the edits of a bundle into a store; the caller has checked the binding.

    An empty store takes a whole bundle as it is, with its revisions. In another store each edit that is missing is a
    new change. Raises `StoreError` for an id that the store has with other content, `InvalidInputError` for fields that
    cannot be stored.
    """
    if bundle.contents.whole and queries.latest_revision(connection) == 0:
        return _import_whole(connection, bundle)
    known = {edit.id: edit for edit in queries.edits_where(connection)}
    added, same, purged = [], [], []
    for edit in bundle.contents.edits:
        there = known.get(edit.id)
        if edit.purged_at is not None:
            continue
        if there is None:
            _import_edit(connection, bundle, edit)
            added.append(edit.id)
        elif there.purged_at is not None:
            purged.append(edit.id)
        else:
            _check_same(connection, edit, there)
            same.append(edit.id)
    return Imported(tuple(added), tuple(same), tuple(purged))


def _check_same(connection: Connection, edit: StoredEdit, there: StoredEdit) -> None:
    if _content(there) == _content(edit):
        return
    for _, problem in damaged_edits(connection, EDITS.c.number == there.number):
        raise StoreError(
            f"The edit {edit.id!r} of the bundle is in the store already, and its record there is damaged: "
            f"{problem}. Nothing was imported. Import into a store of its own."
        )
    raise StoreError(
        f"The edit {edit.id!r} of the bundle is in the store already with other content "
        f"({there.prompt!r} -> {there.answer!r}; the bundle has {edit.prompt!r} -> {edit.answer!r}). Nothing "
        "was imported. Import into a store of its own."
    )


def _import_edit(connection: Connection, bundle: Bundle, edit: StoredEdit) -> None:
    number = queries.next_number(connection)
    revision = queries.latest_revision(connection) + 1
    new = replace(edit, number=number, revision_added=revision, revision_removed=None, undone_at=None)
    _write_edit(connection, bundle, new)
    signature = writes.Signature(edit.author, edit.note)
    writes.make_change(connection, "edit", edit.id, signature, StateChange([number]))
    if not edit.is_active:
        writes.make_change(connection, "undo", edit.id, writes.Signature(), StateChange(deactivated=[number]))


def _import_whole(connection: Connection, bundle: Bundle) -> Imported:
    contents = bundle.contents
    numbers = {edit.id: edit.number for edit in contents.edits}
    if len(numbers) != len(contents.edits) or not {event.edit_id for event in contents.events} <= numbers.keys():
        raise StoreError(
            "The bundle names edits twice, or events of edits that it does not have. Nothing was imported."
        )
    for edit in contents.edits:
        _write_edit(connection, bundle, edit)
    intervals = [
        {"edit_number": numbers[edit_id], "revision_added": added, "revision_removed": removed}
        for edit_id, added, removed in contents.intervals
        if edit_id in numbers
    ]
    if intervals:
        connection.execute(insert(INTERVALS), intervals)
    changes = state_changes(connection)
    for event in contents.events:
        writes.write_event(connection, event, changes.get(event.revision, NO_STATE_CHANGE))
    if problems := history_problems(connection):
        raise StoreError(f"The bundle does not agree with itself: {problems[0]} Nothing was imported.")
    return Imported(tuple(edit.id for edit in contents.edits if edit.purged_at is None), (), ())


def _write_edit(connection: Connection, bundle: Bundle, edit: StoredEdit) -> None:
    if not _ID.fullmatch(edit.id):
        raise InvalidInputError(f"The bundle has an edit of the id {edit.id!r}. Ids are 8 or more digits 0-9 and a-f.")
    writes.insert_edit(connection, edit)
    if edit.purged_at is not None:
        return
    check_edit(edit)
    blobs = bundle.blobs(edit)
    if "thumbnail" in blobs:
        check_thumbnail(blobs["thumbnail"])
    if "image" in blobs:
        check_image(blobs["image"], edit.image_sha256)
    writes.insert_blobs(connection, edit.number, blobs)


_FROM_TRIAL: Final = frozenset({"answer_before", "answer_after", "evidence"})
"""Fields that may differ between copies of an edit: the purge of another edit clears quotes of its answers in them."""


def _content(edit: StoredEdit) -> tuple[object, ...]:
    values = (getattr(edit, field.name) for field in fields(NewEdit) if field.name not in _FROM_TRIAL)
    return (*values, edit.created_at, edit.expert_digest, edit.backbone_digest, edit.editor_digest)
