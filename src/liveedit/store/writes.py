"""What is written to the edits file: each change an event of its own revision, and the spans that follow from it."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from typing import Any, Final

from sqlalchemy import ColumnElement, Connection, delete, insert, select, update

from .checksums import Moved, binding_digest, edit_digest, event_digest, moved_by
from .evidence import evidence_or_none, evidence_to_json
from .queries import latest_revision, next_number
from .records import Binding, BlobKind, Event, EventKind, NewEdit, StoredEdit, question_digest
from .schema import BLOBS, EDITS, EVENTS, META, REQUESTS, SPANS

_FORGOTTEN: Final = (
    *("author", "note", "answer_before", "answer_after", "subject", "relation", "image_sha256", "image_name"),
    *("expert_digest", "evidence", "question_sha256"),
)
"""What a purged edit has no more, besides its texts."""

_NOTHING_MOVED: Final = Moved()

# Made once, because an edit that is stored waits for each of them to be made.
_INSERT: Final = {table.name: insert(table) for table in (EDITS, EVENTS, SPANS, BLOBS)}
_EDIT_FIELDS: Final = tuple(field.name for field in fields(StoredEdit))


@dataclass(frozen=True, slots=True)
class Signature:
    """Who made a change, and why, as far as they said."""

    author: str | None = None
    note: str | None = None


def write_binding(connection: Connection, binding: Binding) -> None:
    """Tie a file that belongs to no model yet to this one."""
    said = {**asdict(binding), "binding_sha256": binding_digest(binding)}
    rows = [{"key": key, "value": value} for key, value in said.items()]
    connection.execute(insert(META), rows)


def make_change(
    connection: Connection, kind: EventKind, edit_id: str, signature: Signature, moved: Moved = _NOTHING_MOVED
) -> Event:
    """The next line of the history, and the edits that come into force and leave by it."""
    event = Event(latest_revision(connection) + 1, now(), kind, edit_id, signature.author, signature.note)
    write_event(connection, event, moved)
    _take_out(connection, moved.left, event)
    _bring_in(connection, moved.came, event)
    return event


def write_event(connection: Connection, event: Event, moved: Moved) -> None:
    """A line of the history, as it stands."""
    row: dict[str, Any] = {field.name: getattr(event, field.name) for field in fields(Event)}
    row["record_sha256"] = event_digest(row, moved)
    connection.execute(_INSERT["events"], row)


def insert_new(
    connection: Connection, edit: NewEdit, edit_id: str, expert_digest: str, by: Binding, rivals: Sequence[int]
) -> StoredEdit:
    """Put a new edit into force in place of its rivals, by number."""
    said: dict[str, Any] = {field.name: getattr(edit, field.name) for field in fields(NewEdit)}
    # Numbers of numpy would be stored as bytes.
    said |= {"milliseconds": float(edit.milliseconds), "refine_steps": int(edit.refine_steps)}
    stored = StoredEdit(
        **said,
        id=edit_id,
        number=next_number(connection),
        created_at=now(),
        expert_digest=expert_digest,
        backbone_digest=by.backbone_digest,
        editor_digest=by.editor_digest,
        revision_added=latest_revision(connection) + 1,
    )
    insert_edit(connection, stored)
    kind: EventKind = "supersede" if rivals else "edit"
    event = Event(stored.revision_added, stored.created_at, kind, edit_id, edit.author, edit.note)
    write_event(connection, event, Moved([stored.number], rivals))
    connection.execute(_INSERT["spans"], {"edit_number": stored.number, "revision_added": event.revision})
    _take_out(connection, rivals, event)
    return stored


def insert_edit(connection: Connection, edit: StoredEdit) -> None:
    """The row of an edit, purged ones included."""
    row: dict[str, Any] = {name: getattr(edit, name) for name in _EDIT_FIELDS}
    row["evidence"] = edit.evidence and evidence_to_json(edit.evidence)
    row["question_sha256"] = None if edit.purged_at else question_digest(edit.image_sha256, edit.prompt)
    row["milliseconds"] += 0.0  # SQLite has no negative zero.
    row["record_sha256"] = edit_digest(row)
    connection.execute(_INSERT["edits"], row)


def insert_blobs(connection: Connection, number: int, blobs: Mapping[BlobKind, bytes]) -> None:
    """What is kept apart from the edit's row."""
    for kind, data in blobs.items():
        values = {"edit_number": number, "kind": kind, "sha256": hashlib.sha256(data).hexdigest(), "data": data}
        connection.execute(_INSERT["blobs"], values)


def _bring_in(connection: Connection, numbers: Collection[int], event: Event) -> None:
    """These edits are in force from this change on."""
    if not numbers:
        return
    connection.execute(
        _INSERT["spans"], [{"edit_number": number, "revision_added": event.revision} for number in numbers]
    )
    connection.execute(update(EDITS).where(EDITS.c.number.in_(numbers)).values(revision_removed=None, undone_at=None))


def _take_out(connection: Connection, numbers: Collection[int], event: Event) -> None:
    """These edits, which are in force, are so no more from this change on."""
    if not numbers:
        return
    is_open = SPANS.c.edit_number.in_(numbers) & SPANS.c.revision_removed.is_(None)
    connection.execute(update(SPANS).where(is_open).values(revision_removed=event.revision))
    out = {"revision_removed": event.revision, "undone_at": event.at}
    connection.execute(update(EDITS).where(EDITS.c.number.in_(numbers)).values(out))


def left_for(connection: Connection, edit: StoredEdit) -> list[int]:
    """Numbers of the edits that are out of force because this one came in: they are to come back when it leaves."""
    came_in = select(SPANS.c.revision_added).where(SPANS.c.edit_number == edit.number)
    return _superseded(connection, edit, EDITS.c.revision_removed.in_(came_in) & EDITS.c.purged_at.is_(None))


def active_rivals(connection: Connection, edit: StoredEdit) -> list[int]:
    """Numbers of the edits in force that this one superseded: they are to leave when it comes back."""
    return _superseded(connection, edit, EDITS.c.revision_removed.is_(None))


def _superseded(connection: Connection, edit: StoredEdit, condition: ColumnElement[bool]) -> list[int]:
    left = select(SPANS.c.edit_number).where(SPANS.c.revision_removed == edit.revision_added)
    return list(connection.execute(select(EDITS.c.number).where(EDITS.c.number.in_(left), condition)).scalars())


def erase(connection: Connection, edit: StoredEdit, event: Event) -> None:
    """Take everything that an edit says out of the tables, but for its id, its numbers and its times."""
    connection.execute(delete(BLOBS).where(BLOBS.c.edit_number == edit.number))
    row = connection.execute(select(EDITS).where(EDITS.c.number == edit.number)).mappings().one()
    values: dict[str, Any] = {**dict.fromkeys(_FORGOTTEN), "prompt": "", "answer": "", "purged_at": event.at}
    # Anew whether the old digest was right or not: a purge is the way to be rid of a text that was damaged.
    _write_over(connection, edit.number, values, edit_digest({**row, **values}))
    _erase_from_history(connection, edit.id, event.revision)
    # The requests stay, so that one that comes again is told of the purge and makes nothing.
    revisions = select(EVENTS.c.revision).where(EVENTS.c.edit_id == edit.id)
    connection.execute(update(REQUESTS).where(REQUESTS.c.revision.in_(revisions)).values(body_sha256=""))
    _erase_from_others(connection, edit.id)


def _erase_from_history(connection: Connection, edit_id: str, before: int) -> None:
    """Who changed an edit, and why, before a revision."""
    earlier = (EVENTS.c.edit_id == edit_id) & (EVENTS.c.revision < before)
    revisions = select(EVENTS.c.revision).where(earlier)
    moved = moved_by(connection, SPANS.c.revision_added.in_(revisions) | SPANS.c.revision_removed.in_(revisions))
    signed = earlier & (EVENTS.c.author.is_not(None) | EVENTS.c.note.is_not(None))
    for row in connection.execute(select(EVENTS).where(signed)).mappings().all():
        of_it = moved.get(row["revision"], _NOTHING_MOVED)
        values: dict[str, Any] = {"author": None, "note": None}
        is_sound = row["record_sha256"] == event_digest(row, of_it)
        values["record_sha256"] = event_digest({**row, **values}, of_it) if is_sound else None
        connection.execute(update(EVENTS).where(EVENTS.c.revision == row["revision"]).values(**values))


def _erase_from_others(connection: Connection, edit_id: str) -> None:
    """What the evidence of other edits quotes of the answers to this one's question."""
    statement = select(EDITS).where(EDITS.c.evidence.like(f'%"{edit_id}"%'))
    for row in connection.execute(statement).mappings().all():
        evidence = evidence_or_none(row["evidence"])
        # Of damaged evidence nobody can tell what it quotes.
        values: dict[str, Any] = {"evidence": evidence and evidence_to_json(evidence.without(edit_id))}
        if evidence is not None and edit_id in evidence.supersedes:
            values["answer_before"] = None
        # A row that was damaged before gets no digest, which `verify` goes on to name.
        is_sound = row["record_sha256"] == edit_digest(row)
        _write_over(connection, row["number"], values, edit_digest({**row, **values}) if is_sound else None)


def _write_over(connection: Connection, number: int, values: Mapping[str, Any], sha256: str | None) -> None:
    connection.execute(update(EDITS).where(EDITS.c.number == number).values(**values, record_sha256=sha256))


def now() -> str:
    """The time as it is stored: ISO 8601, UTC, to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")
