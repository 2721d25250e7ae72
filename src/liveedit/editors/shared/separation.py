"""How well a language model's states distinguish a reworded question from one about another subject.

It is measured on the neutral questions, with states that the caller has read at one layer. What distinguishes them
best differs from model to model, and so does the threshold.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Final

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from ...samples import Question
from .neutral_questions import NEUTRAL_QUESTIONS

Calibrated = Annotated[
    bool,
    Field(
        description="In a language model: measure on neutral questions at which layer two wordings of a question are "
        "distinguished best from other subjects, and take it and its threshold (ours). If no layer distinguishes most "
        "of them, and with images, neither is taken.",
    ),
]
"""The setting of an editor that measures a separation."""

FalseFiring = Annotated[
    float,
    Field(
        gt=0,
        lt=1,
        description="Share of the pairs of neutral questions that ask the same of two subjects and may reach the "
        "measured threshold.",
    ),
]
"""The setting by which the threshold of a separation is chosen."""

_SUBJECTS: Final = 4
_WORDINGS: Final = 2
"""Of each relation, the subjects that are asked about, and their wordings: those that are questions."""

_LEAST_RECALL: Final = 0.5
"""Share of rewordings that must pass the threshold. With fewer, a model does not know the language of the questions, as
the built-in ones, or its states at this layer do not say what is asked."""


@dataclass(frozen=True)
class Separation:
    """How well the states at one layer distinguish a reworded question from one about another subject.

    threshold: the cosine that a given share of the latter pairs reaches. recall: the share of rewordings that reach it.
    """

    layer: int
    threshold: float
    recall: float

    @property
    def useful(self) -> bool:
        """Whether most rewordings are distinguished from other subjects."""
        return self.recall >= _LEAST_RECALL

    @classmethod
    def of(cls, layer: int, features: Float[Tensor, "questions width"], false_firing: float) -> Separation:
        """What the features of `separation_questions`, in their order, show.

        false_firing: share of the pairs of one relation and two subjects that may reach the threshold.
        """
        unit = F.normalize(features, dim=1)
        # (relations, subjects, wordings, d)
        grouped = unit.view(len(NEUTRAL_QUESTIONS), _SUBJECTS, _WORDINGS, -1)
        cosines = torch.einsum("rswd,rtvd->rsvwt", grouped, grouped)  # Subject, wording, wording, subject.
        same_subject = torch.eye(_SUBJECTS, dtype=torch.bool)[:, None, None, :].expand(cosines.shape[1:])
        same_wording = torch.eye(_WORDINGS, dtype=torch.bool)[None, :, :, None].expand(cosines.shape[1:])
        others = cosines[:, ~same_subject].flatten()
        reworded = cosines[:, same_subject & ~same_wording].flatten()
        threshold = round(float(others.quantile(1 - false_firing)), 2)
        return cls(layer, threshold, float((reworded >= threshold).float().mean()))


def separation_questions() -> list[Question]:
    """The neutral questions that a separation is measured on: of each relation some subjects, in two wordings each."""
    return [
        Question(text) for relation in NEUTRAL_QUESTIONS for asked in relation[:_SUBJECTS] for text in asked[:_WORDINGS]
    ]


def most_useful(found: Iterable[Separation]) -> Separation | None:
    """The layer that distinguishes most, the earliest of equals; None if no layer is useful."""
    best = max(found, key=lambda one: one.recall, default=None)
    return best if best is not None and best.useful else None
