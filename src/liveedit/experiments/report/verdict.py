"""Whether an editor is the best of a comparison: computed from the rows, and as sentences."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

from ...evaluation.lines import Line, at_largest, sections
from ...evaluation.scoring import SCORES, Spread
from .averages import averages

Standing = Literal["best", "within spread", "one seed", "not best", "not judged"]
"""best: ahead of every other by more than the spread. within spread: ahead, but not by more than it. one seed: ahead,
with a single seed, so that the spread is not known. not best: another is level or ahead."""


@dataclass(frozen=True)
class Verdict:
    """The comparison of one editor with the others on one backbone and data set, after the most edits, by one score.

    The rival is the best of the others. `lead` is the spread of own minus rival over the seeds that both have: for a
    seed both made the same edits in the same order, so their differences are comparable.
    """

    backbone: str
    data: str
    edits: int
    score: str
    own: str
    standing: Standing
    own_average: float | None = None
    rival: str | None = None
    rival_average: float | None = None
    lead: Spread | None = None
    absent: tuple[str, ...] = ()
    """Editors without a complete run of this many edits; they are not compared."""

    def sentence(self) -> str:
        """The verdict in words, with its figures."""
        where = f"{self.backbone}, {self.data}, {self.edits:,} edits, {dict(SCORES)[self.score].lower()}"
        absent = f" Not measured there: {', '.join(self.absent)}." if self.absent else ""
        if self.lead is None or self.own_average is None or self.rival_average is None:
            return f"{where}: not judged: there is no complete run of {self.own}, or of any other editor.{absent}"
        own, rival = f"{self.own} {self.own_average:.1f}", f"{self.rival} {self.rival_average:.1f}"
        margin = f"{abs(self.lead.mean):.1f} points"
        if self.lead.low is not None and self.lead.high is not None:
            margin += f" (95 % interval of the difference {self.lead.low:.1f} to {self.lead.high:.1f})"
        words = {
            "best": f"{own} is the best, ahead of {rival} by {margin}: more than the spread over seeds.",
            "within spread": f"{own} is ahead of {rival} by {margin}: not more than the spread over seeds, so "
            f"{self.own} is not shown to be the best.",
            "one seed": f"{own} is ahead of {rival} by {margin}, with one seed: the spread is not known, so "
            f"{self.own} is not shown to be the best.",
            "not best": f"{own} is not the best: {rival} is {'level' if not self.lead.mean else f'ahead by {margin}'}.",
        }
        return f"{where}: {words[self.standing]}{absent}"


def judge(
    lines: Sequence[Line], own: str, family: Collection[str] = (), expected: Collection[str] = ()
) -> list[Verdict]:
    """A verdict on `own` for each backbone and data set, and for both ways of scoring.

    `family` are variants of it, which are not its rivals; `expected` are editors that should have been measured. The
    average is that of the paper's five metrics.
    """
    verdicts = []
    for section in sections(lines):
        largest = [line for line in at_largest(section) if line.complete]
        edits = largest[0].edits if largest else section[0].edits
        judged = {*expected, *(line.editor for line in section)} - {*family, own}
        for score, _ in SCORES:
            found = {line.editor: averages(line, score) for line in largest if averages(line, score)}
            rivals = {name: values for name, values in found.items() if name in judged}
            where = (*section[0].section, edits, score, own)
            absent = tuple(sorted(judged - rivals.keys()))
            verdicts.append(_verdict(where, found.get(own), rivals, absent))
    return verdicts


def _verdict(
    where: tuple[str, str, int, str, str],
    own: dict[int, float] | None,
    rivals: dict[str, dict[int, float]],
    absent: tuple[str, ...],
) -> Verdict:
    common = {name: sorted(values.keys() & (own or {}).keys()) for name, values in rivals.items()}
    leads = {
        name: Spread.of([(own or {})[seed] - rivals[name][seed] for seed in seeds])
        for name, seeds in common.items()
        if seeds
    }
    if own is None or not leads:
        return Verdict(*where, standing="not judged", absent=absent)
    rival = min(leads, key=lambda name: (leads[name].mean, name))
    lead = leads[rival]
    # A certain lead over the best rival is not enough: the lead over another, with a wider spread, may be uncertain.
    doubtful = [name for name, found in leads.items() if found.low is not None and found.low <= 0]
    if lead.mean <= 0:
        standing: Standing = "not best"
    elif any(found.low is None for found in leads.values()):
        standing = "one seed"
    elif doubtful:
        standing = "within spread"
        rival = rival if rival in doubtful else min(doubtful, key=lambda name: (leads[name].mean, name))
        lead = leads[rival]
    else:
        standing = "best"
    return Verdict(*where, standing, _mean(own), rival, _mean(rivals[rival]), lead, absent)


def headline(verdicts: Sequence[Verdict]) -> str:
    """All verdicts in one or two sentences: in how many comparisons the editor is the best, and in which not."""
    if not verdicts:
        return "Nothing was measured, so nothing is judged."
    own, count = verdicts[0].own, len(verdicts)
    claim = "has the best average of the five metrics, by more than the spread over seeds, in"
    meant = "(backbone, data and way of scoring, after the most edits)"
    others = [verdict for verdict in verdicts if verdict.standing != "best"]
    if not others:
        return f"{own} {claim} all {count} comparisons {meant}."
    grouped: dict[Standing, dict[str, list[str]]] = {}
    for verdict in others:
        where = grouped.setdefault(verdict.standing, {}).setdefault(f"{verdict.backbone} on {verdict.data}", [])
        where.append(dict(SCORES)[verdict.score].lower())
    listed = "; ".join(
        f"{standing}: " + ", ".join(f"{where} ({' and '.join(scores)})" for where, scores in found.items())
        for standing, found in grouped.items()
    )
    return f"{own} {claim} {count - len(others)} of {count} comparisons {meant}. In the others it has not: {listed}."


def _mean(values: dict[int, float]) -> float:
    return Spread.of(list(values.values())).mean
