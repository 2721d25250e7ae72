"""The five metrics of the papers and their mean, which the papers call the average."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

from ...evaluation.lines import Line
from ...evaluation.scoring import Spread
from ...samples import ProbeName

PAPER_METRICS: Final[tuple[ProbeName, ...]] = (
    "reliability",
    "text_generality",
    "modal_generality",
    "text_locality",
    "modal_locality",
)
"""The columns of the LiveEdit paper's tables, in their order."""

HARDER: Final[tuple[ProbeName, ...]] = (
    "same_image_locality",
    "same_question_locality",
    "near_duplicate_locality",
    "joint_generality",
)
"""Probes that the papers do not have and that are harder than theirs."""


def average_of(row: Mapping[str, Any], score: str) -> float | None:
    """The mean of the paper's five metrics in one run; None if one of them was not measured."""
    values = [row["metrics"].get(name, {}).get(score) for name in PAPER_METRICS]
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if len(known) == len(values) else None


def averages(line: Line, score: str) -> dict[int, float]:
    """The average of each seed that has one."""
    found = {row["seed"]: average_of(row, score) for row in line.rows}
    return {seed: value for seed, value in found.items() if value is not None}


def average_spread(line: Line, score: str) -> Spread | None:
    """Mean and spread of the average over the seeds; the metrics of each seed are averaged first, as in the paper."""
    values = list(averages(line, score).values())
    return Spread.of(values) if values else None


def in_order(lines: Sequence[Line], editors: Sequence[str]) -> tuple[Line, ...]:
    """Lines by backbone, data and edits, and then by editors as given; others follow alphabetically."""
    places = {editor: place for place, editor in enumerate(editors)}

    def key(line: Line) -> tuple[str, str, int, int, str]:
        return (line.backbone, line.data, line.edits, places.get(line.editor, len(places)), line.label)

    return tuple(sorted(lines, key=key))
