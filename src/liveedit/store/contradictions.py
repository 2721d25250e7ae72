"""Contradictions: active edits of the same question whose answers differ, in a store or through an import."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import Connection, func, select

from ..answers import normalize_answer
from .queries import active
from .schema import EDITS

OnConflict = Literal["refuse", "supersede", "keep"]
"""What an import does with edits that contradict active ones: refuse the whole bundle, let the imported edits
supersede the active ones, or keep both active."""


@dataclass(frozen=True, slots=True)
class Contradiction:
    """Edits of the same question with different answers: the answers by edit id, in the order the edits were made.

    Questions are the same if `normalize_prompt` and the image's digest are, answers if `same_answer` says so.
    there: active edits of the store. imported: edits of a bundle; empty outside an import.
    """

    prompt: str
    image_name: str | None
    there: dict[str, str]
    imported: dict[str, str]

    def __str__(self) -> str:
        about = f" ({self.image_name})" if self.image_name else ""
        places = (("active", self.there), ("in the bundle", self.imported))
        answers = (
            f"{place}: {', '.join(f'{edit_id} {answer!r}' for edit_id, answer in edits.items())}"
            for place, edits in places
            if edits
        )
        return f"{self.prompt!r}{about}: {'; '.join(answers)}"


def answers_differ(answers: Iterable[str]) -> bool:
    """Whether these answers are not all the same, as `same_answer` compares them."""
    return len(set(map(normalize_answer, answers))) > 1


def active_contradictions(connection: Connection) -> tuple[Contradiction, ...]:
    """The contradictions among active edits, by their first edit."""
    question = EDITS.c.question_sha256
    repeated = select(question).where(active()).group_by(question).having(func.count() > 1)
    columns = (EDITS.c.id, EDITS.c.prompt, EDITS.c.image_name, EDITS.c.answer, question)
    rows = connection.execute(select(*columns).where(active(), question.in_(repeated)).order_by(EDITS.c.number))
    questions: dict[str, list[Any]] = defaultdict(list)
    for row in rows:
        questions[row.question_sha256].append(row)
    return tuple(
        Contradiction(edits[0].prompt, edits[0].image_name, {edit.id: edit.answer for edit in edits}, {})
        for edits in questions.values()
        if answers_differ(edit.answer for edit in edits)
    )
