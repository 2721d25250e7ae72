"""What differs between two sets of active edits, question by question."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from .checksums import question_digest
from .records import StoredEdit


@dataclass(frozen=True, slots=True)
class ChangedQuestion:
    """A question whose edits have other answers after than before.

    before, after: the answers as they were asked for, in the order the edits were made; mostly one, none if the
    question has no active edit. prompt and image are those of its newest edit.
    """

    prompt: str
    image_name: str | None
    image_sha256: str | None
    before: tuple[str, ...]
    after: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Difference:
    """The questions that only one set has edits of, and those of both that have other answers.

    Questions are the same if `normalize_prompt` and the image's digest are; answers are compared letter by letter.
    """

    added: tuple[ChangedQuestion, ...]
    removed: tuple[ChangedQuestion, ...]
    changed: tuple[ChangedQuestion, ...]

    def __bool__(self) -> bool:
        return bool(self.added or self.removed or self.changed)


def difference(before: Iterable[StoredEdit], after: Iterable[StoredEdit]) -> Difference:
    """Compare two sets of edits, such as those of two files, or of one file after two revisions."""
    first, second = _by_question(before), _by_question(after)
    found = [_compared(first.get(question, []), second.get(question, [])) for question in {**first, **second}]
    both = (question for question in found if question.before and question.after)
    return Difference(
        tuple(question for question in found if not question.before),
        tuple(question for question in found if not question.after),
        tuple(question for question in both if question.before != question.after),
    )


def _by_question(edits: Iterable[StoredEdit]) -> dict[str, list[StoredEdit]]:
    questions: defaultdict[str, list[StoredEdit]] = defaultdict(list)
    for edit in edits:
        questions[question_digest(edit.image_sha256, edit.prompt)].append(edit)
    return questions


def _compared(before: list[StoredEdit], after: list[StoredEdit]) -> ChangedQuestion:
    newest = (after or before)[-1]
    return ChangedQuestion(
        newest.prompt,
        newest.image_name,
        newest.image_sha256,
        tuple(edit.answer for edit in before),
        tuple(edit.answer for edit in after),
    )
