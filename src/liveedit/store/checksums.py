"""Digests of stored rows. They find a changed byte in any text, name or time.

The digest of an edit covers everything but whether it is active, which follows from its validity intervals. The digest
of a line of the history also covers which edits it activated and deactivated, that is, the intervals. A change of state
thus writes one line of the history, and no digest of an edit.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Final

from sqlalchemy import ColumnElement, Connection, select

from ..samples import normalize_prompt
from .records import Binding, Event
from .schema import EDITS, EVENTS, INTERVALS

_STATE: Final = ("revision_removed", "undone_at")
_EDIT_COLUMNS: Final = tuple(
    name for name in (column.name for column in EDITS.columns) if name not in (*_STATE, "record_sha256")
)
_EVENT_COLUMNS: Final = tuple(field.name for field in fields(Event))


@dataclass(frozen=True, slots=True)
class StateChange:
    """Numbers of the edits that one change activates, and of those that it deactivates."""

    activated: Collection[int] = ()
    deactivated: Collection[int] = ()


NO_STATE_CHANGE: Final = StateChange()


def record_digest(values: Mapping[Any, object]) -> str:
    """The SHA-256 of values by their names, as JSON with sorted names.

    NULL values are left out, so that a column added by a later schema version changes no digest of earlier rows.
    Digests are stored: changing this definition needs a new schema version.
    """
    known = {name: value for name, value in values.items() if value is not None}
    # `repr` is for bytes, which damage can make of a text.
    text = json.dumps(known, sort_keys=True, separators=(",", ":"), default=repr)
    return hashlib.sha256(text.encode()).hexdigest()


def question_digest(image_sha256: str | None, prompt: str) -> str:
    """The SHA-256 of a question: the digest of the image, if any, and the prompt as `normalize_prompt` returns it.

    Edits of the same question share it. The digest is stored: changing this definition needs a new schema version.
    """
    return hashlib.sha256(f"{image_sha256 or ''}:{normalize_prompt(prompt)}".encode()).hexdigest()


def binding_digest(binding: Binding) -> str:
    """The digest of the rows of `meta` that name the backbone and the editor."""
    return record_digest(asdict(binding))


def edit_digest(row: Mapping[Any, Any]) -> str:
    """The digest of a row of `edits`."""
    return record_digest({name: row[name] for name in _EDIT_COLUMNS})


def event_digest(row: Mapping[Any, Any], change: StateChange) -> str:
    """The digest of a row of `events` and of the validity intervals that begin and end with it."""
    values: dict[str, object] = {name: row[name] for name in _EVENT_COLUMNS}
    states = {"activated": sorted(change.activated), "deactivated": sorted(change.deactivated)}
    return record_digest(values | states)


def state_changes(connection: Connection, *conditions: ColumnElement[bool]) -> Mapping[int, StateChange]:
    """The edits activated and deactivated at each revision, by the intervals that meet the conditions."""
    activated: dict[int, list[int]] = defaultdict(list)
    deactivated: dict[int, list[int]] = defaultdict(list)
    columns = (INTERVALS.c.edit_number, INTERVALS.c.revision_added, INTERVALS.c.revision_removed)
    for number, added, removed in connection.execute(select(*columns).where(*conditions)):
        activated[added].append(number)
        if removed is not None:
            deactivated[removed].append(number)
    revisions = {*activated, *deactivated}
    return {revision: StateChange(activated[revision], deactivated[revision]) for revision in revisions}


def damaged_edits(connection: Connection, *conditions: ColumnElement[bool]) -> Iterator[tuple[str, str]]:
    """(id, problem) of each of these edits whose row does not have its digest."""
    for row in connection.execute(select(EDITS).where(*conditions).order_by(EDITS.c.number)).mappings():
        if (problem := _problem(row["record_sha256"], edit_digest(row))) is not None:
            yield row["id"], problem


def damaged_events(connection: Connection) -> Iterator[tuple[int, str]]:
    """(revision, problem) of each line of the history that, with its intervals, does not have its digest."""
    changes = state_changes(connection)
    for row in connection.execute(select(EVENTS).order_by(EVENTS.c.revision)).mappings():
        found = event_digest(row, changes.get(row["revision"], NO_STATE_CHANGE))
        if (problem := _problem(row["record_sha256"], found)) is not None:
            yield row["revision"], problem


def _problem(sha256: str | None, found: str) -> str | None:
    return None if found == sha256 else f"its digest is {found[:12]}, not {str(sha256 or 'none')[:12]}"
