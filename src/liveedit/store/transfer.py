"""Export and import: the edits of a store as a bundle, and those of a bundle into a store."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Final

from sqlalchemy import ColumnElement, Connection, insert, select

from ..errors import InvalidInputError, StoreError
from ..experts.expert import LowRankExpert, expert_from_bytes, expert_to_bytes
from . import queries
from . import writes as changes
from .bundle import Bundle, BundleContents, BundleWriter, Imported
from .checksums import Moved, damaged_edits, damaged_events, moved_by
from .records import BlobKind, NewEdit, StoredEdit, check_edit, check_image, check_thumbnail
from .schema import BLOBS, EDITS, SPANS
from .verify import blob_problem, history_problems
from .writes import Signature

_ID: Final = re.compile(r"[0-9a-f]{8,64}")


def write_out(connection: Connection, whole: bool, path: Path) -> BundleContents:
    """Write a bundle, one expert and one image in memory at a time. Raises `StoreError`, for damage as well."""
    wanted = () if whole else (queries.active(),)
    _check_records(connection, whole, *wanted)
    edits = queries.edits_where(connection, *wanted)
    digests: dict[str, dict[BlobKind, str]] = {}
    lengths: dict[str, dict[BlobKind, int]] = {}
    shapes: dict[str, int] = {}
    with BundleWriter(path) as writer:
        for edit in edits:
            if edit.purged_at is not None:
                continue
            for kind, sha256, data in _blobs(connection, edit):
                if kind == "expert":
                    if number := writer.add_expert(expert_from_bytes(data, LowRankExpert)):
                        shapes[edit.id] = number
                else:
                    writer.add_file(data)
                    digests.setdefault(edit.id, {})[kind] = sha256
                    lengths.setdefault(edit.id, {})[kind] = len(data)
        contents = BundleContents(
            binding=queries.binding_of(connection),
            revision=queries.latest_revision(connection),
            whole=whole,
            edits=tuple(edits),
            events=tuple(queries.events_where(connection)) if whole else (),
            spans=_spans(connection) if whole else (),
            files=digests,
            file_bytes=lengths,
            shapes=shapes,
        )
        writer.finish(contents)
    return contents


def _check_records(connection: Connection, whole: bool, *wanted: ColumnElement[bool]) -> None:
    for edit_id, problem in damaged_edits(connection, *wanted):
        # Purging is the other way to be rid of it, for good.
        raise StoreError(
            f"The record of edit {edit_id!r} is damaged: {problem}. Undo that edit and export those in force, or go "
            "back to a backup."
        )
    for revision, problem in damaged_events(connection) if whole else ():
        raise StoreError(
            f"The history at revision {revision}, or a span that begins or ends there, is damaged: {problem}. Export "
            "those in force, or go back to a backup."
        )


def _blobs(connection: Connection, edit: StoredEdit) -> Iterator[tuple[BlobKind, str, bytes]]:
    """(kind, SHA-256, bytes) of an edit's expert and files, each of which agrees with its digest."""
    statement = select(BLOBS.c.kind, BLOBS.c.sha256, BLOBS.c.data).where(BLOBS.c.edit_number == edit.number)
    found = connection.execute(statement).all()
    if all(kind != "expert" for kind, *_ in found):
        raise StoreError(f"The edit {edit.id!r} has no expert. Undo it and export those in force.")
    for kind, sha256, data in found:
        if (problem := blob_problem(kind, sha256, data)) is not None:
            raise StoreError(
                f"The {kind} of edit {edit.id!r} is damaged: {problem}. Undo that edit and export those in force, "
                "or go back to a backup."
            )
        yield kind, sha256, data


def take_in(connection: Connection, bundle: Bundle) -> Imported:
    """Write the edits of a bundle; the store's binding is checked before.

    An empty store takes a whole bundle as it is, revisions and all; elsewhere each edit that is not there yet is a
    change of its own. Raises `StoreError` for ids that are there with other content, `InvalidInputError` for what
    cannot be stored.
    """
    if bundle.contents.whole and queries.latest_revision(connection) == 0:
        return _take_in_whole(connection, bundle)
    there = {edit.id: edit for edit in queries.edits_where(connection)}
    added, same, purged = [], [], []
    for edit in bundle.contents.edits:
        known = there.get(edit.id)
        if edit.purged_at is not None:
            continue
        if known is None:
            _take_in_edit(connection, bundle, edit)
            added.append(edit.id)
        elif known.purged_at is not None:
            purged.append(edit.id)
        elif _content(known) == _content(edit):
            same.append(edit.id)
        else:
            for _, problem in damaged_edits(connection, EDITS.c.number == known.number):
                raise StoreError(
                    f"The edit {edit.id!r} of the bundle is in the store already, and its record there is damaged: "
                    f"{problem}. Nothing was imported. Import into a store of its own."
                )
            raise StoreError(
                f"The edit {edit.id!r} of the bundle is in the store already with other content "
                f"({known.prompt!r} -> {known.answer!r}; the bundle has {edit.prompt!r} -> {edit.answer!r}). Nothing "
                "was imported. Import into a store of its own."
            )
    return Imported(tuple(added), tuple(same), tuple(purged))


def _take_in_edit(connection: Connection, bundle: Bundle, edit: StoredEdit) -> None:
    number = queries.next_number(connection)
    revision = queries.latest_revision(connection) + 1
    _write_edit(
        connection,
        bundle,
        replace(edit, number=number, revision_added=revision, revision_removed=None, undone_at=None),
    )
    changes.make_change(connection, "edit", edit.id, Signature(edit.author, edit.note), Moved([number]))
    if not edit.is_active:
        changes.make_change(connection, "undo", edit.id, Signature(), Moved(left=[number]))


def _take_in_whole(connection: Connection, bundle: Bundle) -> Imported:
    contents = bundle.contents
    numbers = {edit.id: edit.number for edit in contents.edits}
    if len(numbers) != len(contents.edits) or not {event.edit_id for event in contents.events} <= numbers.keys():
        raise StoreError(
            "The bundle names edits twice, or events of edits that it does not have. Nothing was imported."
        )
    for edit in contents.edits:
        _write_edit(connection, bundle, edit)
    spans = [
        {"edit_number": numbers[edit_id], "revision_added": added, "revision_removed": removed}
        for edit_id, added, removed in contents.spans
        if edit_id in numbers
    ]
    if spans:
        connection.execute(insert(SPANS), spans)
    moved = moved_by(connection)
    for event in contents.events:
        changes.write_event(connection, event, moved.get(event.revision, Moved()))
    if problems := history_problems(connection):
        raise StoreError(f"The bundle does not agree with itself: {problems[0]} Nothing was imported.")
    return Imported(tuple(edit.id for edit in contents.edits if edit.purged_at is None), (), ())


def _write_edit(connection: Connection, bundle: Bundle, edit: StoredEdit) -> None:
    if not _ID.fullmatch(edit.id):
        raise InvalidInputError(f"The bundle has an edit of the id {edit.id!r}. Ids are 8 or more digits 0-9 and a-f.")
    changes.insert_edit(connection, edit)
    if edit.purged_at is not None:
        return
    check_edit(edit)
    files = bundle.files(edit)
    if "thumbnail" in files:
        check_thumbnail(files["thumbnail"])
    if "image" in files:
        check_image(files["image"], edit.image_sha256)
    changes.insert_blobs(connection, edit.number, {"expert": expert_to_bytes(bundle.expert(edit)), **files})


_TRIED_OUT: Final = frozenset({"answer_before", "answer_after", "evidence"})
"""What a purge of another edit may have taken out, because it quoted that one's answers."""


def _content(edit: StoredEdit) -> tuple[object, ...]:
    said = (getattr(edit, field.name) for field in fields(NewEdit) if field.name not in _TRIED_OUT)
    return (*said, edit.created_at, edit.expert_digest, edit.backbone_digest, edit.editor_digest)


def _spans(connection: Connection) -> tuple[tuple[str, int, int | None], ...]:
    statement = select(EDITS.c.id, SPANS.c.revision_added, SPANS.c.revision_removed)
    statement = statement.join(EDITS, EDITS.c.number == SPANS.c.edit_number)
    return tuple((row[0], row[1], row[2]) for row in connection.execute(statement.order_by(SPANS.c.revision_added)))
