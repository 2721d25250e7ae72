"""The edits of a file, one for each row: every row is carried out once, also if the process is killed in between.

A row is recognised by the name of its file, its id if it has one, its prompt, its answer and the bytes of its image,
and by how many such rows came before it. The store remembers this for good, in the transaction that stores the edit:
after a crash, a row has its edit and is known, or has none and is not. Rejected rows are not remembered, and are tried
again the next time.

A row whose question has an active edit with the same answer makes none: the store remembers that edit as the row's.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..datasets.base import Reader, Row, RowError
from ..errors import ConflictError, EditDidNotTakeError, EditPurgedError, ImageError, InvalidInputError
from ..images import describe, image_digest, open_image
from ..samples import LOCALITY, EditCase, ImageSource
from ..store.idempotency import ChangeRequest
from ..store.records import StoredEdit
from ..store.store import EditStore
from .model import EditedModel
from .receipt import Receipt

_HELD = ("text_generality", *LOCALITY)
"""The probes that an edit is tried on."""


@dataclass(frozen=True, slots=True)
class EditRow:
    """A row that asks for an edit. id, author, note: as the row gives them. place, line: as for `RowResult`."""

    place: str
    line: int | None
    id: str | None
    case: EditCase
    author: str | None = None
    note: str | None = None


@dataclass(frozen=True, slots=True)
class RowResult:
    """What became of a row.

    outcome: its edit was made now ("made"); was there already ("there"); was there and has been undone, superseded or
    purged since, and is not made again ("inactive"); or none was made, for the `reason` ("rejected"). place: such as
    "line 3", or "the file". line: counted from 1; None in a JSON list. id: the row's.
    """

    outcome: Literal["made", "there", "inactive", "rejected"]
    place: str
    line: int | None
    id: str | None
    edit_id: str | None = None
    reason: str | None = None


@dataclass(frozen=True)
class RowFile:
    """What a file asks for. name: the file's, without its folder. rows: in the order of the file, also those that
    cannot be read. unused: what rows have and edits do not hold, with the number of such rows.
    """

    name: str
    rows: tuple[EditRow | RowResult, ...]
    unused: dict[str, int]

    @property
    def rejected(self) -> tuple[RowResult, ...]:
        """The rows that cannot be read."""
        return tuple(row for row in self.rows if isinstance(row, RowResult))


# -- reading ---------------------------------------------------------------------------------------------------


def read_rows(format: Reader, file: str | Path, images: str | Path | None = None) -> RowFile:
    """The rows of a file. No image is opened.

    images: the folder of the images, by default that of the file. Raises `DatasetError` if the file is missing or is
    not text.
    """
    found: list[EditRow | RowResult] = []
    unused: Counter[str] = Counter()
    problems: list[RowError] = []
    for row, case in format.rows(file, images, problems.append):
        author, note, given_id = (row.optional_answer(key) or None for key in ("author", "note", "id"))
        if case is None or row.problems:
            found.append(RowResult("rejected", row.place, row.line, given_id, reason=_reason(row.problems)))
        else:
            found.append(EditRow(row.place, row.line, given_id, case, author, note))
            unused.update(_unused(row, case))
    for problem in problems:
        if problem.row is None or problem.row >= len(found):  # The end of what can be read.
            found.append(RowResult("rejected", "the file", None, None, reason=problem.reason))
    return RowFile(Path(file).name, tuple(found), dict(unused))


def _reason(problems: Iterable[RowError]) -> str:
    return "; ".join(f"{problem.key!r} {problem.reason}" if problem.key else problem.reason for problem in problems)


def _unused(row: Row, case: EditCase) -> Iterator[str]:
    """What a row has and its edit does not hold."""
    yield from sorted({probe.name for probe in case.probes} - {*_HELD})
    if case.answer_before is not None:
        yield "the answer before"
    if any(probe.answer is not None for probe in case.named(*LOCALITY)):
        yield "answers to locality questions"
    if case.edit.question.subject is not None:
        yield "the subject"
    yield from (f"the key {key!r}" for key in row.values.keys() - row.used)


# -- editing ---------------------------------------------------------------------------------------------------


def make_edits(
    model: EditedModel,
    file: RowFile,
    *,
    probe_edits: int = 8,
    must_take: bool = True,
    author: str | None = None,
    note: str | None = None,
) -> Iterator[RowResult]:
    """Make the edits of a file one after the other, and yield what became of each row.

    A row with an answer other than an active edit of its question supersedes that edit. An edit that is refused, or
    that must take and does not, is a rejected row, and the next one follows. probe_edits, must_take: as for
    `EditedModel.edit`. author, note: for rows that give none.
    """
    before: Counter[str] = Counter()
    for row in file.rows:
        if isinstance(row, RowResult):
            yield row
            continue
        place = (row.place, row.line, row.id)
        signed = {"author": row.author or author, "note": row.note or note}
        try:
            request = _request(file.name, row, before)
            there = _edit_there(model.store, row.case, request)
            if there is None:
                receipt = _edit(model, row.case, request, probe_edits=probe_edits, must_take=must_take, **signed)
                yield RowResult("there" if receipt.replayed else "made", *place, receipt.id)
            else:
                yield RowResult("there" if there.is_active else "inactive", *place, there.id)
        except EditPurgedError:
            yield RowResult("inactive", *place)
        except (InvalidInputError, EditDidNotTakeError, ConflictError) as error:
            yield RowResult("rejected", *place, reason=str(error))


def _edit(model: EditedModel, case: EditCase, request: ChangeRequest, **options: Any) -> Receipt:
    return model.edit(
        case.edit.question.image,
        case.edit.question.prompt,
        case.edit.answer,
        rephrasings=[probe.question.prompt for probe in case.named("text_generality")],
        locality=[(probe.question.image, probe.question.prompt) for probe in case.named(*LOCALITY)],
        request=request,
        **options,
    )


def _request(file: str, row: EditRow, before: Counter[str]) -> ChangeRequest:
    """The request that a row is. before: how many rows with this content came before it."""
    question = row.case.edit.question
    content = json.dumps([file, row.id, question.prompt, row.case.edit.answer, _file_digest(question.image)])
    before[content] += 1
    digest = hashlib.sha256(content.encode()).hexdigest()
    return ChangeRequest("rows", f"{digest}-{before[content]}", content.encode(), kept_changes=None)


def _file_digest(image: ImageSource | None) -> str | None:
    """Of the file as it is: no image is decoded to find out that its row was carried out."""
    if image is None:
        return None
    if not isinstance(image, str | Path):
        return image_digest(open_image(image))
    try:
        with Path(image).open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except (OSError, ValueError) as error:  # ValueError: a path with a zero byte.
        reason = getattr(error, "strerror", None) or error
        raise ImageError(f"{describe(image)} cannot be read ({reason}). Give the path of an image file.") from error


def _edit_there(store: EditStore, case: EditCase, request: ChangeRequest) -> StoredEdit | None:
    """The edit that this row made before, in its present state, or an active one that makes it needless."""
    if (made := store.made_by(request)) is not None:
        return store.get(made.id)
    image = case.edit.question.image
    digest = None if image is None else image_digest(open_image(image))
    active = store.same_question(digest, case.edit.question.prompt)
    if not active or any(edit.answer != case.edit.answer for edit in active):
        return None
    store.remember(request, active[-1].id)
    return active[-1]
