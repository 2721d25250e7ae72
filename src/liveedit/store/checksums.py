"""Digests of what rows say: a flipped byte of a text, a name or a time is found by them.

The digest of an edit leaves out only whether the edit is in force: that follows from the spans. The digest of a line of
the history covers also which edits came into force by it and which left, that is, the spans. So a change of state
writes a line of the history as before, and no digest of an edit.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Final

from sqlalchemy import ColumnElement, Connection, select

from .records import Binding, Event
from .schema import EDITS, EVENTS, SPANS

_STATE: Final = ("revision_removed", "undone_at")
_EDIT_COLUMNS: Final = tuple(
    name for name in (column.name for column in EDITS.columns) if name not in (*_STATE, "record_sha256")
)
_EVENT_COLUMNS: Final = tuple(field.name for field in fields(Event))


@dataclass(frozen=True, slots=True)
class Moved:
    """Numbers of the edits that came into force by a change, and of those that left by it."""

    came: Collection[int] = ()
    left: Collection[int] = ()


def record_digest(said: Mapping[Any, object]) -> str:
    """The SHA-256 of values by their names, as JSON with sorted names.

    What is NULL is left out: so a column that a later layout adds changes no digest of the rows from before. It is
    stored: another definition takes another layout.
    """
    known = {name: value for name, value in said.items() if value is not None}
    # `repr` is for bytes where damage made them of a text.
    text = json.dumps(known, sort_keys=True, separators=(",", ":"), default=repr)
    return hashlib.sha256(text.encode()).hexdigest()


def binding_digest(binding: Binding) -> str:
    """Of what `meta` says of the backbone and the editor."""
    return record_digest(asdict(binding))


def edit_digest(row: Mapping[Any, Any]) -> str:
    """Of a row of `edits`."""
    return record_digest({name: row[name] for name in _EDIT_COLUMNS})


def event_digest(row: Mapping[Any, Any], moved: Moved) -> str:
    """Of a row of `events`, and of the spans that begin and end with it."""
    said: dict[str, object] = {name: row[name] for name in _EVENT_COLUMNS}
    return record_digest(said | {"came": sorted(moved.came), "left": sorted(moved.left)})


def moved_by(connection: Connection, *conditions: ColumnElement[bool]) -> Mapping[int, Moved]:
    """Which edits came and left at each revision, by these spans or by all."""
    came: dict[int, list[int]] = defaultdict(list)
    left: dict[int, list[int]] = defaultdict(list)
    statement = select(SPANS.c.edit_number, SPANS.c.revision_added, SPANS.c.revision_removed).where(*conditions)
    for number, added, removed in connection.execute(statement):
        came[added].append(number)
        if removed is not None:
            left[removed].append(number)
    return {revision: Moved(came[revision], left[revision]) for revision in {*came, *left}}


def damaged_edits(connection: Connection, *conditions: ColumnElement[bool]) -> Iterator[tuple[str, str]]:
    """(id, what is wrong) of each of these edits whose row is not what was written."""
    for row in connection.execute(select(EDITS).where(*conditions).order_by(EDITS.c.number)).mappings():
        if (problem := _problem(row["record_sha256"], edit_digest(row))) is not None:
            yield row["id"], problem


def damaged_events(connection: Connection) -> Iterator[tuple[int, str]]:
    """(revision, what is wrong) of each line of the history that is not what was written, or has other spans."""
    moved = moved_by(connection)
    for row in connection.execute(select(EVENTS).order_by(EVENTS.c.revision)).mappings():
        found = event_digest(row, moved.get(row["revision"], Moved()))
        if (problem := _problem(row["record_sha256"], found)) is not None:
            yield row["revision"], problem


def _problem(sha256: str | None, found: str) -> str | None:
    return None if found == sha256 else f"its digest is {found[:12]}, not {str(sha256 or 'none')[:12]}"
