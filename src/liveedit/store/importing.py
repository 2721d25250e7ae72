"""The import of a bundle into a store: all of its edits, or none."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field, fields, replace
from typing import Final

from sqlalchemy import Connection, insert

from ..answers import normalize_answer
from ..errors import ConflictError, InvalidInputError, StoreError
from . import queries, writes
from .bundle import Bundle
from .checksums import NO_STATE_CHANGE, StateChange, damaged_edits, question_digest, state_changes
from .contradictions import Contradiction, OnConflict, answers_differ
from .records import EventKind, NewEdit, StoredEdit
from .schema import EDITS, INTERVALS
from .thumbnails import check_image, check_thumbnail
from .validation import check_edit
from .verify import history_problems

_ID: Final = re.compile(r"[0-9a-f]{8,64}")

_MOST_IN_A_MESSAGE: Final = 10
"""Number of contradictions that the message of a refusal lists."""


@dataclass(frozen=True, slots=True)
class Imported:
    """The result of an import. Edits are named by their ids."""

    added: tuple[str, ...] = ()
    already_there: tuple[str, ...] = ()
    """The same edits were in the store; they stay as they are, active or not."""
    purged_here: tuple[str, ...] = ()
    """Purged from the store before, and not restored."""
    superseded: dict[str, str] = field(default_factory=dict)
    """Edits that are no longer active, and the imported edit that superseded each."""
    repeated: tuple[str, ...] = ()
    """Imported edits that superseded an edit of the same question with the same answer."""
    contradictions: tuple[Contradiction, ...] = ()
    """Questions whose imported edits differ in their answers from active edits, or from one another."""


@dataclass(frozen=True, slots=True)
class ImportPlan:
    """What an import will do. missing: the edits that the store lacks. result: what it will return.

    is_copy: the store is empty and takes the whole history as it is.
    """

    missing: tuple[StoredEdit, ...]
    is_copy: bool
    result: Imported


def plan_import(connection: Connection, bundle: Bundle, on_conflict: OnConflict) -> ImportPlan:
    """Compare a bundle with a store, without a change.

    Raises `StoreError` for an id that the store has with other content, `InvalidInputError` for fields that cannot be
    stored, `ConflictError` for a contradiction that is to be refused.
    """
    known = {edit.id: edit for edit in queries.edits_where(connection)}
    missing: list[StoredEdit] = []
    same, purged = [], []
    for edit in bundle.contents.edits:
        if edit.purged_at is not None:
            continue
        there = known.get(edit.id)
        if there is None:
            check_edit(edit)
            missing.append(edit)
        elif there.purged_at is not None:
            purged.append(edit.id)
        else:
            _check_same(connection, edit, there)
            same.append(edit.id)
    questions = _questions(known.values(), missing)
    contradictions = tuple(found for question in questions if (found := question.contradiction()) is not None)
    if contradictions and on_conflict == "refuse":
        raise _refusal(bundle, contradictions)
    result = Imported(tuple(edit.id for edit in missing), tuple(same), tuple(purged), contradictions=contradictions)
    is_copy = bundle.contents.whole and queries.latest_revision(connection) == 0
    if is_copy and not (contradictions and on_conflict == "supersede"):
        return ImportPlan(tuple(missing), True, result)
    superseded: dict[str, str] = {}
    repeated: set[str] = set()
    for question in questions:
        question.supersede(on_conflict, superseded, repeated)
    in_order = tuple(edit.id for edit in missing if edit.id in repeated)
    return ImportPlan(tuple(missing), False, replace(result, superseded=superseded, repeated=in_order))


def import_bundle(connection: Connection, bundle: Bundle, on_conflict: OnConflict) -> Imported:
    """Write the edits of a bundle into a store; the caller has checked the binding. Raises as `plan_import` does.

    An empty store takes a whole bundle as it is, with its revisions. In another store each edit that is missing is a
    new change.
    """
    plan = plan_import(connection, bundle, on_conflict)
    if plan.is_copy:
        _import_whole(connection, bundle)
        return plan.result
    leaving: dict[str, list[str]] = defaultdict(list)
    for edit_id, successor in plan.result.superseded.items():
        leaving[successor].append(edit_id)
    for edit in plan.missing:
        _import_edit(connection, bundle, edit, leaving[edit.id])
    return plan.result


# -- the same question -----------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Question:
    """The edits of one question that are active in the store, and those that a bundle would add as active."""

    there: list[StoredEdit] = field(default_factory=list)
    imported: list[StoredEdit] = field(default_factory=list)

    def contradiction(self) -> Contradiction | None:
        """The contradiction that the import brings, if it brings one."""
        if not answers_differ(edit.answer for edit in (*self.there, *self.imported)):
            return None
        newest = self.imported[-1]
        there, imported = ({edit.id: edit.answer for edit in edits} for edits in (self.there, self.imported))
        return Contradiction(newest.prompt, newest.image_name, there, imported)

    def supersede(self, on_conflict: OnConflict, superseded: dict[str, str], repeated: set[str]) -> None:
        """Note, one imported edit after the other, which active edits it supersedes and whether it repeats one.

        An edit with the same answer is superseded whatever `on_conflict` says: this contradicts nothing.
        """
        by_answer: dict[str, list[str]] = defaultdict(list)
        for edit in self.there:
            by_answer[normalize_answer(edit.answer)].append(edit.id)
        for edit in self.imported:
            answer = normalize_answer(edit.answer)
            repeats = by_answer.pop(answer, [])
            contradicts = [edit_id for ids in by_answer.values() for edit_id in ids]
            if repeats:
                repeated.add(edit.id)
            if on_conflict == "supersede":
                by_answer.clear()
                repeats += contradicts
            superseded.update(dict.fromkeys(repeats, edit.id))
            by_answer[answer] = [edit.id]


def _questions(known: Iterable[StoredEdit], missing: Iterable[StoredEdit]) -> list[_Question]:
    """The questions of the active edits among the missing ones, in their order."""
    questions: dict[str, _Question] = defaultdict(_Question)
    for edit in missing:
        if edit.is_active:
            questions[question_digest(edit.image_sha256, edit.prompt)].imported.append(edit)
    for edit in known if questions else ():
        if edit.is_active and (found := questions.get(question_digest(edit.image_sha256, edit.prompt))) is not None:
            found.there.append(edit)
    return list(questions.values())


def _refusal(bundle: Bundle, contradictions: tuple[Contradiction, ...]) -> ConflictError:
    shown = " | ".join(map(str, contradictions[:_MOST_IN_A_MESSAGE]))
    if (more := len(contradictions) - _MOST_IN_A_MESSAGE) > 0:
        shown += f" | and {more} more"
    return ConflictError(
        f"Edits of the bundle {str(bundle.path)!r} give other answers than active edits of the same question, or than "
        f"one another: {shown}. Nothing was imported. Undo the edits that are wrong, or import with --on-conflict "
        "supersede (later edits supersede earlier ones) or --on-conflict keep (all stay active); in Python, "
        "`on_conflict`."
    )


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


_FROM_TRIAL: Final = frozenset({"answer_before", "answer_after", "evidence"})
"""Fields that may differ between copies of an edit: the purge of another edit clears quotes of its answers in them."""


def _content(edit: StoredEdit) -> tuple[object, ...]:
    values = (getattr(edit, field.name) for field in fields(NewEdit) if field.name not in _FROM_TRIAL)
    return (*values, edit.created_at, edit.expert_digest, edit.backbone_digest, edit.editor_digest)


# -- writing ---------------------------------------------------------------------------------------------------


def _import_edit(connection: Connection, bundle: Bundle, edit: StoredEdit, superseded: list[str]) -> None:
    number = queries.next_number(connection)
    revision = queries.latest_revision(connection) + 1
    new = replace(edit, number=number, revision_added=revision, revision_removed=None, undone_at=None)
    _write_edit(connection, bundle, new)
    kind: EventKind = "supersede" if superseded else "edit"
    change = StateChange([number], list(queries.numbers_of(connection, superseded).values()))
    writes.make_change(connection, kind, edit.id, writes.Signature(edit.author, edit.note), change)
    if not edit.is_active:
        writes.make_change(connection, "undo", edit.id, writes.Signature(), StateChange(deactivated=[number]))


def _import_whole(connection: Connection, bundle: Bundle) -> None:
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


def _write_edit(connection: Connection, bundle: Bundle, edit: StoredEdit) -> None:
    if not _ID.fullmatch(edit.id):
        raise InvalidInputError(f"The bundle has an edit of the id {edit.id!r}. Ids are 8 or more digits 0-9 and a-f.")
    writes.insert_edit(connection, edit)
    if edit.purged_at is not None:
        return
    blobs = bundle.blobs(edit)
    if "thumbnail" in blobs:
        check_thumbnail(blobs["thumbnail"])
    if "image" in blobs:
        check_image(blobs["image"], edit.image_sha256)
    writes.insert_blobs(connection, edit.number, blobs)
