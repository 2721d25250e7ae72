"""Edits of nearly the same question with different answers: each prompt has its own answer, and none mixes two."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from liveedit.backbones import Backbone
from liveedit.edited.model import EditedModel
from liveedit.samples import EditCase, Question

EDITS = {
    "What is this creature called?": "Bruvak",
    "How is this creature called?": "Helmodin",
    "What is the creature called?": "Tarosk",
}


@pytest.fixture
def model(tiny_llava: Backbone) -> Iterator[EditedModel]:
    with EditedModel.load(tiny_llava) as opened:
        yield opened


@pytest.fixture
def image(eval_cases: tuple[EditCase, ...]) -> Path:
    return Path(str(eval_cases[0].edit.question.image))


def logits_of(model: EditedModel, image: Path) -> list[torch.Tensor]:
    with torch.no_grad():
        return [model.backbone.logits(model.backbone.encode([Question(prompt, image)])) for prompt in EDITS]


def equal(some: list[torch.Tensor], others: list[torch.Tensor]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(some, others, strict=True))


def test_each_wording_has_its_own_answer_and_undoing_leaves_no_bit(model: EditedModel, image: Path) -> None:
    states: dict[frozenset[str], list[torch.Tensor]] = {frozenset(): logits_of(model, image)}
    ids: dict[str, str] = {}
    for prompt, answer in EDITS.items():
        receipt = model.edit(image, prompt, answer, must_take=True)
        assert receipt.evidence.collisions == () and receipt.evidence.supersedes == ()
        ids[receipt.id] = prompt
    for edit_id, prompt in ids.items():
        found = model.ask(image, prompt)
        assert found.text == EDITS[prompt]
        assert [(fired.edit_id, fired.weight) for fired in found.fired] == [(edit_id, 1.0)]
    together = model.ask_batch([(image, prompt) for prompt in EDITS])
    assert [answer.text for answer in together] == list(EDITS.values())
    states[frozenset(ids)] = logits_of(model, image)
    for order in itertools.permutations(ids):
        active = set(ids)
        for edit_id in order:
            model.undo(edit_id)
            active.remove(edit_id)
            logits = logits_of(model, image)
            assert equal(states.setdefault(frozenset(active), logits), logits)
        for edit_id in order:
            model.redo(edit_id)
            active.add(edit_id)
            logits = logits_of(model, image)
            assert equal(states.setdefault(frozenset(active), logits), logits)
    assert len(states) == 8


def test_the_rest_keeps_its_answers_when_one_is_undone(model: EditedModel, image: Path) -> None:
    ids = {prompt: model.edit(image, prompt, answer).id for prompt, answer in EDITS.items()}
    first, *others = EDITS
    unedited_or_of_another = set(EDITS.values()) - {EDITS[first]}
    model.undo(ids[first])
    assert [model.ask(image, prompt).text for prompt in others] == [EDITS[prompt] for prompt in others]
    assert model.ask(image, first).text in unedited_or_of_another, "the nearest of the others answers whole"
