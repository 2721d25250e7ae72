"""Perplexity of edited answers, and agreement with the unedited model: how SelfCheckGPT's hallucinations are measured.

WISE (Wang et al., NeurIPS 2024, after GRACE, Hartvigsen et al., NeurIPS 2023) reports of these long answers their
perplexity under the edited model, in place of an exact match that no sentence would reach, and as locality the share
of tokens along an unrelated text at which the edited model would choose what the unedited model chooses.

For the answer o_1 ... o_n to a prompt p

    perplexity = exp(-1/n sum_i ln P(o_i | p, o_1 ... o_(i-1)))

in nats per token of the model's own tokenizer: figures of models with different tokenizers cannot be compared. The
end-of-sequence token behind an answer is not counted, as elsewhere in the bench.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self, TypeVar

import torch
from torch import Tensor

from ..backbones import Backbone, TokenBatch
from ..errors import InvalidInputError
from ..samples import EditCase, Question

BATCH = 8
"""Questions per forward pass, unless told otherwise: passages are long, and every position has its logits."""

Found = TypeVar("Found")
Progress = Callable[[int], None]
"""Called with how many more questions are done."""


@dataclass(frozen=True, slots=True)
class AnswerLikelihood:
    """How likely a model finds one answer: the sum of -ln P over its tokens, and how many they are."""

    nats: float
    tokens: int

    @property
    def perplexity(self) -> float:
        """exp(nats / tokens); infinite where that is beyond floating point."""
        return _exp(self.nats / self.tokens)


@dataclass(frozen=True, slots=True)
class PerplexityFigures:
    """Perplexity over all answers, in the two ways in which it is averaged."""

    mean: float
    """Mean of the answers' perplexities: WISE's figure. One hopeless answer can outweigh all others."""
    corpus: float
    """exp of the mean over all tokens of all answers: the perplexity of one long text."""
    median: float
    answers: int
    tokens: int

    @classmethod
    def of(cls, likelihoods: Sequence[AnswerLikelihood]) -> Self:
        """The figures of these answers. Raises `InvalidInputError` where there are none."""
        if not likelihoods:
            raise InvalidInputError("The perplexity of no answers was asked for. Give at least one.")
        single = sorted(likelihood.perplexity for likelihood in likelihoods)
        tokens = sum(likelihood.tokens for likelihood in likelihoods)
        middle = len(single) // 2
        return cls(
            mean=math.fsum(single) / len(single),
            corpus=_exp(math.fsum(likelihood.nats for likelihood in likelihoods) / tokens),
            median=single[middle] if len(single) % 2 else (single[middle - 1] + single[middle]) / 2,
            answers=len(single),
            tokens=tokens,
        )


def perplexity(
    backbone: Backbone, questions: Sequence[Question], answers: Sequence[str], batch: int = BATCH
) -> list[float]:
    """The perplexity of each answer behind its question, with whatever edits are in force."""
    return [likelihood.perplexity for likelihood in answer_likelihoods(backbone, questions, answers, batch)]


def edits_perplexity(backbone: Backbone, cases: Sequence[EditCase], batch: int = BATCH) -> PerplexityFigures:
    """Perplexity of the edits' own answers, with whatever edits are in force."""
    edits = [case.edit for case in cases]
    return PerplexityFigures.of(
        answer_likelihoods(backbone, [edit.question for edit in edits], [edit.answer for edit in edits], batch)
    )


def answer_likelihoods(
    backbone: Backbone,
    questions: Sequence[Question],
    answers: Sequence[str],
    batch: int = BATCH,
    progress: Progress = lambda done: None,
) -> list[AnswerLikelihood]:
    """How likely each answer is behind its question; of an empty answer, how likely the model is to say nothing.

    Raises `InvalidInputError` where the numbers of questions and answers differ, or an input is too long.
    """

    def likelihood(logits: Tensor, wanted: Tensor) -> AnswerLikelihood:
        nats = -logits.float().log_softmax(-1).gather(-1, wanted[:, None])
        return AnswerLikelihood(float(nats.double().sum()), len(wanted))

    return _along(backbone, questions, answers, batch, progress, likelihood)


def greedy_tokens(
    backbone: Backbone,
    questions: Sequence[Question],
    continuations: Sequence[str],
    batch: int = BATCH,
    progress: Progress = lambda done: None,
) -> list[tuple[int, ...]]:
    """The tokens that the model would choose along each continuation (behind an empty one: its very next token)."""
    return _along(
        backbone, questions, continuations, batch, progress, lambda logits, _: tuple(logits.argmax(-1).tolist())
    )


def agreement(before: Sequence[Sequence[int]], after: Sequence[Sequence[int]]) -> float:
    """Mean share of equal tokens in percent, text by text: WISE's locality, from `greedy_tokens` of both models."""
    if not before or [len(tokens) for tokens in before] != [len(tokens) for tokens in after]:
        raise InvalidInputError(
            f"Tokens along {len(before)} texts before and {len(after)} after were given. Give those of the same texts, "
            "of one at least."
        )
    shares = [sum(map(int.__eq__, a, b)) / len(a) for a, b in zip(before, after, strict=True)]
    return 100 * math.fsum(shares) / len(shares)


@torch.inference_mode()
def _along(
    backbone: Backbone,
    questions: Sequence[Question],
    answers: Sequence[str],
    batch: int,
    progress: Progress,
    look: Callable[[Tensor, Tensor], Found],
) -> list[Found]:
    """What `look` finds in the logits (n, vocabulary) that predict an answer's tokens (n,), answer by answer."""
    if len(questions) != len(answers):
        raise InvalidInputError(f"{len(questions)} questions and {len(answers)} answers were given. Give one for each.")
    if batch < 1:
        raise InvalidInputError(f"batch = {batch} was given. Give 1 or more.")
    # Texts of like length together: little padding.
    order = sorted(range(len(questions)), key=lambda index: len(questions[index].prompt) + len(answers[index]))
    found: dict[int, Found] = {}
    for start in range(0, len(order), batch):
        part = order[start : start + batch]
        inputs = backbone.encode([questions[index] for index in part], [answers[index] for index in part])
        logits = backbone.logits(inputs)
        for row, index in enumerate(part):
            positions = _counted(inputs, row)
            found[index] = look(logits[row, positions - 1], inputs.input_ids[row, positions])
        progress(len(part))
    return [found[index] for index in range(len(questions))]


def _counted(inputs: TokenBatch, row: int) -> Tensor:
    """Positions of the answer's tokens, without the end token unless it stands alone."""
    positions = inputs.answer_mask[row].nonzero().flatten()
    return positions[:-1] if len(positions) > 1 else positions


def _exp(nats: float) -> float:
    try:
        return math.exp(nats)
    except OverflowError:
        return math.inf
