"""Where the answer begins, by the arguments of a call: each rule worked by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from liveedit.backbones.external_call import ExternalCall
from liveedit.errors import InvalidInputError

PRESENT = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0], [0, 0, 1, 1, 1, 1]]).bool()
"""Six tokens; four and padding on the right; padding on the left and four."""

NOTHING = torch.zeros_like(PRESENT)


def answer_of(fills_cache: bool = False, **keywords: Any) -> Tensor | None:
    cache = {"past_key_values": object()} if fills_cache else {}
    return ExternalCall.of((), {**keywords, **cache}).answer_mask(PRESENT)


def test_the_answer_begins_at_the_first_label() -> None:
    labels = torch.full(PRESENT.shape, -100)
    labels[0, 3], labels[0, 5] = 7, 0  # A further turn of a conversation follows the answer.
    labels[1, 2:] = 5  # Also at padding.
    wanted = torch.tensor([[0, 0, 0, 1, 1, 1], [0, 0, 1, 1, 0, 0], [0, 0, 0, 0, 0, 0]]).bool()
    for further in ({}, {"logits_to_keep": 2}, {"use_cache": False}, {"fills_cache": True}):
        found = answer_of(labels=labels, **further)
        assert found is not None and torch.equal(found, wanted)


def test_labels_of_every_token_leave_no_question() -> None:
    labels = torch.full(PRESENT.shape, -100)
    labels[2] = 3
    with pytest.raises(InvalidInputError, match="no question is left"):
        answer_of(labels=labels)


def test_labels_of_another_shape_are_refused() -> None:
    with pytest.raises(InvalidInputError, match=r"shape \(3, 5\) .* shape \(3, 6\)"):
        answer_of(labels=torch.full((3, 5), -100))


@pytest.mark.parametrize("kept", [3, torch.tensor([4, 3, 5])])
def test_the_answer_follows_the_first_position_whose_logits_are_returned(kept: int | Tensor) -> None:
    wanted = torch.tensor([[0, 0, 0, 0, 1, 1], [0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 1, 1]]).bool()
    for further in ({}, {"use_cache": False}, {"fills_cache": True}):
        found = answer_of(logits_to_keep=kept, **further)
        assert found is not None and torch.equal(found, wanted)


@pytest.mark.parametrize(
    "keywords",
    [
        {"logits_to_keep": 1},
        {"logits_to_keep": 1, "use_cache": True},
        {"fills_cache": True},
        {"fills_cache": True, "logits_to_keep": 0},
    ],
)
def test_some_calls_have_no_answer(keywords: dict[str, Any]) -> None:
    found = answer_of(**keywords)
    assert found is not None and torch.equal(found, NOTHING)


@pytest.mark.parametrize(
    "keywords",
    [
        {},
        {"logits_to_keep": 0},
        {"logits_to_keep": None},
        {"use_cache": True},
        {"logits_to_keep": 1, "use_cache": False},
    ],
)
def test_other_calls_do_not_say(keywords: dict[str, Any]) -> None:
    """The last is what generate() does without a cache, at its first token and at all others."""
    assert answer_of(**keywords) is None


def test_a_cache_that_the_model_made_itself_says_nothing() -> None:
    ids = torch.zeros(PRESENT.shape, dtype=torch.long)
    made = {"past_key_values": object(), "attention_mask": "of the decoder"}
    of_the_model = ExternalCall.of((ids,), {}).reaching(ids, made)
    assert of_the_model.answer_mask(PRESENT) is None
    of_a_part = ExternalCall().reaching(ids, made)  # generate() of a part of the model.
    found = of_a_part.answer_mask(PRESENT)
    assert found is not None and torch.equal(found, NOTHING)
    assert of_a_part.mask == "of the decoder"
