"""When two prompts are the same, and that superseding and digests go by it."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest
from edit_examples import bound, make_expert
from hypothesis import given
from hypothesis import strategies as st

from liveedit.errors import OvertakenError
from liveedit.samples import Question, normalize_prompt
from liveedit.store.checksums import question_digest
from liveedit.store.store import NewEdit

SAME = [
    ("What food?", "what food"),
    ("What food?", " WHAT \t food ?\n"),
    ("What food?", "What food?!"),
    ("What food...", "What food\u2026"),
    ("What food?", "What\u00a0food\uff1f"),
    ("What food?", "Ｗｈａｔ　ｆｏｏｄ？"),
    ("What food!", "What food！"),
    ("这是什么？", "这是什么"),
    ("这是食物。", "这是食物｡"),
    ("ما هذا؟", "ما هذا"),
    ("یہ کھانا ہے۔", "یہ کھانا ہے"),
    ("¿Qué es?", "qué es"),
    ("¡¿ Qué es?!", "QUÉ ES"),
    ("Is it a cafe\u0301?", "Is it a caf\u00e9?"),
    ("STRASSE?", "straße"),
    ("ΤΙ ΕΊΝΑΙ ΟΣ", "τι είναι ος"),
    ("How ﬁne?", "How fine?"),
    ("Is 3.5 enough?", "is 3.5 enough"),
    ("\uff1f", "?"),
    ("Ǆ?", "ǆ"),
]

DIFFERENT = [
    ("What food?", "What foods?"),
    ("C++?", "C?"),
    ("C++?", "C#?"),
    ("Is it 3.5?", "Is it 35?"),
    ("Is it .5?", "Is it 5?"),
    ("Is it -5?", "Is it 5?"),
    ("Is it 10²?", "Is it 102?"),
    ("Is it 2½?", "Is it 21/2?"),
    ("What food, exactly?", "What food exactly?"),
    ("What food", "Whatfood"),
    ("cafe?", "café?"),
    ("What is (this)?", "What is this?"),
    ('"Food"?', "Food?"),
    ("?", "!"),
    ("?", "??"),
    ("?", ""),
    ("\u00bf?", "?"),
    ("...", "?"),
    ("Is U.S. it?", "Is US it?"),
    ("Why? Because.", "Why Because."),
]


@pytest.mark.parametrize(("one", "other"), SAME)
def test_the_same_prompt(one: str, other: str) -> None:
    assert normalize_prompt(one) == normalize_prompt(other)
    assert question_digest(None, one) == question_digest(None, other)
    assert Question(one).scope == Question(other).scope


@pytest.mark.parametrize(("one", "other"), DIFFERENT)
def test_another_prompt(one: str, other: str) -> None:
    assert normalize_prompt(one) != normalize_prompt(other)
    assert question_digest(None, one) != question_digest(None, other)


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("  What   FOOD ?! ", "what food"),
        ("¿¡Qué!?", "qué"),
        ("Who?Why?", "who?why"),
        (" ? ", "?"),
        ("¿ …?", "¿ ...?"),
        ("What is this:", "what is this:"),
    ],
)
def test_the_form_in_which_prompts_are_compared(prompt: str, expected: str) -> None:
    assert normalize_prompt(prompt) == expected


@given(st.text())
def test_the_form_does_not_change_again_and_is_empty_only_for_white_space(prompt: str) -> None:
    form = normalize_prompt(prompt)
    assert normalize_prompt(form) == form
    assert bool(form) == bool(prompt.strip())


@given(st.text(), st.sampled_from(["NFC", "NFD"]))
def test_the_unicode_form_of_a_prompt_does_not_matter(prompt: str, form: str) -> None:
    assert normalize_prompt(unicodedata.normalize(form, prompt)) == normalize_prompt(prompt)  # pyright: ignore


def test_a_prompt_in_another_case_and_punctuation_is_not_alone(location: Path | str) -> None:
    def about(prompt: str, answer: str) -> NewEdit:
        return NewEdit(prompt=prompt, answer=answer, editor="liveedit")

    with bound(location) as opened:
        old = opened.add(about("What food?", "soup"), make_expert(0)).id
        with pytest.raises(OvertakenError, match=old):
            opened.add(about("what FOOD", "bread"), make_expert(1), alone=True)
        opened.add(about("What drink?", "tea"), make_expert(2), alone=True)
        assert [edit.id for edit in opened.same_question(None, "¿What food\uff1f")] == [old]
        assert opened.verify() == ()
