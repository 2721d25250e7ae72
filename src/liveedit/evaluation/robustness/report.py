"""Tables of the robustness measurement, and its report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from ...files import write_text
from ..lines import metric_label
from ..scoring import Spread
from ..table import Table
from .measuring import VERDICTS
from .questions import CONTRADICTIONS, QUESTION_TYPE

Row = Mapping[str, Any]

_HEADINGS: Final = {
    "edit": "edit's answer",
    "other_edit": "another edit's",
    "unedited": "unedited answer",
    "other_label": "another label",
    "broken": "broken",
}
_IN_SEQUENCE: Final = "In sequence"
_HEADER: Final = ("editor", "asked", *(_HEADINGS[verdict] for verdict in VERDICTS))
_NOTES: Final = (
    "percent of the questions asked (number of answers)",
    "broken: the answer is not the edit's, not the unedited model's, and no other label of the case",
    f"{metric_label(QUESTION_TYPE)}: another question is asked about the image, and the unedited answer is right; "
    "in all other lines the edit's answer is",
    f"{metric_label(CONTRADICTIONS)}: three edits of one image, with prompts that differ slightly and different "
    "answers, on an editor of their own",
)


def write_robustness_report(rows: Sequence[Row], folder: Path) -> Path:
    """Write the tables of these rows, also by rule, as Markdown and return the path of report.md."""
    write_text(folder / "report.md", robustness_text(rows))
    return folder / "report.md"


def robustness_text(rows: Sequence[Row]) -> str:
    """The tables of these rows, also by rule, as Markdown."""
    return "\n".join(table.markdown() for table in (*robustness_tables(rows), rule_table(rows)))


def robustness_tables(rows: Sequence[Row]) -> list[Table]:
    """Answers by kind of question, and costs of long answers. Seeds of an editor are averaged."""
    first = rows[0]
    what = f"{first['edits']:,} edits on {first['backbone']}, {first['data']}"
    kinds = _lines(rows, "kinds", [(kind,) for kind in _keys(row["kinds"] for row in rows)])
    notes = [f"{name}: {note}" for name, note in _editor_notes(rows)]
    tables = [Table(f"Robustness: {what}", ("question", *_HEADER), tuple(kinds), (*_NOTES, *notes), 2, 2)]
    long = tuple(_long_answers(rows))
    if any(line[0] != _IN_SEQUENCE for line in long):
        header_of_long = ("edits", "editor", "answer tokens", "gradient steps", "time, relative", "bytes")
        note = "time: of an edit, over that of the edits in sequence, whose answers are those of the data; medians"
        tables.append(Table("Costs of long answers", header_of_long, long, (note,), 2, 2))
    return tables


def rule_table(rows: Sequence[Row]) -> Table:
    """Answers by kind and rule."""
    return Table(
        "By rule", ("question", "rule", *_HEADER), tuple(_lines(rows, "rules", _paths(rows))), _NOTES[:1], 3, 3
    )


def _lines(rows: Sequence[Row], key: str, paths: Sequence[tuple[str, ...]]) -> Iterator[tuple[str, ...]]:
    for path in paths:
        for editor, members in _by_editor(rows).items():
            counts = [found for row in members if (found := _at(row[key], path)) is not None]
            if counts:
                cells = (_cell(counts, verdict) for verdict in VERDICTS)
                asked = f"{sum(one['asked'] for one in counts):,}"
                yield (metric_label(path[0]), *path[1:], editor, asked, *cells)


def _cell(counts: Sequence[Mapping[str, Any]], verdict: str) -> str:
    spread = Spread.of([one["percent"][verdict] for one in counts])
    around = "" if spread.std is None else f"±{spread.std:.1f}"
    return f"{spread.mean:.1f}{around} ({sum(one[verdict] for one in counts):,})"


def _long_answers(rows: Sequence[Row]) -> Iterator[tuple[str, ...]]:
    for name in _keys(row["costs"] for row in rows):
        for editor, members in _by_editor(rows).items():
            found = [row["costs"][name] for row in members if name in row["costs"]]
            if found and name != CONTRADICTIONS:
                yield (
                    _IN_SEQUENCE if name == "edits" else metric_label(name),
                    editor,
                    f"{_mean(one['answer_tokens'] for one in found):.1f}",
                    f"{_mean(one['refine_steps']['mean'] for one in found):.1f}",
                    f"{_mean(one['relative_time'] for one in found):.2f}",
                    f"{_mean(one['store_bytes_per_edit'] for one in found):,.0f}",
                )


def _mean(values: Iterator[float]) -> float:
    return Spread.of(list(values)).mean


def _paths(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    found = {(kind, rule): None for row in rows for kind, rules in row["rules"].items() for rule in rules}
    kinds = _keys(row["rules"] for row in rows)
    return sorted(found, key=lambda path: kinds.index(path[0]))


def _at(values: Mapping[str, Any], path: tuple[str, ...]) -> Any:
    found: Any = values
    for key in path:
        found = found.get(key) if found is not None else None
    return found


def _keys(groups: Iterator[Mapping[str, Any]]) -> list[str]:
    """The keys of all groups, in the order of the first that has each."""
    return list(dict.fromkeys(key for group in groups for key in group))


def _by_editor(rows: Sequence[Row]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row["editor"], []).append(row)
    return found


def _editor_notes(rows: Sequence[Row]) -> list[tuple[str, str]]:
    return list(dict.fromkeys((row["editor"], note) for row in rows for note in row["notes"]))
