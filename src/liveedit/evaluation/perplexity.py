"""Edits that are passages of text: perplexity of the answers, and agreement with the unedited model.

SelfCheckGPT's hallucinations are measured in this way. WISE (Wang et al., NeurIPS 2024, after GRACE, Hartvigsen et
al., NeurIPS 2023) reports the perplexity of these long answers under the edited model, since no long answer would match
exactly, and as locality the share of tokens along an unrelated text at which the edited model would choose what the
unedited model chooses.

For the answer o_1 ... o_n to a prompt p

    perplexity = exp(-1/n sum_i ln P(o_i | p, o_1 ... o_(i-1)))

in nats per token of the model's own tokenizer: figures of models with different tokenizers cannot be compared. The
end-of-sequence token after an answer is not counted, as elsewhere in the bench.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self, TypeVar

import torch
from torch import Tensor

from ..backbones import Backbone, TokenBatch
from ..errors import InvalidInputError
from ..progress import Progress, no_progress
from ..samples import EditCase, Question
from .protocol import AskedProbe, probes_of

BATCH = 8
"""Default number of questions per forward pass: passages are long, and logits are kept for every position."""

Found = TypeVar("Found")


@dataclass(frozen=True, slots=True)
class AnswerLikelihood:
    """How likely a model finds one answer: the sum of -ln P over its tokens, and how many they are."""

    nats: float
    tokens: int

    @property
    def perplexity(self) -> float:
        """exp(nats / tokens); infinite if that exceeds floating point."""
        return _exp(self.nats / self.tokens)


@dataclass(frozen=True, slots=True)
class PerplexityFigures:
    """Perplexity over all answers: mean, median and over the corpus."""

    mean: float
    """Mean of the answers' perplexities: as WISE reports it. A single very unlikely answer can outweigh all others."""
    corpus: float
    """exp of the mean over all tokens of all answers: the perplexity of one long text."""
    median: float
    answers: int
    tokens: int

    @classmethod
    def of(cls, likelihoods: Sequence[AnswerLikelihood]) -> Self:
        """The figures of these answers. Raises `InvalidInputError` if there are none."""
        if not likelihoods:
            raise InvalidInputError("The perplexity of no answers was requested. Give at least one.")
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


def answer_likelihoods(
    backbone: Backbone,
    questions: Sequence[Question],
    answers: Sequence[str],
    batch: int = BATCH,
    progress: Progress = no_progress,
) -> list[AnswerLikelihood]:
    """How likely each answer is after its question; of an empty answer, how likely the model is to answer nothing.

    Raises `InvalidInputError` if the numbers of questions and answers differ, or if an input is too long.
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
    progress: Progress = no_progress,
) -> list[tuple[int, ...]]:
    """The tokens that the model would choose along each continuation (after an empty one: its next token)."""
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


class PassageScores:
    """Perplexity and agreement over all groups of edits of one row of the bench."""

    def __init__(self, backbone: Backbone):
        self.backbone = backbone
        self._unedited: dict[tuple[str, int], tuple[int, ...]] = {}
        self._likelihoods: list[AnswerLikelihood] = []
        self._before: list[tuple[int, ...]] = []
        self._after: list[tuple[int, ...]] = []

    def ask_unedited(self, cases: Sequence[EditCase]) -> None:
        """Record what the model chooses along unrelated texts. No edit may be active."""
        missing = [item for item in _along_texts(cases) if item.key not in self._unedited]
        found = self._greedy(missing)
        self._unedited |= {item.key: tokens for item, tokens in zip(missing, found, strict=True)}

    def add(self, cases: Sequence[EditCase]) -> None:
        """Measure these edits, which are active."""
        edits = [case.edit for case in cases]
        questions, answers = [edit.question for edit in edits], [edit.answer for edit in edits]
        self._likelihoods += answer_likelihoods(self.backbone, questions, answers)
        texts = _along_texts(cases)
        self._before += [self._unedited[item.key] for item in texts]
        self._after += self._greedy(texts)

    def summary(self) -> dict[str, Any]:
        """`perplexity` of the answers, and `agreement` with the unedited model in percent (None without such texts)."""
        shared = agreement(self._before, self._after) if self._before else None
        return {"perplexity": asdict(PerplexityFigures.of(self._likelihoods)), "agreement": shared}

    def _greedy(self, texts: Sequence[AskedProbe]) -> list[tuple[int, ...]]:
        answers = [str(item.probe.answer) for item in texts]
        return greedy_tokens(self.backbone, [item.probe.question for item in texts], answers) if texts else []


@torch.inference_mode()
def _along(
    backbone: Backbone,
    questions: Sequence[Question],
    answers: Sequence[str],
    batch: int,
    progress: Progress,
    evaluate: Callable[[Tensor, Tensor], Found],
) -> list[Found]:
    """What `evaluate` returns for the logits (n, vocabulary) that predict an answer's tokens (n,), answer by answer."""
    if len(questions) != len(answers):
        raise InvalidInputError(f"{len(questions)} questions and {len(answers)} answers were given. Give one for each.")
    if batch < 1:
        raise InvalidInputError(f"batch = {batch} was given. Give 1 or more.")
    # Texts of similar length share a batch, which needs little padding.
    order = sorted(range(len(questions)), key=lambda index: len(questions[index].prompt) + len(answers[index]))
    found: dict[int, Found] = {}
    for start in range(0, len(order), batch):
        part = order[start : start + batch]
        inputs = backbone.encode([questions[index] for index in part], [answers[index] for index in part])
        logits = backbone.logits(inputs)
        for row, index in enumerate(part):
            positions = _counted(inputs, row)
            found[index] = evaluate(logits[row, positions - 1], inputs.input_ids[row, positions])
        progress(len(found), len(order))
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


def _along_texts(cases: Sequence[EditCase]) -> list[AskedProbe]:
    """The text locality probes with a text, outside every edit's scope."""
    asked, _ = probes_of(cases, ("text_locality",))
    return [item for item in asked if item.probe.name == "text_locality" and (item.probe.answer or "").strip()]
