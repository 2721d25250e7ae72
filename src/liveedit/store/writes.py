"""Writes to the database: each change is an event with its own revision, and the validity intervals follow from it."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from typing import Any, Final

from sqlalchemy import ColumnElement, Connection, delete, insert, select, update

from .checksums import (
    NO_STATE_CHANGE,
    StateChange,
    binding_digest,
    edit_digest,
    event_digest,
    question_digest,
    state_changes,
)
from .evidence import evidence_or_none, evidence_to_json
from .queries import latest_revision, next_number
from .records import Binding, BlobKind, Event, EventKind, NewEdit, StoredEdit
from .schema import BLOBS, EDITS, EVENTS, INTERVALS, META, REQUESTS

_CLEARED_BY_PURGE: Final = (
    *("author", "note", "answer_before", "answer_after", "subject", "relation", "image_sha256", "image_name"),
    *("expert_digest", "evidence", "question_sha256"),
)
"""Columns cleared by a purge, besides prompt and answer."""

# Built once: every edit that is stored needs them, and building a statement takes time.
_INSERT: Final = {table.name: insert(table) for table in (EDITS, EVENTS, INTERVALS, BLOBS)}
_EDIT_FIELDS: Final = tuple(field.name for field in fields(StoredEdit))


@dataclass(frozen=True, slots=True)
class Signature:
    """Who made a change, and why, if given."""

    author: str | None = None
    note: str | None = None


def write_binding(connection: Connection, binding: Binding) -> None:
    """Bind a store to this model and editor. It must not be bound yet."""
    values = {**asdict(binding), "binding_sha256": binding_digest(binding)}
    rows = [{"key": key, "value": value} for key, value in values.items()]
    connection.execute(insert(META), rows)


def make_change(
    connection: Connection,
    kind: EventKind,
    edit_id: str,
    signature: Signature,
    change: StateChange = NO_STATE_CHANGE,
) -> Event:
    """Append a line to the history, and activate and deactivate edits by it."""
    event = Event(latest_revision(connection) + 1, now(), kind, edit_id, signature.author, signature.note)
    write_event(connection, event, change)
    _deactivate(connection, change.deactivated, event)
    _activate(connection, change.activated, event)
    return event


def write_event(connection: Connection, event: Event, change: StateChange) -> None:
    """Append a given line to the history, with its digest."""
    row: dict[str, Any] = {field.name: getattr(event, field.name) for field in fields(Event)}
    row["record_sha256"] = event_digest(row, change)
    connection.execute(_INSERT["events"], row)


def insert_new(
    connection: Connection, edit: NewEdit, edit_id: str, expert_digest: str, by: Binding, superseded: Sequence[int]
) -> StoredEdit:
    """Store a new, active edit and deactivate those that it supersedes (their numbers)."""
    values: dict[str, Any] = {field.name: getattr(edit, field.name) for field in fields(NewEdit)}
    # SQLite would store numpy numbers as bytes.
    values |= {"milliseconds": float(edit.milliseconds), "refine_steps": int(edit.refine_steps)}
    stored = StoredEdit(
        **values,
        id=edit_id,
        number=next_number(connection),
        created_at=now(),
        expert_digest=expert_digest,
        backbone_digest=by.backbone_digest,
        editor_digest=by.editor_digest,
        revision_added=latest_revision(connection) + 1,
    )
    insert_edit(connection, stored)
    kind: EventKind = "supersede" if superseded else "edit"
    event = Event(stored.revision_added, stored.created_at, kind, edit_id, edit.author, edit.note)
    write_event(connection, event, StateChange([stored.number], superseded))
    connection.execute(_INSERT["intervals"], {"edit_number": stored.number, "revision_added": event.revision})
    _deactivate(connection, superseded, event)
    return stored


def insert_edit(connection: Connection, edit: StoredEdit) -> None:
    """Insert the row of an edit, also of a purged one."""
    row: dict[str, Any] = {name: getattr(edit, name) for name in _EDIT_FIELDS}
    row["evidence"] = edit.evidence and evidence_to_json(edit.evidence)
    row["question_sha256"] = None if edit.purged_at else question_digest(edit.image_sha256, edit.prompt)
    row["milliseconds"] += 0.0  # SQLite has no negative zero.
    row["record_sha256"] = edit_digest(row)
    connection.execute(_INSERT["edits"], row)


def insert_blobs(connection: Connection, number: int, blobs: Mapping[BlobKind, bytes]) -> None:
    """Store the expert, the thumbnail and the image of an edit."""
    for kind, data in blobs.items():
        values = {"edit_number": number, "kind": kind, "sha256": hashlib.sha256(data).hexdigest(), "data": data}
        connection.execute(_INSERT["blobs"], values)


def _activate(connection: Connection, numbers: Collection[int], event: Event) -> None:
    """Activate these edits as of this event."""
    if not numbers:
        return
    rows = [{"edit_number": number, "revision_added": event.revision} for number in numbers]
    connection.execute(_INSERT["intervals"], rows)
    connection.execute(update(EDITS).where(EDITS.c.number.in_(numbers)).values(revision_removed=None, undone_at=None))


def _deactivate(connection: Connection, numbers: Collection[int], event: Event) -> None:
    """Deactivate these active edits as of this event."""
    if not numbers:
        return
    is_open = INTERVALS.c.edit_number.in_(numbers) & INTERVALS.c.revision_removed.is_(None)
    connection.execute(update(INTERVALS).where(is_open).values(revision_removed=event.revision))
    values = {"revision_removed": event.revision, "undone_at": event.at}
    connection.execute(update(EDITS).where(EDITS.c.number.in_(numbers)).values(values))


def superseded_by(connection: Connection, edit: StoredEdit) -> list[int]:
    """Numbers of the edits that are inactive because this one was activated. Undoing it activates them again."""
    activations = select(INTERVALS.c.revision_added).where(INTERVALS.c.edit_number == edit.number)
    return _superseded(connection, edit, EDITS.c.revision_removed.in_(activations) & EDITS.c.purged_at.is_(None))


def active_superseded(connection: Connection, edit: StoredEdit) -> list[int]:
    """Numbers of the edits that this one superseded and that are active now. Redoing it deactivates them again."""
    return _superseded(connection, edit, EDITS.c.revision_removed.is_(None))


def _superseded(connection: Connection, edit: StoredEdit, condition: ColumnElement[bool]) -> list[int]:
    numbers = select(INTERVALS.c.edit_number).where(INTERVALS.c.revision_removed == edit.revision_added)
    return list(connection.execute(select(EDITS.c.number).where(EDITS.c.number.in_(numbers), condition)).scalars())


def erase(connection: Connection, edit: StoredEdit, event: Event) -> None:
    """Delete the content of an edit from the tables; its id, its numbers and its times stay. event: of the purge."""
    connection.execute(delete(BLOBS).where(BLOBS.c.edit_number == edit.number))
    row = connection.execute(select(EDITS).where(EDITS.c.number == edit.number)).mappings().one()
    values: dict[str, Any] = {**dict.fromkeys(_CLEARED_BY_PURGE), "prompt": "", "answer": "", "purged_at": event.at}
    # A new digest whether the old one was right or not: a purge also removes texts that were damaged.
    _update_edit(connection, edit.number, values, edit_digest({**row, **values}))
    _erase_from_history(connection, edit.id, event.revision)
    # The requests stay, so that a repeated one gets an error about the purge and makes no edit.
    revisions = select(EVENTS.c.revision).where(EVENTS.c.edit_id == edit.id)
    connection.execute(update(REQUESTS).where(REQUESTS.c.revision.in_(revisions)).values(body_sha256=""))
    _erase_from_others(connection, edit.id)


def _erase_from_history(connection: Connection, edit_id: str, before: int) -> None:
    """Clear who changed an edit before a revision, and why."""
    earlier = (EVENTS.c.edit_id == edit_id) & (EVENTS.c.revision < before)
    revisions = select(EVENTS.c.revision).where(earlier)
    borders = INTERVALS.c.revision_added.in_(revisions) | INTERVALS.c.revision_removed.in_(revisions)
    changes = state_changes(connection, borders)
    signed = earlier & (EVENTS.c.author.is_not(None) | EVENTS.c.note.is_not(None))
    for row in connection.execute(select(EVENTS).where(signed)).mappings().all():
        change = changes.get(row["revision"], NO_STATE_CHANGE)
        values: dict[str, Any] = {"author": None, "note": None}
        is_sound = row["record_sha256"] == event_digest(row, change)
        values["record_sha256"] = event_digest({**row, **values}, change) if is_sound else None
        connection.execute(update(EVENTS).where(EVENTS.c.revision == row["revision"]).values(**values))


def _erase_from_others(connection: Connection, edit_id: str) -> None:
    """Clear what the evidence of other edits quotes of the answers to this edit's question."""
    statement = select(EDITS).where(EDITS.c.evidence.like(f'%"{edit_id}"%'))
    for row in connection.execute(statement).mappings().all():
        evidence = evidence_or_none(row["evidence"])
        # Damaged evidence is deleted whole: what it quotes cannot be known.
        values: dict[str, Any] = {"evidence": evidence and evidence_to_json(evidence.without(edit_id))}
        if evidence is not None and edit_id in evidence.supersedes:
            values["answer_before"] = None
        # A row that was damaged before gets no digest, so that `verify` still reports it.
        is_sound = row["record_sha256"] == edit_digest(row)
        _update_edit(connection, row["number"], values, edit_digest({**row, **values}) if is_sound else None)


def _update_edit(connection: Connection, number: int, values: Mapping[str, Any], sha256: str | None) -> None:
    connection.execute(update(EDITS).where(EDITS.c.number == number).values(**values, record_sha256=sha256))


def now() -> str:
    """The time as it is stored: ISO 8601, UTC, to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")
