"""Edits whose subject recurs with another answer: where they contradict each other, the latest one should hold."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import TypedDict

from ..answers import normalize_answer, same_answer
from ..samples import EditCase, Question, normalize_prompt
from .protocol import Measurement
from .scoring import ProbeScore


class RecurringEdits(TypedDict):
    """Edits of one subject with different answers, over all groups of edits; shares in percent.

    latest_right: of the latest edits of their subjects, those whose own question gets their answer. earlier_right: the
    same of the others. earlier_overruled: of the others, those whose question gets the latest edit's answer.
    """

    subjects: int
    edits: int
    latest_right: float
    earlier_right: float
    earlier_overruled: float


def recurring_edits(measurements: Sequence[Measurement]) -> RecurringEdits | None:
    """What became of such edits; None if there are none. Each measurement has its edits in the order they were made.

    Edits are of one subject if text-only questions name it, and the file names the same relation or, as ZsRE, none: a
    few of these edits ask for something else. Of all other questions, two edits of one scope count. (A passage has no
    relation either; that one sentence follows another is no contradiction, and its reader leaves the relation out.)
    """
    latest: list[bool] = []
    earlier: list[bool] = []
    overruled: list[bool] = []
    for measurement in measurements:
        for group in _contradicting(_reliability(measurement)):
            *before, (last, score) = group
            latest.append(score.exact)
            earlier += [_gives(other, case.edit.answer) for case, other in before]
            overruled += [same_answer(other.answer, last.edit.answer) for _, other in before]
    if not latest:
        return None
    return {
        "subjects": len(latest),
        "edits": len(latest) + len(earlier),
        "latest_right": _percent(latest),
        "earlier_right": _percent(earlier),
        "earlier_overruled": _percent(overruled),
    }


def _gives(score: ProbeScore, answer: str) -> bool:
    """Whether the answer is this one. It is not the expected one if the data says that a later edit overrules it."""
    return score.exact if score.expected == answer else same_answer(score.answer, answer) and not score.was_cut


Edited = tuple[EditCase, ProbeScore]


def _reliability(measurement: Measurement) -> list[Edited]:
    return [(item.case, score) for item, score in measurement.scores if item.probe.name == "reliability"]


def _contradicting(edited: Sequence[Edited]) -> list[list[Edited]]:
    groups: Mapping[Hashable, list[Edited]] = {}
    for case, score in edited:
        groups.setdefault(_topic(case.edit.question), []).append((case, score))
    return [group for group in groups.values() if len({normalize_answer(case.edit.answer) for case, _ in group}) > 1]


def _topic(question: Question) -> Hashable:
    if question.image is not None or question.subject is None or question.relation is None:
        return question.scope
    known = question.relation != normalize_prompt(question.prompt)  # Readers put the prompt for an unknown relation.
    return question.subject, question.relation if known else None


def _percent(found: Sequence[bool]) -> float:
    return 100 * sum(found) / len(found)
