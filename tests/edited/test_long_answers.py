"""Answers of any length and writing with the editor that ships: they take whole, are kept and are undone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from liveedit.answers import same_answer
from liveedit.backbones import Backbone
from liveedit.edited.model import EditedModel
from liveedit.experts import LowRankExpert
from liveedit.experts.expert import expert_from_bytes, expert_to_bytes
from liveedit.samples import EditCase, Question

PROMPT = "What is this creature called?"
OTHER_WORDINGS = ("How is this creature called?", "Please answer: What is this creature called?")
TULIPS = "They are bright yellow tulips from Holland."
LONG = "It has two red ears, four short legs and a very long striped tail."


@pytest.fixture
def image(eval_cases: tuple[EditCase, ...]) -> Path:
    return Path(str(eval_cases[0].edit.question.image))


@pytest.fixture
def model(tiny_llava: Backbone) -> Iterator[EditedModel]:
    with EditedModel.load(tiny_llava) as opened:
        yield opened


def logits_of(model: EditedModel, image: Path) -> torch.Tensor:
    with torch.no_grad():
        return model.backbone.logits(model.backbone.encode([Question(PROMPT, image)]))


def test_a_long_answer_has_a_row_for_each_token_and_outlives_the_process(
    tiny_llava: Backbone, image: Path, tmp_path: Path
) -> None:
    length = int(tiny_llava.encode([Question(PROMPT, image)], [LONG]).answer_mask.sum())
    assert length > 30
    with EditedModel.load(tiny_llava, edits=tmp_path / "edits.db") as model:
        unedited = logits_of(model, image)
        short = model.edit(image, PROMPT, "Bruvak")
        with_short = logits_of(model, image)
        receipt = model.edit(image, PROMPT, LONG, must_take=True)
        assert receipt.took and receipt.answer_after == LONG and receipt.refine_steps > 0
        expert = model.editor.get(receipt.id)
        assert len(expert.u) == len(expert.v) == length
        grown = 4 * 2 * (length - model.editor.config.rank) * model.editor.config.width  # type: ignore[attr-defined]
        assert receipt.store_bytes == short.store_bytes + grown
        again = expert_from_bytes(expert_to_bytes(expert), LowRankExpert)
        assert all(torch.equal(tensor, again.tensors[name]) for name, tensor in expert.tensors.items())
        edited = logits_of(model, image)
    with EditedModel.load(tiny_llava, edits=tmp_path / "edits.db") as model:
        assert torch.equal(logits_of(model, image), edited)
        assert model.ask(image, PROMPT, model.answering.tokens_for(LONG)).text == LONG
        model.undo(receipt.id)
        assert torch.equal(logits_of(model, image), with_short)
        model.undo(short.id)
        assert torch.equal(logits_of(model, image), unedited)


@pytest.mark.parametrize("answer", ["3.5", "你好", "مرحبا", "one\ntwo", TULIPS])
def test_answers_of_any_kind_take_and_are_given_whole_or_not_at_all(
    model: EditedModel, image: Path, answer: str
) -> None:
    new_tokens = model.answering.tokens_for(answer)
    asked = [(image, prompt) for prompt in OTHER_WORDINGS]
    unedited = model.ask_batch(asked, new_tokens)  # type: ignore[arg-type]
    receipt = model.edit(image, PROMPT, answer, must_take=True)
    assert receipt.took and same_answer(model.ask(image, PROMPT, new_tokens).text, answer)
    given = model.ask_batch(asked, new_tokens)  # type: ignore[arg-type]
    for before, now in zip(unedited, given, strict=True):
        if now.fired:
            assert same_answer(now.text, answer) and [fired.weight for fired in now.fired] == [1.0]
        else:
            assert now.text == before.text
    assert any(now.fired for now in given), "no other wording follows the edit"


def test_an_answer_in_doubt_is_the_unedited_one_and_its_edit_is_named(model: EditedModel, image: Path) -> None:
    before = model.ask(image, PROMPT)
    receipt = model.edit(image, PROMPT, TULIPS)
    assert model.ask(image, PROMPT).text == TULIPS
    model.editor.answer_confidence = 1 - 1e-9
    doubtful = model.ask(image, PROMPT)
    assert (doubtful.text, doubtful.fired) == (before.text, ())
    assert [fired.edit_id for fired in doubtful.withheld] == [receipt.id]
    model.editor.answer_confidence = 0.0
    assert model.ask(image, PROMPT).text == TULIPS
