"""What is read from the edits file: edits by their ids, those in force at a revision, their experts."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import fields
from typing import Any, Final

from sqlalchemy import ColumnElement, Connection, Row, and_, bindparam, exists, func, or_, select

from ..errors import InvalidInputError, NotFoundError
from .evidence import evidence_or_none
from .records import Binding, BlobKind, Changes, Event, StoredEdit, question_digest
from .schema import BLOBS, EDITS, EVENTS, META, SPANS

EDIT_COLUMNS: Final = tuple(EDITS.c[field.name] for field in fields(StoredEdit))
_EVENT_COLUMNS: Final = tuple(EVENTS.c[field.name] for field in fields(Event))
# Made once, because an edit that is stored waits for each of them to be made.
_LATEST_REVISION: Final = select(func.coalesce(func.max(EVENTS.c.revision), 0))
_NEXT_NUMBER: Final = select(func.coalesce(func.max(EDITS.c.number), 0) + 1)
_NUMBER_OF: Final = select(EDITS.c.number).where(EDITS.c.id == bindparam("id"))

_AT_A_TIME: Final = 500
"""Databases limit how many values one statement may have."""

_ID: Final = re.compile(r"[0-9a-f]+")


def binding_of(connection: Connection) -> Binding | None:
    """The backbone and editor that the file belongs to; None before the first edit."""
    meta = {row.key: row.value for row in connection.execute(select(META.c.key, META.c.value))}
    names = [field.name for field in fields(Binding)]
    return Binding(**{name: meta[name] for name in names}) if meta.keys() >= set(names) else None


def binding_sha256(connection: Connection) -> str | None:
    """The digest that was stored with the binding."""
    return connection.execute(select(META.c.value).where(META.c.key == "binding_sha256")).scalar_one_or_none()


def latest_revision(connection: Connection) -> int:
    """The number of the last change; 0 before the first."""
    return connection.execute(_LATEST_REVISION).scalar_one()


def next_number(connection: Connection) -> int:
    """The place of the next edit in the order of making."""
    return connection.execute(_NEXT_NUMBER).scalar_one()


def may_be_id(given: str) -> bool:
    """Whether an edit could have this id. PostgreSQL does not take every text, not even to look for it."""
    return _ID.fullmatch(given) is not None


def is_taken(connection: Connection, edit_id: str) -> bool:
    """Whether an edit has this id."""
    return connection.execute(_NUMBER_OF, {"id": edit_id}).first() is not None


def check_revision(connection: Connection, revision: int) -> None:
    """Raise `InvalidInputError` for a revision that there is not."""
    latest = latest_revision(connection)
    if not 0 <= revision <= latest:
        raise InvalidInputError(f"There is no revision {revision}. The history has revisions 0 to {latest}.")


def active(at: int | None = None) -> ColumnElement[bool]:
    """The condition on an edit to be in force, now or after a revision. Purged edits count as never made."""
    if at is None:
        return EDITS.c.revision_removed.is_(None)
    span = and_(
        SPANS.c.edit_number == EDITS.c.number,
        SPANS.c.revision_added <= at,
        or_(SPANS.c.revision_removed.is_(None), SPANS.c.revision_removed > at),
    )
    return and_(EDITS.c.purged_at.is_(None), exists(select(SPANS.c.edit_number).where(span)))


def edits_where(connection: Connection, *conditions: ColumnElement[bool]) -> list[StoredEdit]:
    """Edits in the order they were made."""
    rows = connection.execute(select(*EDIT_COLUMNS).where(*conditions).order_by(EDITS.c.number))
    return [edit_of_row(row) for row in rows]


def edit_of_row(row: Row[Any]) -> StoredEdit:
    """The edit of a row of `EDIT_COLUMNS`."""
    return StoredEdit(**{**row._mapping, "evidence": evidence_or_none(row.evidence)})


def edit_of(connection: Connection, edit_id: str) -> StoredEdit:
    """The edit of this id or beginning of one. Raises as `resolve` does."""
    (found,) = edits_where(connection, EDITS.c.id == resolve(connection, edit_id))
    return found


def same_question(connection: Connection, image_sha256: str | None, prompt: str) -> list[StoredEdit]:
    """The edits in force of this question, found by an index."""
    digest = question_digest(image_sha256, prompt)
    return edits_where(connection, active(), EDITS.c.question_sha256 == digest)


def events_where(connection: Connection, *conditions: ColumnElement[bool]) -> list[Event]:
    """Lines of the history, oldest first."""
    rows = connection.execute(select(*_EVENT_COLUMNS).where(*conditions).order_by(EVENTS.c.revision))
    return [Event(**row._mapping) for row in rows]


def happened_to(edit_id: str) -> ColumnElement[bool]:
    """The condition on a line of the history to be of this edit, or of one that took it out or let it come back."""
    spans = SPANS.join(EDITS, EDITS.c.number == SPANS.c.edit_number)
    added, removed = (
        select(column).select_from(spans).where(EDITS.c.id == edit_id, column.is_not(None))
        for column in (SPANS.c.revision_added, SPANS.c.revision_removed)
    )
    return or_(EVENTS.c.edit_id == edit_id, EVENTS.c.revision.in_(added), EVENTS.c.revision.in_(removed))


def successor_of(connection: Connection, edit: StoredEdit) -> StoredEdit | None:
    """The edit in force that superseded this one, or superseded the one that did; None where there is none."""
    while not edit.is_active:
        (event,) = events_where(connection, EVENTS.c.revision == edit.revision_removed)
        if event.edit_id == edit.id:
            return None
        edit = edit_of(connection, event.edit_id)
    return edit


def changes_since(connection: Connection, revision: int) -> Changes:
    """The edits that changed after this revision, by how they stand now."""
    check_revision(connection, revision)
    changed = or_(SPANS.c.revision_added > revision, SPANS.c.revision_removed > revision)
    rows = connection.execute(
        select(EDITS.c.id, EDITS.c.revision_removed)
        .where(EDITS.c.number.in_(select(SPANS.c.edit_number).where(changed)))
        .order_by(EDITS.c.number)
    ).all()
    return Changes(
        latest_revision(connection),
        tuple(edit_id for edit_id, removed in rows if removed is None),
        tuple(edit_id for edit_id, removed in rows if removed is not None),
    )


def blob_of(connection: Connection, edit_id: str, kind: BlobKind) -> tuple[str, bytes] | None:
    """(SHA-256, bytes) of an edit's expert, thumbnail or image, if it has one."""
    statement = select(BLOBS.c.sha256, BLOBS.c.data).join(EDITS, EDITS.c.number == BLOBS.c.edit_number)
    row = connection.execute(statement.where(EDITS.c.id == edit_id, BLOBS.c.kind == kind)).first()
    return None if row is None else (row.sha256, row.data)


def expert_blobs(connection: Connection, numbers: Sequence[int]) -> dict[int, tuple[str, bytes]]:
    """(SHA-256, bytes) of the experts of these edits, by number; those that have none are left out."""
    statement = select(BLOBS.c.edit_number, BLOBS.c.sha256, BLOBS.c.data)
    rows = connection.execute(statement.where(BLOBS.c.kind == "expert", BLOBS.c.edit_number.in_(numbers)))
    return {row.edit_number: (row.sha256, row.data) for row in rows}


def numbers_of(connection: Connection, edit_ids: Sequence[str]) -> dict[str, int]:
    """The numbers of these edits by their whole ids; unknown ids are left out."""
    found: dict[str, int] = {}
    edit_ids = [edit_id for edit_id in edit_ids if may_be_id(edit_id)]
    for start in range(0, len(edit_ids), _AT_A_TIME):
        some = edit_ids[start : start + _AT_A_TIME]
        rows = connection.execute(select(EDITS.c.id, EDITS.c.number).where(EDITS.c.id.in_(some)))
        found |= {row.id: row.number for row in rows}
    return found


def resolve(connection: Connection, given: str) -> str:
    """The id that this id, or beginning of one, stands for.

    Raises `NotFoundError` for an unknown id, `InvalidInputError` for a beginning that several share.
    """
    prefix = given.strip().lower()
    if not prefix:
        raise InvalidInputError("The id of an edit is empty. Give the id, or its first characters.")
    if not prefix.isascii():
        raise NotFoundError(f"There is no edit {given!r}: ids are made of the digits 0-9 and a-f.")
    if may_be_id(prefix):
        # The whole id first: it is found by an index.
        for condition in (EDITS.c.id == prefix, EDITS.c.id.like(f"{prefix}%")):
            matches = connection.execute(select(EDITS.c.id).where(condition).order_by(EDITS.c.number)).scalars().all()
            if len(matches) == 1:
                return matches[0]
            if matches:
                shown = ", ".join(matches[:5]) + (", ..." if len(matches) > 5 else "")
                raise InvalidInputError(f"{len(matches)} edits begin with {given!r}: {shown}. Give more characters.")
    raise NotFoundError(f"There is no edit {given!r}. {_suggestion(connection, prefix)}")


def _suggestion(connection: Connection, wanted: str) -> str:
    ids = connection.execute(select(EDITS.c.id)).scalars().all()
    if not ids:
        return "The file holds no edits yet."
    close = difflib.get_close_matches(wanted, ids, n=3)
    if close:
        return f"Did you mean {' or '.join(close)}?"
    return f"The file holds {len(ids)} edits; list them to see their ids."
