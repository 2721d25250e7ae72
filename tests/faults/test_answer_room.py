"""Answers end where the model's positions end, and a long question does not cut the answers beside it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from liveedit.answering import Answering
from liveedit.backbones import Backbone
from liveedit.edited.model import EditedModel
from liveedit.errors import InvalidInputError
from liveedit.samples import Question
from liveedit.serving.decoding import SamplingParams
from liveedit.serving.served_model import GenerationRequest, GenerationResult, ServedModel
from liveedit.serving.settings import ServingSettings

ROOM = 5


def question_of(backbone: Backbone, tokens: int) -> Question:
    """A question of this many tokens."""
    frame = len(backbone.encode([Question("x")]).input_ids[0])
    question = Question("x" + " the" * (tokens - frame))
    assert backbone.encode([question]).input_ids.shape[1] == tokens
    return question


@pytest.fixture
def limit(family_backbone: Backbone) -> int:
    assert family_backbone.positions is not None
    return family_backbone.positions


def test_an_answer_ends_with_the_positions(family_backbone: Backbone, limit: int) -> None:
    """Models with learned positions fail beyond them, others write what they were never trained for."""
    (answer,) = Answering(family_backbone).ask([question_of(family_backbone, limit - ROOM)], 32)
    assert answer.tokens is not None and 0 < len(answer.tokens) <= ROOM
    with pytest.raises(InvalidInputError, match=f"takes {limit} tokens .*none is left for an answer"):
        Answering(family_backbone).ask([question_of(family_backbone, limit)], 32)


def test_a_long_question_does_not_cut_the_answers_beside_it(family_backbone: Backbone, limit: int) -> None:
    asked = [question_of(family_backbone, limit - ROOM), Question("How many?")]
    together = Answering(family_backbone).ask(asked, 32)
    assert [one.text for one in together] == [Answering(family_backbone).ask([one], 32)[0].text for one in asked]


@pytest.fixture
def served(tiny_llava: Backbone) -> Iterator[ServedModel]:
    with EditedModel.load(tiny_llava) as model:
        yield ServedModel(model, ServingSettings.model_validate({}))


def test_neither_does_it_in_the_service(served: ServedModel) -> None:
    """Hot answers, which seldom end by themselves."""
    backbone = served.model.backbone
    params = SamplingParams(32, 2.0, 3)
    requests = [
        GenerationRequest(question.prompt, None, params)
        for question in (question_of(backbone, int(backbone.positions or 0) - ROOM), Question("How many?"))
    ]
    alone = [served.answer([request])[0] for request in requests]
    together = served.answer(requests)
    assert together == alone
    first, second = together
    assert isinstance(first, GenerationResult) and isinstance(second, GenerationResult)
    assert first.answer_tokens <= ROOM < second.answer_tokens
