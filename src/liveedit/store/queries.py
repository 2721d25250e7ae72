"""Reads of the database: edits by id, edits that are active at a revision, pages of edits, experts, history."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import fields
from typing import Any, Final

from sqlalchemy import ColumnElement, Connection, Row, and_, bindparam, exists, func, or_, select, true

from ..errors import InvalidInputError, NotFoundError
from .checksums import question_digest
from .evidence import evidence_or_none
from .records import Binding, BlobKind, Changes, EditPage, Event, State, StoredEdit
from .schema import BLOBS, EDITS, EVENTS, INTERVALS, META

LARGEST_PAGE: Final = 500
"""Number of edits that one page may hold."""

_EDIT_COLUMNS: Final = tuple(EDITS.c[field.name] for field in fields(StoredEdit))
_EVENT_COLUMNS: Final = tuple(EVENTS.c[field.name] for field in fields(Event))
# Built once: every edit that is stored needs them, and building a statement takes time.
_LATEST_REVISION: Final = select(func.coalesce(func.max(EVENTS.c.revision), 0))
_NEXT_NUMBER: Final = select(func.coalesce(func.max(EDITS.c.number), 0) + 1)
_NUMBER_OF: Final = select(EDITS.c.number).where(EDITS.c.id == bindparam("id"))

_VALUES_PER_STATEMENT: Final = 500
"""Databases limit the number of values in one statement."""

_ID: Final = re.compile(r"[0-9a-f]+")


def binding_of(connection: Connection) -> Binding | None:
    """The backbone and editor that the store belongs to; None before the first edit."""
    meta = {row.key: row.value for row in connection.execute(select(META.c.key, META.c.value))}
    names = [field.name for field in fields(Binding)]
    return Binding(**{name: meta[name] for name in names}) if meta.keys() >= set(names) else None


def binding_sha256(connection: Connection) -> str | None:
    """The digest that was stored with the binding."""
    return connection.execute(select(META.c.value).where(META.c.key == "binding_sha256")).scalar_one_or_none()


def latest_revision(connection: Connection) -> int:
    """The revision of the last change; 0 before the first."""
    return connection.execute(_LATEST_REVISION).scalar_one()


def next_number(connection: Connection) -> int:
    """The number of the next edit; edits are numbered in the order they are made."""
    return connection.execute(_NEXT_NUMBER).scalar_one()


def may_be_id(given: str) -> bool:
    """Whether an edit could have this id. PostgreSQL rejects some texts even as values to search for."""
    return _ID.fullmatch(given) is not None


def is_taken(connection: Connection, edit_id: str) -> bool:
    """Whether an edit has this id."""
    return connection.execute(_NUMBER_OF, {"id": edit_id}).first() is not None


def check_revision(connection: Connection, revision: int) -> None:
    """Raise `InvalidInputError` for a revision that does not exist."""
    latest = latest_revision(connection)
    if not 0 <= revision <= latest:
        raise InvalidInputError(f"There is no revision {revision}. The history has revisions 0 to {latest}.")


def active(at: int | None = None) -> ColumnElement[bool]:
    """The condition that an edit is active, now or after a revision. Purged edits are active at no revision."""
    if at is None:
        return EDITS.c.revision_removed.is_(None)
    interval = and_(
        INTERVALS.c.edit_number == EDITS.c.number,
        INTERVALS.c.revision_added <= at,
        or_(INTERVALS.c.revision_removed.is_(None), INTERVALS.c.revision_removed > at),
    )
    return and_(EDITS.c.purged_at.is_(None), exists(select(INTERVALS.c.edit_number).where(interval)))


def edits_where(connection: Connection, *conditions: ColumnElement[bool]) -> list[StoredEdit]:
    """The edits that meet the conditions, in the order they were made."""
    rows = connection.execute(select(*_EDIT_COLUMNS).where(*conditions).order_by(EDITS.c.number))
    return [_edit_of_row(row) for row in rows]


def edit_of(connection: Connection, edit_id: str) -> StoredEdit:
    """The edit with this id or prefix of an id. Raises as `resolve` does."""
    (found,) = edits_where(connection, EDITS.c.id == resolve(connection, edit_id))
    return found


def same_question(connection: Connection, image_sha256: str | None, prompt: str) -> list[StoredEdit]:
    """The active edits of this question, found by an index."""
    digest = question_digest(image_sha256, prompt)
    return edits_where(connection, active(), EDITS.c.question_sha256 == digest)


def events_where(connection: Connection, *conditions: ColumnElement[bool]) -> list[Event]:
    """The lines of the history that meet the conditions, oldest first."""
    rows = connection.execute(select(*_EVENT_COLUMNS).where(*conditions).order_by(EVENTS.c.revision))
    return [Event(**row._mapping) for row in rows]


def events_affecting(edit_id: str) -> ColumnElement[bool]:
    """The condition that a line of the history is about this edit, or about one that superseded or restored it."""
    intervals = INTERVALS.join(EDITS, EDITS.c.number == INTERVALS.c.edit_number)
    added, removed = (
        select(column).select_from(intervals).where(EDITS.c.id == edit_id, column.is_not(None))
        for column in (INTERVALS.c.revision_added, INTERVALS.c.revision_removed)
    )
    return or_(EVENTS.c.edit_id == edit_id, EVENTS.c.revision.in_(added), EVENTS.c.revision.in_(removed))


def successor_of(connection: Connection, edit: StoredEdit) -> StoredEdit | None:
    """The active edit that superseded this one, directly or through others; None if there is none."""
    while not edit.is_active:
        (event,) = events_where(connection, EVENTS.c.revision == edit.revision_removed)
        if event.edit_id == edit.id:
            return None
        edit = edit_of(connection, event.edit_id)
    return edit


def changes_since(connection: Connection, revision: int, until: int | None = None) -> Changes:
    """The edits that changed after this revision, by their state now, or after the revision `until`."""
    check_revision(connection, revision)
    until = latest_revision(connection) if until is None else until
    check_revision(connection, until)
    changed = or_(INTERVALS.c.revision_added > revision, INTERVALS.c.revision_removed > revision)
    rows = connection.execute(
        select(EDITS.c.id, active(until).label("is_active"))
        .where(EDITS.c.number.in_(select(INTERVALS.c.edit_number).where(changed)))
        .order_by(EDITS.c.number)
    ).all()
    return Changes(
        until,
        tuple(edit_id for edit_id, is_active in rows if is_active),
        tuple(edit_id for edit_id, is_active in rows if not is_active),
    )


def blob_of(connection: Connection, edit_id: str, kind: BlobKind) -> tuple[str, bytes] | None:
    """(SHA-256, bytes) of the expert, thumbnail or image of an edit, or None."""
    statement = select(BLOBS.c.sha256, BLOBS.c.data).join(EDITS, EDITS.c.number == BLOBS.c.edit_number)
    row = connection.execute(statement.where(EDITS.c.id == edit_id, BLOBS.c.kind == kind)).first()
    return None if row is None else (row.sha256, row.data)


def expert_blobs(connection: Connection, numbers: Sequence[int]) -> dict[int, tuple[str, bytes]]:
    """(SHA-256, bytes) of the experts of these edits, by number; edits without an expert are left out."""
    statement = select(BLOBS.c.edit_number, BLOBS.c.sha256, BLOBS.c.data)
    rows = connection.execute(statement.where(BLOBS.c.kind == "expert", BLOBS.c.edit_number.in_(numbers)))
    return {row.edit_number: (row.sha256, row.data) for row in rows}


def numbers_of(connection: Connection, edit_ids: Sequence[str]) -> dict[str, int]:
    """The numbers of these edits, by their full ids; unknown ids are left out."""
    found: dict[str, int] = {}
    edit_ids = [edit_id for edit_id in edit_ids if may_be_id(edit_id)]
    for start in range(0, len(edit_ids), _VALUES_PER_STATEMENT):
        some = edit_ids[start : start + _VALUES_PER_STATEMENT]
        rows = connection.execute(select(EDITS.c.id, EDITS.c.number).where(EDITS.c.id.in_(some)))
        found |= {row.id: row.number for row in rows}
    return found


def resolve(connection: Connection, given: str) -> str:
    """The id that this id, or prefix of an id, stands for.

    Raises `NotFoundError` for an unknown id, `InvalidInputError` for a prefix that several edits share.
    """
    prefix = given.strip().lower()
    if not prefix:
        raise InvalidInputError("The id of an edit is empty. Give the id, or its first characters.")
    if not prefix.isascii():
        raise NotFoundError(f"There is no edit {given!r}: ids are made of the digits 0-9 and a-f.")
    if may_be_id(prefix):
        # The full id first: it is found by an index.
        for condition in (EDITS.c.id == prefix, EDITS.c.id.like(f"{prefix}%")):
            matches = connection.execute(select(EDITS.c.id).where(condition).order_by(EDITS.c.number)).scalars().all()
            if len(matches) == 1:
                return matches[0]
            if matches:
                shown = ", ".join(matches[:5]) + (", ..." if len(matches) > 5 else "")
                raise InvalidInputError(f"{len(matches)} edits begin with {given!r}: {shown}. Give more characters.")
    raise NotFoundError(f"There is no edit {given!r}. {_suggestion(connection, prefix)}")


_SEARCHED: Final = (EDITS.c.prompt, EDITS.c.answer, EDITS.c.author, EDITS.c.note)


def page_of(
    connection: Connection,
    state: State = "active",
    *,
    newest_first: bool = False,
    after: str | None,
    limit: int,
    search: str | None = None,
) -> EditPage:
    """At most `limit` edits after the one with the full id `after`, which may be in any state.

    Only the rows that are shown are read, whatever the size of the store: each state has its index. With `search`, rows
    are read until as many are found that have this text in their prompt, answer, author or note. Raises
    `NotFoundError` for an unknown id, `InvalidInputError` for a limit outside 1 to `LARGEST_PAGE`.
    """
    if not 1 <= limit <= LARGEST_PAGE:
        raise InvalidInputError(f"A page of {limit} edits was asked for; 1 to {LARGEST_PAGE} are shown at once.")
    number = EDITS.c.number
    statement = select(*_EDIT_COLUMNS).where(_IN_STATE[state])
    if search:
        statement = statement.where(or_(*(column.icontains(search, autoescape=True) for column in _SEARCHED)))
    if after is not None:
        found_numbers = numbers_of(connection, [after])
        if after not in found_numbers:
            raise _unknown(after)
        place = found_numbers[after]
        statement = statement.where(number < place if newest_first else number > place)
    statement = statement.order_by(number.desc() if newest_first else number).limit(limit + 1)
    found = [_edit_of_row(row) for row in connection.execute(statement)]
    shown = tuple(found[:limit])
    return EditPage(shown, thumbnails_among(connection, shown), len(found) > limit)


def edit_named(connection: Connection, edit_id: str) -> StoredEdit:
    """The edit with exactly this id; reads no other row. Raises `NotFoundError`."""
    if may_be_id(edit_id):
        for found in edits_where(connection, EDITS.c.id == edit_id):
            return found
    raise _unknown(edit_id)


def thumbnails_among(connection: Connection, edits: Sequence[StoredEdit]) -> frozenset[str]:
    """Ids of those of these edits that have a thumbnail."""
    ids = {edit.number: edit.id for edit in edits}
    statement = select(BLOBS.c.edit_number).where(BLOBS.c.edit_number.in_(list(ids)), BLOBS.c.kind == "thumbnail")
    return frozenset(ids[number] for number in connection.execute(statement).scalars())


def _edit_of_row(row: Row[Any]) -> StoredEdit:
    return StoredEdit(**{**row._mapping, "evidence": evidence_or_none(row.evidence)})


def _suggestion(connection: Connection, wanted: str) -> str:
    ids = connection.execute(select(EDITS.c.id)).scalars().all()
    if not ids:
        return "The file holds no edits yet."
    close = difflib.get_close_matches(wanted, ids, n=3)
    if close:
        return f"Did you mean {' or '.join(close)}?"
    stored = "1 edit is stored" if len(ids) == 1 else f"{len(ids)} edits are stored"
    return f"{stored}, undone ones included; `liveedit edits list --all` lists the ids."


def _unknown(edit_id: str) -> NotFoundError:
    return NotFoundError(f"There is no edit {edit_id!r}. List the edits to see their ids.")


_IN_STATE: Final[dict[State, ColumnElement[bool]]] = {
    "active": active(),
    "undone": EDITS.c.revision_removed.is_not(None) & EDITS.c.purged_at.is_(None),
    "all": true(),
}
