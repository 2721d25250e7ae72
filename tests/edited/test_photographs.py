"""Edits of real photographs: other wordings of the question give the whole answer or the unedited one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from liveedit.answers import same_answer
from liveedit.backbones import Backbone
from liveedit.edited.model import EditedModel

DATA = Path(os.environ.get("LIVEEDIT_DATA", Path(__file__).parents[2] / ".." / "shared" / "data"))
PHOTOGRAPHS = DATA / "caltech101"
QUESTION = "What is in this picture?"
OTHER_WORDINGS = (
    "what is in this picture",
    "What is on this picture?",
    "So, what is in this picture?",
    "In this picture, what is there?",
    "Waht is in this picture?",
)
EDITS = [
    ("sunflower", "They are bright yellow tulips from Holland."),
    ("accordion", "An accordion."),
    ("airplanes", "3.5"),
    ("anchor", "锚"),
    ("bonsai", "A bonsai tree,\nforty years old"),
    ("brain", "دماغ"),
    ("butterfly", "A swallowtail on a thistle, seen from the side"),
    ("camera", "Leica M3"),
]


@pytest.fixture
def model(tiny_llava: Backbone) -> Iterator[EditedModel]:
    with EditedModel.load(tiny_llava) as loaded:
        yield loaded


@pytest.mark.slow
@pytest.mark.skipif(
    not PHOTOGRAPHS.is_dir(),
    reason="photographs are not part of the project: set LIVEEDIT_DATA to a folder that contains Caltech-101",
)
@pytest.mark.parametrize(("kind", "answer"), EDITS, ids=[kind for kind, _ in EDITS])
def test_an_edit_of_a_photograph_is_whole_or_not_at_all(model: EditedModel, kind: str, answer: str) -> None:
    photograph = min((PHOTOGRAPHS / kind).iterdir())
    questions = [(photograph, prompt) for prompt in (QUESTION, *OTHER_WORDINGS)]
    tokens = model.answering.tokens_for(answer)
    before = [found.text for found in model.ask_batch(questions, tokens)]
    receipt = model.edit(photograph, QUESTION, answer)
    assert receipt.took
    own, *others = [found.text for found in model.ask_batch(questions, tokens)]
    assert own == answer
    for text, unedited, prompt in zip(others, before[1:], OTHER_WORDINGS, strict=True):
        assert same_answer(text, answer) or text == unedited, (prompt, text)
    model.undo(receipt.id)
    assert [found.text for found in model.ask_batch(questions, tokens)] == before
