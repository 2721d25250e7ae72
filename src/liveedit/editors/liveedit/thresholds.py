"""Thresholds of both routers, chosen on cases that the modules were not trained on.

A trained router is surer of the images and wordings of its training than of others: what is in scope of an edit falls
below thresholds that separated all of the training.
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
    """How queries compare with edits that are active together.

    margins: visual similarity minus the sentinel's. scores: prompt similarities s. own: edits in whose scope the query
    is. outside: queries that are in the scope of none, and have an image.
    """

    margins: Float[Tensor, "queries edits"]
    scores: Float[Tensor, "queries edits"]
    own: Bool[Tensor, "queries edits"]
    outside: Bool[Tensor, " queries"]


@dataclass(frozen=True)
class Thresholds:
    """What `LiveEditConfig.visual_threshold` and `prompt_threshold` are to be, and what they gave on the cases.

    found: share of the queries in scope for which an edit of their own fires. false_firing: share of those outside for
    which any edit fires.
    """

    visual: float
    prompt: float
    found: float
    false_firing: float


def choose_thresholds(queries: RoutedQueries, false_firing: float) -> Thresholds:
    """The pair of thresholds with which most queries find their edit, while no more than `false_firing` fire falsely.

    Of equally good pairs, that with the largest visual threshold. Raises `InvalidInputError` if there is no query in
    scope, or none outside.
    """
    inside = queries.own.any(1)
    if not bool(inside.any()) or not bool(queries.outside.any()):
        raise InvalidInputError(
            f"{int(inside.sum())} questions in scope of an edit and {int(queries.outside.sum())} outside, with an "
            "image, were given. Give cases with both."
        )
    best = queries.margins.masked_fill(~queries.own, -torch.inf)[inside].max(1).values
    tried = best.quantile(torch.linspace(0, _LOST_AT_MOST, _TRIED, device=best.device)).flip(0).tolist()
    pairs = [_with_visual(queries, inside, visual - _SMALL, false_firing) for visual in tried]
    return max(pairs, key=lambda pair: pair.found)


def _with_visual(queries: RoutedQueries, inside: Tensor, visual: float, false_firing: float) -> Thresholds:
    """The lowest prompt threshold that this visual one allows."""
    scores = queries.scores.masked_fill(queries.margins <= visual, -torch.inf)
    outside = scores[queries.outside].max(1).values.sort(descending=True).values
    own = scores.masked_fill(~queries.own, -torch.inf)[inside].max(1).values
    lowest = float(queries.scores[queries.own].min()) - _SMALL
    allowed = int(false_firing * len(outside))
    prompt = max(float(outside[allowed]) + _SMALL, lowest) if allowed < len(outside) else lowest
    found, false = (float((part > prompt).double().mean()) for part in (own, outside))
    return Thresholds(visual, prompt, found, false)
