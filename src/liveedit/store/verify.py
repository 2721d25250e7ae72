"""Checks a store for damage."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterator

from sqlalchemy import Connection, func, select
from sqlalchemy.exc import DBAPIError

from ..errors import ImageError
from ..images import image_digest, open_image
from .checksums import binding_digest, damaged_edits, damaged_events, question_digest
from .evidence import evidence_from_json
from .queries import binding_of, binding_sha256, edits_where, events_where
from .records import Event, StoredEdit
from .schema import BLOBS, EDITS, EVENTS, INTERVALS, META
from .validation import expert_problem

Check = Callable[[Connection], Iterator[str]]
Interval = tuple[int, int | None]


def find_problems(connection: Connection, structure: Check) -> tuple[str, ...]:
    """What is wrong with a store, one sentence each; empty if all is well.

    Runs the database's own `structure` check, recomputes every digest, and compares edits, validity intervals and
    history with one another. A check that damage prevents from finishing is a problem too. The connection must see one
    state of the store throughout, so that concurrent writes do not look like damage.
    """
    checks: dict[str, Check] = {
        "structure": structure,
        "blobs": _blobs,
        "counts": _counts,
        "history": _history,
        "binding": _binding,
        "evidence": _evidence,
        "records": _records,
    }
    problems: list[str] = []
    for name, check in checks.items():
        found: list[str] = []
        try:
            found.extend(check(connection))
        except DBAPIError as error:
            found.append(f"The check of the {name} could not be finished: {error.orig}.")
        except (TypeError, ValueError, AttributeError) as error:
            # Damage can turn a text into a number or NULL in SQLite; the check of the records names the edit.
            found.append(f"The check of the {name} met a value of another type: {error}.")
        problems += found
    return tuple(problems)


def history_problems(connection: Connection) -> list[str]:
    """Where edits, validity intervals and history contradict one another."""
    return [*_counts(connection), *_history(connection), *_binding(connection)]


def blob_problem(kind: str, sha256: str, data: bytes) -> str | None:
    """What is wrong with a stored expert, thumbnail or image, or None."""
    return digest_problem(sha256, data) or (expert_problem(data) if kind == "expert" else None)


def digest_problem(sha256: str, data: bytes) -> str | None:
    """How bytes differ from the digest that was stored with them, or None."""
    if not isinstance(data, bytes):
        return f"it is of type {type(data).__name__}, not bytes"
    found = hashlib.sha256(data).hexdigest()
    return None if found == sha256 else f"its digest is {found[:12]}, not {str(sha256)[:12]}"


def _blobs(connection: Connection) -> Iterator[str]:
    for edit in edits_where(connection):
        # One edit at a time: all of them may not fit into memory.
        statement = select(BLOBS.c.kind, BLOBS.c.sha256, BLOBS.c.data).where(BLOBS.c.edit_number == edit.number)
        found = {row.kind: (row.sha256, row.data) for row in connection.execute(statement)}
        if edit.purged_at is not None:
            if found or edit.prompt or edit.answer or edit.evidence:
                yield f"The edit {edit.id!r} was purged, but {', '.join(found) or 'its text'} is still there."
            continue
        for kind, (sha256, data) in found.items():
            problem = blob_problem(kind, sha256, data) or _other_digest(edit, kind, sha256, data)
            if problem is not None:
                yield f"The {kind} of edit {edit.id!r} is damaged: {problem}."
        if "expert" not in found:
            yield f"The edit {edit.id!r} has no expert."


def _other_digest(edit: StoredEdit, kind: str, sha256: str, data: bytes) -> str | None:
    """How the digests in the row of the edit differ from those of its blob, or None."""
    if kind == "expert" and sha256 != edit.expert_digest:
        return f"the expert's digest is {str(sha256)[:12]}, the edit says {(edit.expert_digest or 'nothing')[:12]}"
    if kind == "image":
        try:
            digest = image_digest(open_image(data))
        except ImageError as error:
            return str(error)
        if digest != edit.image_sha256:
            return f"the image's digest is {digest[:12]}, the edit says {(edit.image_sha256 or 'nothing')[:12]}"
    return None


def _counts(connection: Connection) -> Iterator[str]:
    for table, number in ((EDITS, EDITS.c.number), (EVENTS, EVENTS.c.revision)):
        statement = select(func.count(), func.coalesce(func.max(number), 0)).select_from(table)
        count, last = connection.execute(statement).one()
        if count != last:
            yield f"The table {table.name} has {count} rows, but {last} numbers were given out."


def _history(connection: Connection) -> Iterator[str]:
    events, by_edit = {}, defaultdict(list)
    for event in events_where(connection):
        events[event.revision] = event
        by_edit[event.edit_id].append(event)
    intervals: dict[int, list[Interval]] = defaultdict(list)
    statement = select(INTERVALS).order_by(INTERVALS.c.edit_number, INTERVALS.c.revision_added)
    for row in connection.execute(statement):
        intervals[row.edit_number].append((row.revision_added, row.revision_removed))
    for edit in edits_where(connection):
        yield from _state_problems(edit, intervals[edit.number], events)
        yield from _event_problems(edit, intervals[edit.number], by_edit[edit.id])


def _state_problems(edit: StoredEdit, intervals: list[Interval], events: dict[int, Event]) -> Iterator[str]:
    """Where the state in the row of an edit contradicts its intervals, or these the history."""
    name = f"The edit {edit.id!r}"
    borders = [border for interval in intervals for border in interval]
    past = [border for border in borders[:-1] if border is not None]
    if not intervals or len(past) != len(borders) - 1 or past != sorted(past):
        yield f"{name} has the validity intervals {intervals}, which do not follow one another."
        return
    if (borders[0], borders[-1]) != (edit.revision_added, edit.revision_removed):
        yield (
            f"{name} says it was added at revision {edit.revision_added} and removed at {edit.revision_removed}, but "
            f"its validity intervals are {intervals}."
        )
    if unknown := [border for border in borders if border is not None and border not in events]:
        yield f"{name} changed at the revisions {unknown}, which the history does not have."
    last = None if borders[-1] is None else events.get(borders[-1])
    if edit.undone_at != (last and last.at):
        yield f"{name} says it was undone at {edit.undone_at}, but the history says {last and last.at}."


def _event_problems(edit: StoredEdit, intervals: list[Interval], events: list[Event]) -> Iterator[str]:
    """Where the events of an edit contradict its intervals."""
    made = [event.revision for event in events if event.kind in ("edit", "supersede")]
    if made != [edit.revision_added]:
        times = f"made {len(made)} times"
        yield f"The edit {edit.id!r} was added at revision {edit.revision_added}, but the history has it {times}."
    began, ended = {added for added, _ in intervals}, {removed for _, removed in intervals}
    for event in events:
        known = ended if event.kind == "undo" else began if event.kind == "redo" else None
        if known is not None and event.revision not in known:
            yield (
                f"The history has a {event.kind} of edit {edit.id!r} at revision {event.revision}; its validity "
                "intervals do not."
            )
    if (edit.purged_at is not None) != any(event.kind == "purge" for event in events):
        yield f"The edit {edit.id!r} and the history do not agree on whether it was purged."


def _evidence(connection: Connection) -> Iterator[str]:
    columns = (EDITS.c.id, EDITS.c.image_sha256, EDITS.c.prompt, EDITS.c.question_sha256, EDITS.c.evidence)
    for row in connection.execute(select(*columns).where(EDITS.c.purged_at.is_(None)).order_by(EDITS.c.number)):
        if row.question_sha256 != question_digest(row.image_sha256, row.prompt):
            yield f"The question of edit {row.id!r} does not have its digest."
        if row.evidence is None:
            continue
        try:
            evidence_from_json(row.evidence)
        except ValueError as error:
            yield f"The evidence of edit {row.id!r} is damaged: {' '.join(str(error).split())}."


def _records(connection: Connection) -> Iterator[str]:
    for edit_id, problem in damaged_edits(connection):
        yield f"The record of edit {edit_id!r} is damaged: {problem}."
    for revision, problem in damaged_events(connection):
        yield damaged_history(revision, problem)


def damaged_history(revision: int, problem: str) -> str:
    """The sentence for a line of the history that, with its validity intervals, does not have its digest."""
    return (
        f"The history at revision {revision}, or a validity interval that begins or ends there, is damaged: {problem}."
    )


def _binding(connection: Connection) -> Iterator[str]:
    edits = edits_where(connection)
    binding = binding_of(connection)
    bound = connection.execute(select(func.count()).where(META.c.key.like("%_digest"))).scalar_one()
    if edits and (binding is None or bound != 2):
        yield "The file holds edits but does not say which model and editor they belong to."
        return
    if binding is not None and binding_sha256(connection) != binding_digest(binding):
        yield "The record of the model and editor that the file belongs to does not have its digest."
    for edit in edits:
        if binding is not None and (edit.backbone_digest, edit.editor_digest) != (
            binding.backbone_digest,
            binding.editor_digest,
        ):
            yield f"The edit {edit.id!r} was made by another model or editor than the file belongs to."
