"""Thresholds of both routers, chosen on cases that the modules were not trained on.

A trained router is more confident of the images and wordings of its training than of others: what is in scope of an
edit falls below thresholds that separated all of the training.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ...errors import InvalidInputError

_LOST_AT_MOST: Final = 0.5
"""The visual threshold is looked for among values that keep at least this share of the edits' own queries."""

_TRIED: Final = 101
"""Visual thresholds that are tried."""

_SMALL: Final = 1e-4
"""By how much a threshold lies below the query that is to pass, or above the one that is not."""


@dataclass(frozen=True)
class RoutedQueries:
    """How queries that an editor can reach compare with edits that are active together.

    margins: visual similarity minus the sentinel's. scores: prompt similarities s. own: edits in whose scope the query
    is.
    """

    margins: Float[Tensor, "queries edits"]
    scores: Float[Tensor, "queries edits"]
    own: Bool[Tensor, "queries edits"]


@dataclass(frozen=True)
class Thresholds:
    """What `LiveEditConfig.visual_threshold` and `prompt_threshold` are to be, and what they gave on the cases.

    found: share of the queries in scope of an edit that pass both thresholds with an edit of their own. false_firing:
    share of the others that pass both with any edit. A query that passes gives an edit that passed alone at least half
    of the weight.
    """

    visual: float
    prompt: float
    found: float
    false_firing: float


def choose_thresholds(queries: RoutedQueries, false_firing: float) -> Thresholds:
    """The pair of thresholds with which most queries pass to their own edit, and at most `false_firing` of the others.

    false_firing: a share, from 0 up to 1. Of equally good pairs, that with the largest visual threshold. Raises
    `InvalidInputError` for another share, if there is no query in scope, and if there is none outside.
    """
    if not 0 <= false_firing < 1:
        raise InvalidInputError(f"false_firing={false_firing} was given. Give a share of the questions from 0 up to 1.")
    inside = queries.own.any(1)
    if not bool(inside.any()) or bool(inside.all()):
        raise InvalidInputError(
            f"The cases have {int(inside.sum())} questions in scope of an edit and {int((~inside).sum())} others that "
            "the editor can reach. Give cases with both."
        )
    best = queries.margins.masked_fill(~queries.own, -torch.inf)[inside].max(1).values
    tried = best.quantile(torch.linspace(0, _LOST_AT_MOST, _TRIED, device=best.device)).flip(0).tolist()
    lowest = float(queries.scores[queries.own].min()) - _SMALL
    pairs = [_with_visual(queries, inside, visual - _SMALL, lowest, false_firing) for visual in tried]
    return max(pairs, key=lambda pair: pair.found)


def _with_visual(
    queries: RoutedQueries, inside: Tensor, visual: float, lowest: float, false_firing: float
) -> Thresholds:
    """The lowest prompt threshold that this visual one allows; `lowest` if it allows any."""
    scores = queries.scores.masked_fill(queries.margins <= visual, -torch.inf)
    own = scores[inside].masked_fill(~queries.own[inside], -torch.inf).max(1).values
    outside = scores[~inside].max(1).values.sort(descending=True).values
    allowed = int(false_firing * len(outside))
    prompt = max(float(outside[allowed]) + _SMALL, lowest)
    found, false = (float((part > prompt).double().mean()) for part in (own, outside))
    return Thresholds(visual, prompt, found, false)
