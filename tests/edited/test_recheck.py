"""Edits that are asked again: whether they hold, and whether what is said now is broken."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from edit_examples import bound, make_edit, make_expert

from liveedit.answers import Answer
from liveedit.edited.recheck import CheckedEdit, check_edits
from liveedit.samples import Question


@pytest.mark.parametrize(
    ("now", "before", "holds", "broken"),
    [
        ("Teal.", "red", True, False),
        ("teal", None, True, False),
        ("the red", "Red", False, False),
        ("teal red", "red", False, True),
        ("", "red", False, True),
        ("", "", False, False),
        ("tea", None, False, None),
        (None, "red", None, None),
    ],
)
def test_what_is_neither_the_edit_s_answer_nor_the_one_before_is_broken(
    now: str | None, before: str | None, holds: bool | None, broken: bool | None
) -> None:
    checked = CheckedEdit("1", "What color?", "teal", now, "text", (), before)
    assert (checked.holds, checked.broken) == (holds, broken)
    assert checked.to_dict()["broken"] is broken and checked.to_dict()["answer_before"] == before


class SaysSo:
    """Answers each question with its own words."""

    def tokens_for(self, answer: str) -> int:
        return 8

    def ask(self, questions: Sequence[Question], max_new_tokens: int) -> list[Answer]:
        return [Answer(question.prompt) for question in questions]


def test_the_stored_answer_before_is_what_is_compared_with() -> None:
    with bound(None) as store:
        for prompt, before in (("teal", "red"), ("red", "red"), ("tered", "red"), ("blue", None)):
            edit = replace(make_edit(), prompt=prompt, answer="teal", answer_before=before, image_sha256=None)
            store.add(edit, make_expert())
        answering: Any = SaysSo()
        found = list(check_edits(answering, store, store.list(), batch=3))
    assert [checked.holds for checked in found] == [True, False, False, False]
    assert [checked.broken for checked in found] == [False, False, True, None]
