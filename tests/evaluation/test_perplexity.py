"""Perplexity against a slow float64 computation, its averages by hand, and agreement with the unedited model."""

from __future__ import annotations

import copy
import math

import pytest
import torch

from liveedit.backbones import Backbone
from liveedit.backbones.families.parts import Parts
from liveedit.backbones.families.text_only import TextBackbone
from liveedit.editors.ft import FineTuneLast
from liveedit.errors import InvalidInputError
from liveedit.evaluation.perplexity import (
    AnswerLikelihood,
    PerplexityFigures,
    agreement,
    answer_likelihoods,
    greedy_tokens,
)
from liveedit.pretraining.language_models import TINY_MISTRAL_LM
from liveedit.samples import Edit, EditCase, Question

QUESTIONS = [
    Question("This is a passage about Ada Kelstrom. She is from Kelhaven."),
    Question("Who?"),
    Question("A passage that ends in a line break.\nIt goes on " * 9),
    Question("What does Garton sell?"),
]
ANSWERS = ["She works as a bell founder, 최재봉.", "Ada", "and on " * 20, ""]


@pytest.fixture(scope="module")
def language_model() -> TextBackbone:
    return TextBackbone("random", TINY_MISTRAL_LM.build(seed=3), Parts(TINY_MISTRAL_LM.tokenizer(), None, None))


def perplexity(backbone: Backbone, questions: list[Question], answers: list[str], batch: int = 8) -> list[float]:
    return [found.perplexity for found in answer_likelihoods(backbone, questions, answers, batch)]


Slow = list[tuple[float, int, list[int]]]


@pytest.fixture(scope="module")
def slow(language_model: TextBackbone) -> Slow:
    """Nats, tokens and what is chosen instead: text by text in float64, from the tokenizer and the model alone."""
    model, tokenizer = copy.deepcopy(language_model.model).double(), language_model.tokenizer
    found = []
    for question, answer in zip(QUESTIONS, ANSWERS, strict=True):
        gap = "" if question.prompt[-1].isspace() else " "
        wanted = [tokenizer.eos_token_id]
        if answer:
            wanted = tokenizer.encode(gap + answer.strip(), add_special_tokens=False)
        prompt = tokenizer.encode(question.prompt)
        with torch.no_grad():
            logits = model(torch.tensor([[*prompt, *wanted]])).logits[0]
        nats, chosen = 0.0, []
        for place, token in enumerate(wanted, len(prompt) - 1):
            likelihoods = [math.exp(score) for score in logits[place].tolist()]
            nats -= math.log(likelihoods[token] / math.fsum(likelihoods))
            chosen.append(likelihoods.index(max(likelihoods)))
        found.append((nats, len(wanted), chosen))
    return found


@pytest.mark.parametrize("batch", [1, 3, 8])
def test_perplexity_is_that_of_a_slow_float64_computation(language_model: TextBackbone, slow: Slow, batch: int) -> None:
    found = answer_likelihoods(language_model, QUESTIONS, ANSWERS, batch)
    for likelihood, (nats, tokens, _) in zip(found, slow, strict=True):
        assert likelihood.tokens == tokens
        assert likelihood.nats == pytest.approx(nats, rel=1e-5)
        assert likelihood.perplexity == pytest.approx(math.exp(nats / tokens), rel=1e-5)
    assert perplexity(language_model, QUESTIONS, ANSWERS, batch) == [likelihood.perplexity for likelihood in found]


def test_a_model_that_finds_everything_equally_likely_has_the_vocabulary_as_perplexity() -> None:
    model = TINY_MISTRAL_LM.build(seed=3)
    with torch.no_grad():
        model.get_input_embeddings().weight.zero_()  # type: ignore[union-attr]
    backbone = TextBackbone("flat", model, Parts(TINY_MISTRAL_LM.tokenizer(), None, None))
    found = perplexity(backbone, QUESTIONS, ANSWERS)
    assert found == pytest.approx([len(backbone.tokenizer)] * 4, rel=1e-5)


def test_a_picture_counts(random_backbone: Backbone, picture) -> None:
    plain, seeing = Question("What is it?"), Question("What is it?", picture(1))
    first, second = perplexity(random_backbone, [plain, seeing], ["red ball", "red ball"])
    assert first != second
    assert perplexity(random_backbone, [seeing], ["red ball"]) == pytest.approx([second], rel=1e-4)


def test_figures_are_averaged_in_both_ways() -> None:
    """Perplexities e^1, e^3 and e^2 of 1, 3 and 2 tokens: 14 nats over 6 tokens."""
    figures = PerplexityFigures.of([AnswerLikelihood(1, 1), AnswerLikelihood(9, 3), AnswerLikelihood(4, 2)])
    assert figures.mean == pytest.approx((math.e + math.e**3 + math.e**2) / 3)
    assert figures.corpus == pytest.approx(math.exp(14 / 6))
    assert figures.median == pytest.approx(math.e**2)
    assert (figures.answers, figures.tokens) == (3, 6)
    even = PerplexityFigures.of([AnswerLikelihood(1, 1), AnswerLikelihood(3, 1)])
    assert even.median == pytest.approx((math.e + math.e**3) / 2)


def test_what_is_too_unlikely_for_floating_point_is_infinite() -> None:
    assert AnswerLikelihood(2000, 2).perplexity == math.inf
    assert PerplexityFigures.of([AnswerLikelihood(2000, 2)]).corpus == math.inf


def test_an_edit_lowers_its_perplexity_and_reset_brings_it_back(language_model: TextBackbone) -> None:
    case = EditCase("a", Edit(QUESTIONS[0], ANSWERS[0]))
    before = answer_likelihoods(language_model, QUESTIONS[:1], ANSWERS[:1])
    with FineTuneLast(language_model) as editor:
        editor.edit([(case.id, case.edit)])
        (after,) = answer_likelihoods(language_model, QUESTIONS[:1], ANSWERS[:1])
        assert after.perplexity < before[0].perplexity / 2
    assert answer_likelihoods(language_model, QUESTIONS[:1], ANSWERS[:1]) == before


def test_greedy_tokens_are_the_likeliest_along_the_continuation(language_model: TextBackbone, slow: Slow) -> None:
    found = greedy_tokens(language_model, QUESTIONS, ANSWERS, batch=3)
    assert [list(tokens) for tokens in found] == [chosen for _, _, chosen in slow]


def test_agreement_is_the_mean_share_of_equal_tokens() -> None:
    assert agreement([(1, 2, 3, 4), (5,)], [(1, 2, 9, 9), (5,)]) == pytest.approx(75)
    assert agreement([(1,)], [(1,)]) == 100
    for before, after in (([], []), ([(1,)], [(1, 2)]), ([(1,)], [(1,), (2,)])):
        with pytest.raises(InvalidInputError, match="same texts"):
            agreement(before, after)


def test_what_cannot_be_measured_is_refused(language_model: TextBackbone) -> None:
    with pytest.raises(InvalidInputError, match="4 questions and 1 answers"):
        perplexity(language_model, QUESTIONS, ["one"])
    with pytest.raises(InvalidInputError, match="batch = 0"):
        perplexity(language_model, QUESTIONS, ANSWERS, 0)
    with pytest.raises(InvalidInputError, match="no answers"):
        PerplexityFigures.of([])
    assert perplexity(language_model, [], []) == []
