"""Rows of the bench grouped into the lines of a table: a line is one setting over all its seeds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from ..errors import InvalidInputError
from .scoring import PROBE_NAMES, REPORTED, SCORES, Spread

Row = Mapping[str, Any]
"""One run of the bench: `editor`, `backbone`, `data`, `edits`, `seed`, `status`, `metrics` and more."""

COMPLETE: Final = "complete"
"""The status of a run that ended normally."""

_KEYS: Final = {"editor": str, "backbone": str, "data": str, "edits": int, "seed": int, "status": str}


@dataclass(frozen=True, slots=True)
class Line:
    """One editor on one backbone and data set after a number of edits, with a row for each seed.

    Rows of different status are in different lines: an incomplete run is not averaged with complete ones.
    """

    backbone: str
    data: str
    edits: int
    editor: str
    status: str
    rows: tuple[Row, ...]

    @property
    def seeds(self) -> int:
        """Number of seeds."""
        return len(self.rows)

    @property
    def complete(self) -> bool:
        """Whether these runs are complete."""
        return self.status == COMPLETE

    @property
    def label(self) -> str:
        """The editor, and the status if it is not complete."""
        return self.editor if self.complete else f"{self.editor} ({self.status})"

    @property
    def section(self) -> tuple[str, str]:
        """(backbone, data): lines are comparable only within one section."""
        return (self.backbone, self.data)

    def metrics(self, answer_type: str | None = None) -> list[Mapping[str, Mapping[str, Any]]]:
        """The metrics of each seed, over all samples or over those of one answer type."""
        if answer_type is None:
            return [row["metrics"] for row in self.rows]
        return [(row.get("by_answer_type") or {}).get(answer_type, {}) for row in self.rows]

    def score(self, metric: str, score: str, answer_type: str | None = None) -> Spread | None:
        """A score (such as `exact_match`, in percent) over the seeds that have it; None if none has it."""
        found = [metrics.get(metric, {}).get(score) for metrics in self.metrics(answer_type)]
        return _spread(found)

    def count(self, metric: str, what: str = "count", answer_type: str | None = None) -> int:
        """Samples counted (or `left_out`), summed over the seeds."""
        return sum(metrics.get(metric, {}).get(what) or 0 for metrics in self.metrics(answer_type))

    def quantity(self, key: str, inner: str | None = None) -> Spread | None:
        """Any other number of the rows, such as `milliseconds_per_edit`, `median`, over the seeds."""
        values = [row.get(key) for row in self.rows]
        if inner is not None:
            values = [None if value is None else value.get(inner) for value in values]
        return _spread(values)


def lines_of(rows: Sequence[Row]) -> tuple[Line, ...]:
    """Rows grouped by setting and status, sorted by backbone, data, edits and editor.

    Raises `InvalidInputError` if there are no rows, if a row lacks one of its keys, and if a seed occurs twice
    in one line, which would make the spread too small.
    """
    if not rows:
        raise InvalidInputError("There are no rows to report. Run the bench first and give its rows.")
    groups: dict[tuple[str, str, int, str, str], list[Row]] = {}
    for index, row in enumerate(rows):
        _check(index, row)
        key = (row["backbone"], row["data"], row["edits"], row["editor"], row["status"])
        groups.setdefault(key, []).append(row)
    for key, members in groups.items():
        seed, times = Counter(row["seed"] for row in members).most_common(1)[0]
        if times > 1:
            raise InvalidInputError(
                f"Seed {seed} occurs {times} times for (backbone, data, edits, editor, status) = {key}. Give "
                "each seed once, or give settings that differ different editor names."
            )
    # Complete lines come before others of the same setting.
    ordered = sorted(groups, key=lambda key: (*key[:4], key[4] != COMPLETE, key[4]))
    return tuple(Line(*key, rows=tuple(sorted(groups[key], key=lambda row: row["seed"]))) for key in ordered)


def metric_names(lines: Iterable[Line], *, by_answer_type: bool = False) -> tuple[str, ...]:
    """The metrics that occur, in the order of `PROBE_NAMES`; names from elsewhere follow alphabetically."""
    groups: list[Mapping[str, Any]] = []
    for line in lines:
        for row in line.rows:
            groups += (row.get("by_answer_type") or {}).values() if by_answer_type else [row["metrics"]]
    found = {name for group in groups for name in group}
    return (
        *(name for name in PROBE_NAMES if name in found),
        *sorted(found.difference(PROBE_NAMES)),
    )


def answer_types(lines: Iterable[Line]) -> tuple[str, ...]:
    """The answer types that occur, in alphabetical order."""
    rows = (row for line in lines for row in line.rows)
    return tuple(sorted({kind for row in rows for kind in row.get("by_answer_type") or {}}))


def sections(lines: Sequence[Line]) -> tuple[tuple[Line, ...], ...]:
    """The lines of each backbone and data set."""
    names = dict.fromkeys(line.section for line in lines)
    return tuple(tuple(line for line in lines if line.section == name) for name in names)


def at_largest(lines: Sequence[Line]) -> tuple[Line, ...]:
    """The lines with the most edits of each backbone and data set.

    The most edits of a complete run; if no run is complete, the most of any run. Editors without a run of that many
    edits are not included: results after fewer edits are not comparable.
    """
    chosen: list[Line] = []
    for section in sections(lines):
        reached = [line.edits for line in section if line.complete] or [line.edits for line in section]
        chosen += [line for line in section if line.edits == max(reached)]
    return tuple(chosen)


def reported(lines: Iterable[Line]) -> tuple[tuple[str, str], ...]:
    """`REPORTED`, or `SCORES` if no line has broken answers counted, as in rows of earlier versions."""
    metrics = (metric for line in lines for found in line.metrics() for metric in found.values())
    return REPORTED if any(metric.get("broken") is not None for metric in metrics) else SCORES


def metric_label(name: str) -> str:
    """The name of a metric for readers: `text_generality` is "Text generality"."""
    return name.replace("_", " ").capitalize()


def _spread(values: Iterable[float | None]) -> Spread | None:
    known = [value for value in values if value is not None]
    return Spread.of(known) if known else None


def _check(index: int, row: Row) -> None:
    for key, kind in _KEYS.items():
        if not isinstance(row.get(key), kind):
            raise InvalidInputError(
                f"Row {index} (counted from 0) has {key} = {row.get(key)!r}. Every row "
                f"needs {', '.join(_KEYS)} and metrics; give the rows as the bench returned them."
            )
    if row["edits"] < 0 or not isinstance(row.get("metrics"), Mapping):
        raise InvalidInputError(
            f"Row {index} (counted from 0) has edits = {row['edits']} and metrics of type "
            f"{type(row.get('metrics')).__name__}. Give 0 edits or more, and metrics by name."
        )
