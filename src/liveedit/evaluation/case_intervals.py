"""Confidence intervals over the cases of one run, by the bootstrap.

The spread over seeds says how much figures vary with the choice and order of edits. With one seed there is none, and
there are few seeds as a rule. The bootstrap says how much a figure varies with which cases the data happens to hold:
cases are drawn again with replacement, as many as there were, each with all of its probes, and the mean is taken anew.
The interval is from the 2.5th to the 97.5th percentile of `RESAMPLES` such means (Efron and Tibshirani, "An
Introduction to the Bootstrap", 1993, chapter 13). Whole cases are drawn because probes of one case are not independent.

The draws depend on `SEED` and the number of cases alone: the same answers always give the same interval.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from .protocol import Measurement
from .scoring import CONFIDENCE, PROBE_NAMES, ProbeScore

RESAMPLES: Final = 1000
SEED: Final = 20
_CHUNK: Final = 50
"""Resamples that are computed at once."""

_VALUES: Final[Mapping[str, Callable[[ProbeScore], float | None]]] = {
    "teacher_forced": lambda score: score.teacher_forced,
    "exact_match": lambda score: 100.0 * score.exact,
    "broken": lambda score: 100.0 * score.broken,
}

Interval = list[float]
"""The lower and the upper end, in percent."""


def case_intervals(measurements: Sequence[Measurement]) -> dict[str, dict[str, Interval]]:
    """By metric and score, the 95 % interval of the mean over resampled cases. Metrics of one case have none."""
    found: dict[str, dict[str, Interval]] = {}
    for name in PROBE_NAMES:
        by_case: dict[tuple[int, str], list[ProbeScore]] = {}
        for group, measurement in enumerate(measurements):
            for item, score in measurement.scores:
                if score.probe == name:
                    by_case.setdefault((group, item.case.id), []).append(score)
        for what, value in _VALUES.items():
            known = [
                [number for score in scores if (number := value(score)) is not None] for scores in by_case.values()
            ]
            known = [numbers for numbers in known if numbers]
            if len(known) > 1:
                found.setdefault(name, {})[what] = interval_of_means(known)
    return found


def interval_of_means(cases: Sequence[Sequence[float]]) -> Interval:
    """The 95 % interval of the mean over all numbers, when cases are drawn again. cases: the numbers of each."""
    sums = np.array([sum(numbers) for numbers in cases])
    counts = np.array([len(numbers) for numbers in cases], dtype=float)
    rng = np.random.default_rng([SEED, len(cases)])
    means = np.concatenate([_means(sums, counts, rng) for _ in range(RESAMPLES // _CHUNK)])
    outside = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile(means, [outside, 100 - outside])
    return [float(low), float(high)]


def _means(
    sums: Float[ndarray, " cases"], counts: Float[ndarray, " cases"], rng: np.random.Generator
) -> Float[ndarray, " resamples"]:
    chosen = rng.integers(len(sums), size=(_CHUNK, len(sums)))
    return sums[chosen].sum(1) / counts[chosen].sum(1)
