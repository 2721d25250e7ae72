"""Scores of single answers, and their means over samples and over seeds.

Three figures are always reported together: teacher-forced token accuracy, the convention of the field, which the bench
measures; exact match of the freely generated answer; and the share of broken answers. Containment and token F1 of the
freely generated answer are computed too. All of them are in percent, 0 to 100; only of broken answers fewer are better.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Self, TypedDict, get_args

from ..answers import answer_words, is_broken, normalize_answer, same_answer
from ..errors import InvalidInputError
from ..samples import ProbeName

PROBE_NAMES: Final[tuple[ProbeName, ...]] = get_args(ProbeName)
"""Every metric, in the order of tables and figures."""

LeftOut = Mapping[ProbeName, int] | Mapping[str, int]
"""How many probes of each name were not asked."""

SCORES: Final = (("teacher_forced", "Teacher-forced token accuracy"), ("exact_match", "Exact match"))
"""The two ways of scoring and their names. More is better."""

REPORTED: Final = (*SCORES, ("broken", "Broken answers"))
"""The figures that are always reported together, and their names. Of broken answers, fewer are better."""

CONFIDENCE: Final = 0.95
"""Level of the confidence intervals."""


def contains(answer: str, expected: str) -> bool:
    """Whether `answer` contains the words of `expected`, in order and adjacent.

    Compared with and without articles, as an article's removal depends on its place: "vitamin A" is found in
    "vitamin A is good". Only the empty answer contains the empty answer.
    """
    return any(
        _is_part_of(answer_words(expected, drop_articles=drop), answer_words(answer, drop_articles=drop))
        for drop in (True, False)
    )


def token_f1(answer: str, expected: str) -> float:
    """Harmonic mean of the precision and recall of words, in percent; word order does not count.

    F1 = 2 * P * R / (P + R), with P = common / words given, R = common / words expected, and words counted as
    often as they occur. Two empty answers give 100, one empty answer 0. Source: SQuAD 2.0 script.
    """
    given, wanted = normalize_answer(answer).split(), normalize_answer(expected).split()
    if not given or not wanted:
        return 100.0 if given == wanted else 0.0
    common = (Counter(given) & Counter(wanted)).total()
    return 200.0 * common / (len(given) + len(wanted))


def _is_part_of(part: Sequence[str], whole: Sequence[str]) -> bool:
    if not part:
        return not whole
    return any(whole[i : i + len(part)] == part for i in range(len(whole) - len(part) + 1))


@dataclass(frozen=True, slots=True)
class ProbeScore:
    """One probe of one edit, answered and scored.

    `teacher_forced` is token accuracy in percent, or None if it was not measured; `f1` is in percent. The
    expected answer of a locality probe is the unedited model's own answer. `broken`: see `answers.is_broken`.
    `was_cut`: the answer would have gone on after its length limit, so that it is no exact match.
    """

    probe: ProbeName
    answer_type: str
    expected: str
    answer: str
    teacher_forced: float | None
    exact: bool
    contains: bool
    f1: float
    broken: bool
    was_cut: bool = False

    def __post_init__(self) -> None:
        for name, value in (("teacher_forced", self.teacher_forced), ("f1", self.f1)):
            if value is not None and not 0.0 <= value <= 100.0:
                raise InvalidInputError(f"A score of {self.probe} has {name} = {value!r}. Give percent, from 0 to 100.")

    @classmethod
    def of(
        cls,
        probe: ProbeName,
        answer_type: str,
        expected: str,
        answer: str,
        teacher_forced: float | None,
        acceptable: Iterable[str] = (),
        was_cut: bool = False,
    ) -> Self:
        """Score the freely generated `answer` against `expected`.

        acceptable: answers that are not right but not broken either.
        """
        return cls(
            probe=probe,
            answer_type=answer_type,
            expected=expected,
            answer=answer,
            teacher_forced=teacher_forced,
            exact=same_answer(answer, expected) and not was_cut,
            contains=contains(answer, expected),
            f1=token_f1(answer, expected),
            broken=is_broken(answer, (expected, *acceptable)),
            was_cut=was_cut,
        )


class MetricValues(TypedDict):
    """One metric over its samples: means in percent (None without a sample), samples counted and left out."""

    teacher_forced: float | None
    exact_match: float | None
    contains: float | None
    f1: float | None
    broken: float | None
    count: int
    left_out: int


def summarize(scores: Iterable[ProbeScore], left_out: LeftOut | None = None) -> dict[str, MetricValues]:
    """The mean of each metric over its samples, in the order of `PROBE_NAMES`.

    left_out: how many probes of each name were not asked because they are in the scope of another edit. A metric whose
    probes were all left out appears with a count of 0 and null values; a metric that was neither asked nor left out
    does not appear. Raises `InvalidInputError` for unknown names in left_out.
    """
    left_out = left_out or {}
    if unknown := set(left_out) - set(PROBE_NAMES):
        raise InvalidInputError(
            f"left_out names {sorted(unknown)}, which are not probes. Use some of {list(PROBE_NAMES)}."
        )
    by_name: dict[str, list[ProbeScore]] = {}
    for score in scores:
        by_name.setdefault(score.probe, []).append(score)
    return {
        name: _metric(by_name.get(name, []), left_out.get(name, 0))
        for name in PROBE_NAMES
        if name in by_name or left_out.get(name)
    }


def summarize_by_answer_type(
    scores: Iterable[ProbeScore], left_out: Mapping[str, LeftOut] | None = None
) -> dict[str, dict[str, MetricValues]]:
    """As `summarize`, for each answer type in alphabetical order; `left_out` is by answer type, then name."""
    left_out = left_out or {}
    by_type: dict[str, list[ProbeScore]] = {kind: [] for kind in left_out}
    for score in scores:
        by_type.setdefault(score.answer_type, []).append(score)
    return {kind: summarize(by_type[kind], left_out.get(kind)) for kind in sorted(by_type)}


def _metric(scores: Sequence[ProbeScore], left_out: int) -> MetricValues:
    def mean(value: Callable[[ProbeScore], float | None]) -> float | None:
        known = [number for score in scores if (number := value(score)) is not None]
        return math.fsum(known) / len(known) if known else None

    return {
        "teacher_forced": mean(lambda score: score.teacher_forced),
        "exact_match": mean(lambda score: 100.0 * score.exact),
        "contains": mean(lambda score: 100.0 * score.contains),
        "f1": mean(lambda score: score.f1),
        "broken": mean(lambda score: 100.0 * score.broken),
        "count": len(scores),
        "left_out": left_out,
    }


@dataclass(frozen=True, slots=True)
class Spread:
    """Mean over seeds, sample standard deviation and 95 % confidence interval of the mean.

    low, high = mean -+ t * std / sqrt(n), with t the two-sided 95 % quantile of Student's t with n - 1 degrees of
    freedom and std computed with n - 1. The interval is not limited to 0 and 100. With one seed, `std`, `low` and
    `high` are None: the spread is not known.
    """

    mean: float
    std: float | None
    low: float | None
    high: float | None
    seeds: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Self:
        """The spread of one value per seed."""
        count = len(values)
        if not count:
            raise InvalidInputError("A spread of no values was requested. Give one value per seed.")
        mean = math.fsum(values) / count
        if count == 1:
            return cls(mean, None, None, None, 1)
        std = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (count - 1))
        half = student_t(count - 1) * std / math.sqrt(count)
        return cls(mean, std, mean - half, mean + half, count)


def student_t(degrees_of_freedom: int) -> float:
    """The t with P(|T| <= t) = 0.95 for Student's t distribution.

    For whole degrees of freedom the probability is a finite sum (Abramowitz and Stegun, 26.7.3 and 26.7.4) in
    the angle atan(t / sqrt(degrees of freedom)); the angle is found by halving the interval.
    """
    if degrees_of_freedom < 1:
        raise InvalidInputError(f"{degrees_of_freedom} degrees of freedom were given. Give 1 or more.")
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        middle = (low + high) / 2
        if _probability_within(middle, degrees_of_freedom) < CONFIDENCE:
            low = middle
        else:
            high = middle
    return math.sqrt(degrees_of_freedom) * math.tan((low + high) / 2)


def _probability_within(angle: float, degrees_of_freedom: int) -> float:
    odd = degrees_of_freedom % 2 == 1
    if degrees_of_freedom == 1:
        return 2 * angle / math.pi
    term = total = math.cos(angle) if odd else 1.0
    for k in range(2 if odd else 1, degrees_of_freedom - 2, 2):
        term *= k / (k + 1) * math.cos(angle) ** 2
        total += term
    inside = math.sin(angle) * total
    return 2 / math.pi * (angle + inside) if odd else inside
