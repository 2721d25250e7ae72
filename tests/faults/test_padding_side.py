"""The side that a batch is padded on changes neither answers nor scores, and padding is never scored."""

from __future__ import annotations

import pytest
import torch

from liveedit.answers import Answer
from liveedit.backbones import Backbone
from liveedit.errors import InvalidInputError
from liveedit.evaluation.perplexity import answer_likelihoods
from liveedit.evaluation.probing import choose_along
from liveedit.samples import Probe, Question

ANSWERS = ["red", "in the garden behind the old house", "four"]
UNANSWERED = [Answer("", ())] * len(ANSWERS)
"""Free answers that spare no teacher forcing."""


def test_every_answer_token_is_scored_whichever_side_is_padded(
    family_backbone: Backbone, asked: list[Question]
) -> None:
    wanted = [token for tokens in family_backbone.answer_tokens(asked, ANSWERS) for token in tokens]
    found = []
    for side in ("left", "right"):
        inputs = family_backbone.encode(asked, ANSWERS, side)
        assert inputs.attention_mask.min() == 0, "a batch without padding tests nothing"
        assert inputs.targets.tolist() == wanted
        with torch.no_grad():
            found.append(family_backbone.logits(inputs)[inputs.predicting])
    torch.testing.assert_close(*found, atol=3e-4, rtol=1e-3)


def test_teacher_forced_scores_do_not_depend_on_the_batch(family_backbone: Backbone, asked: list[Question]) -> None:
    probes = [Probe("text_generality", question) for question in asked]
    alone, together = (
        choose_along(family_backbone, probes, ANSWERS, UNANSWERED, batch, lambda more: None) for batch in (1, 3)
    )
    assert together == alone
    tokens = family_backbone.answer_tokens(asked, ANSWERS)
    assert [list(expected) for expected, _ in together] == [row[:-1] for row in tokens], "no padding and no end"
    one_by_one, batched = (answer_likelihoods(family_backbone, asked, ANSWERS, batch) for batch in (1, 3))
    for found, wanted in zip(batched, one_by_one, strict=True):
        assert found.tokens == wanted.tokens and found.nats == pytest.approx(wanted.nats, rel=1e-4)


def test_a_right_padded_batch_is_not_generated_from(family_backbone: Backbone, asked: list[Question]) -> None:
    with pytest.raises(InvalidInputError, match="padding='left'"):
        family_backbone.generate(family_backbone.encode(asked), 2)
    unpadded = family_backbone.encode(asked[:1])
    assert family_backbone.generate(unpadded, 2) == family_backbone.generate(
        family_backbone.encode(asked[:1], padding="left"), 2
    )
