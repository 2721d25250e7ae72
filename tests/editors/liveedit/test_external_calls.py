"""Calls of the model that do not come through Backbone: routing never reads the answer, or a warning is given."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from forced_experts import fired_ids, forced_expert
from torch import Tensor

from liveedit.backbones import HiddenTokens, TokenBatch
from liveedit.editors.liveedit import LiveEdit
from liveedit.errors import InvalidInputError
from liveedit.samples import Question

ANSWERS = ["red", "the garden behind the old house", "four"]
WARNING = "does not say where an answer begins"


@pytest.fixture
def edited(editor: LiveEdit, questions: list[Question]) -> LiveEdit:
    """With an expert for each question."""
    for number, question in enumerate(questions):
        others = [other for other in questions if other is not question]
        editor.add(str(number), forced_expert(editor, question, others, number))
    return editor


@pytest.fixture
def seen(edited: LiveEdit) -> list[HiddenTokens]:
    """What the router is given, call by call."""
    found: list[HiddenTokens] = []
    route = edited._hook.router
    edited._hook.router = lambda tokens: (found.append(tokens), route(tokens))[1]
    return found


def called(editor: LiveEdit, inputs: TokenBatch, **further: Any) -> Tensor:
    with torch.no_grad():
        return editor.backbone.model(**inputs.model_inputs(), **further).logits


def labels_of(inputs: TokenBatch) -> Tensor:
    return inputs.input_ids.masked_fill(~inputs.answer_mask, -100)


def routed(editor: LiveEdit) -> list[tuple[str, float, float]]:
    fired = editor.fired()
    assert fired is not None and all(fired)
    return [(one.edit_id, one.weight, one.margin) for row in fired for one in row]


@pytest.mark.parametrize("padding", ["left", "right"])
def test_labels_keep_the_answer_out_of_routing(
    edited: LiveEdit, questions: list[Question], seen: list[HiddenTokens], padding: str
) -> None:
    backbone = edited.backbone
    with torch.no_grad():
        backbone.logits(backbone.encode(questions))
    alone = routed(edited)
    for answers in (ANSWERS, ANSWERS[::-1]):
        inputs = backbone.encode(questions, answers, padding)
        direct = called(edited, inputs, labels=labels_of(inputs))
        assert torch.equal(seen[-1].roles, inputs.roles)
        for (name, weight, margin), (other, other_weight, other_margin) in zip(alone, routed(edited), strict=True):
            assert name == other
            assert other_weight == pytest.approx(weight, abs=1e-5)
            assert other_margin == pytest.approx(margin, rel=1e-3)
        with torch.no_grad():
            assert torch.equal(direct, backbone.logits(inputs))


def test_the_number_of_returned_logits_says_it_too(
    edited: LiveEdit, questions: list[Question], seen: list[HiddenTokens]
) -> None:
    backbone = edited.backbone
    inputs = backbone.encode(questions[1:2], ANSWERS[1:2])
    answer = int(inputs.answer_mask.sum())
    kept = called(edited, inputs, logits_to_keep=answer + 1)
    assert torch.equal(seen[-1].roles, inputs.roles)
    with torch.no_grad():
        torch.testing.assert_close(kept, backbone.logits(inputs)[:, -answer - 1 :])


def test_a_call_that_does_not_say_is_warned_of(
    edited: LiveEdit, questions: list[Question], seen: list[HiddenTokens]
) -> None:
    inputs = edited.backbone.encode(questions, ANSWERS)
    with pytest.warns(UserWarning, match=WARNING):
        called(edited, inputs)
    assert torch.equal(seen[-1].prompt_mask, inputs.text_mask)


def test_generating_without_a_cache_is_warned_of(edited: LiveEdit, questions: list[Question]) -> None:
    inputs = edited.backbone.encode(questions[:1])
    with pytest.warns(UserWarning, match=WARNING), torch.no_grad():
        edited.backbone.model.generate(**inputs.model_inputs(), max_new_tokens=2, use_cache=False)  # type: ignore[operator]


def test_guessed_tokens_are_no_part_of_the_question(
    edited: LiveEdit, questions: list[Question], seen: list[HiddenTokens]
) -> None:
    """Assisted generation: the first pass may hold candidates of the answer, here copied from the question."""
    backbone = edited.backbone
    inputs = backbone.encode(questions[1:2])
    with torch.no_grad():
        backbone.model.generate(  # type: ignore[operator]
            **inputs.model_inputs(),
            max_new_tokens=4,
            do_sample=False,
            prompt_lookup_num_tokens=3,
            max_matching_ngram_size=1,
        )
    (tokens,) = seen
    assert tokens.roles.shape[1] > inputs.roles.shape[1]
    assert torch.equal(tokens.prompt_mask.sum(1), inputs.prompt_mask.sum(1))
    assert fired_ids(edited) == [["1"]]


def test_labels_of_everything_are_refused_and_the_model_stays_usable(
    edited: LiveEdit, questions: list[Question]
) -> None:
    inputs = edited.backbone.encode(questions, ANSWERS)
    with pytest.raises(InvalidInputError, match="no question is left"):
        called(edited, inputs, labels=inputs.input_ids)
    called(edited, inputs, labels=labels_of(inputs))
    assert fired_ids(edited) == [["0"], ["1"], ["2"]]


def test_without_edits_every_call_is_taken_as_it_is(editor: LiveEdit, questions: list[Question]) -> None:
    inputs = editor.backbone.encode(questions, ANSWERS)
    called(editor, inputs)
    called(editor, inputs, labels=inputs.input_ids)
    editor.add("edit", forced_expert(editor, questions[0]))
    with editor.paused():
        called(editor, inputs)
