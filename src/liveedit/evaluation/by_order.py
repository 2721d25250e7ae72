"""How an edit fares by its place in the sequence: the first edits against the last, and the forgetting curve.

All edits are asked after the last one. An editor that forgets answers the latest edits and no longer the earliest,
which a mean over all of them hides.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Final, TypedDict

from .protocol import Measurement
from .scoring import ProbeScore

FEWEST: Final = 20
"""Sequences of fewer edits have no curve and no ends."""
MOST_AT_AN_END: Final = 100
"""Edits that count as the first or the last, at most; of short sequences a quarter."""
STRETCHES: Final = 10
"""Points of the forgetting curve."""


class Stretch(TypedDict):
    """Edits that follow each other in the sequence, from place `first` to place `last`, both counted from 1.

    Figures are of each edit's own question, in percent.
    """

    first: int
    last: int
    teacher_forced: float | None
    exact_match: float
    broken: float


class EditOrder(TypedDict):
    """The first and the last edits of a sequence, and all of it in `STRETCHES` stretches."""

    first_edits: Stretch
    last_edits: Stretch
    curve: list[Stretch]


def edit_order(measurements: Sequence[Measurement]) -> EditOrder | None:
    """The figures by place; None for short sequences, and for several short groups of edits."""
    if len(measurements) != 1:
        return None
    scores = [score for item, score in measurements[0].scores if item.place < 0]
    edits = len(scores)
    if edits < FEWEST:
        return None
    end = min(MOST_AT_AN_END, edits // 4)
    bounds = [round(edits * part / STRETCHES) for part in range(STRETCHES + 1)]
    return {
        "first_edits": _stretch(scores, 0, end),
        "last_edits": _stretch(scores, edits - end, edits),
        "curve": [_stretch(scores, start, stop) for start, stop in pairwise(bounds)],
    }


def _stretch(scores: Sequence[ProbeScore], start: int, stop: int) -> Stretch:
    part = scores[start:stop]
    forced = [score.teacher_forced for score in part if score.teacher_forced is not None]
    return {
        "first": start + 1,
        "last": stop,
        "teacher_forced": math.fsum(forced) / len(forced) if forced else None,
        "exact_match": 100 * sum(score.exact for score in part) / len(part),
        "broken": 100 * sum(score.broken for score in part) / len(part),
    }
