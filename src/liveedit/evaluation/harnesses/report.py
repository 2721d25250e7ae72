"""The report of general ability: unedited, edited, and the largest fall of a single task."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from ...files import write_text
from ..provenance import Row
from ..report import joined, origin, ways_of
from ..report_tables import MISSING
from ..table import Table
from .measuring import EDITED, GENERAL_ABILITY, UNEDITED, read_samples

Score = Mapping[str, Any]

_NOTES: Final = (
    "± is the harness's own standard error, over the documents of a task.",
    "A fall is how much worse the edited model is: of an accuracy, unedited minus edited; of a perplexity, edited "
    "minus unedited. A negative fall is a gain. Of a group, the task with the largest fall is named.",
    "Within: the fall is no larger than the smaller of the two standard errors.",
)


def write_ability_report(rows: Sequence[Row], folder: Path) -> Path:
    """Write rows.json and report.md of both columns into a folder, and return the path of report.md."""
    changed = changed_documents(folder)
    content = {"rows": list(rows), "changed": changed, "report": {"of": GENERAL_ABILITY}}
    write_text(folder / "rows.json", json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    write_text(folder / "report.md", ability_text(rows, changed))
    return folder / "report.md"


def ability_text(rows: Sequence[Row], changed: Mapping[str, Mapping[str, int]]) -> str:
    """The report of these rows. changed: see `changed_documents`."""
    tables = ability_tables(rows, changed)
    return joined(["# General ability", *(table.markdown() for table in tables), _provenance(rows)])


def ability_tables(rows: Sequence[Row], changed: Mapping[str, Mapping[str, int]]) -> list[Table]:
    """What was asked for, side by side, and every single task."""
    before, after = (next(row for row in rows if row["column"] == column) for column in (UNEDITED, EDITED))
    edits = f"{after['edits']:,} edits (revision {after['revision']}) by {after['editor']}"
    title = f"{after['harness']} {after['harness_version']} on {after['backbone']}: {edits}"
    header = ("Task", "Metric", "Unedited", "Edited", "Largest fall of a single task", "Within")
    requested = [*after["groups"], *(name for name in after["tasks"] if not _is_grouped(name, after))]
    lines = [line for name in requested for line in _lines(name, before, after)]
    tables = [Table(title, header, tuple(lines), (*_NOTES, *_request_notes(after)), 2, 2)]
    single = [line for name in after["tasks"] for line in _single_lines(name, before, after, changed)]
    columns = ("Task", "Metric", "Unedited", "Edited", "Fall", "Documents", "Scored otherwise")
    note = "Scored otherwise: documents whose score is another than that of the unedited model, in either direction."
    return [*tables, Table("Single tasks", columns, tuple(single), (note,), 2, 2)]


def changed_documents(folder: Path) -> dict[str, dict[str, int]]:
    """By task and metric, the number of documents that the edited model is scored otherwise on."""
    before = {_key(one): one for one in read_samples(folder, UNEDITED)}
    found: dict[str, dict[str, int]] = {}
    for one in read_samples(folder, EDITED):
        other = before[_key(one)]["scores"]
        for metric, score in one["scores"].items():
            counts = found.setdefault(one["task"], {})
            name = _metric_name(metric, one)
            counts[name] = counts.get(name, 0) + (score != other.get(metric))
    return found


def fall(before: Score, after: Score) -> float:
    """How much worse a score is after the edits, in the units of the metric."""
    change = after["value"] - before["value"]
    return change if after["higher_is_better"] is False else 0.0 - change  # No -0 where nothing changed.


def is_within(before: Score, after: Score) -> bool | None:
    """Whether a fall is no larger than the smaller standard error; None if the harness gives none."""
    errors = [score["stderr"] for score in (before, after)]
    known = [error for error in errors if error is not None]
    return fall(before, after) <= min(known) if len(known) == len(errors) else None


def _lines(name: str, before: Row, after: Row) -> Iterator[tuple[str, ...]]:
    """The lines of a task or a group, one for each metric."""
    kind = "groups" if name in after["groups"] else "tasks"
    members = after["groups"][name]["tasks"] if kind == "groups" else [name]
    for metric, score in after[kind][name]["scores"].items():
        other = before[kind][name]["scores"][metric]
        pairs = [
            (one, before["tasks"][one]["scores"][metric], after["tasks"][one]["scores"][metric])
            for one in members
            if metric in after["tasks"][one]["scores"]
        ]
        worst = max(pairs, key=lambda pair: fall(pair[1], pair[2]), default=None)
        cells = (MISSING, MISSING) if worst is None else _worst_cells(name, *worst)
        yield (name, metric, _cell(other), _cell(score), *cells)


def _worst_cells(name: str, task: str, before: Score, after: Score) -> tuple[str, str]:
    error = "" if after["stderr"] is None else f" ± {_number(after['stderr'])}"
    text = f"{_number(fall(before, after))}{error}"
    within = is_within(before, after)
    return (text if task == name else f"{text} ({task})"), MISSING if within is None else "yes" if within else "no"


def _single_lines(
    name: str, before: Row, after: Row, changed: Mapping[str, Mapping[str, int]]
) -> Iterator[tuple[str, ...]]:
    for metric, score in after["tasks"][name]["scores"].items():
        other = before["tasks"][name]["scores"][metric]
        count = changed.get(name, {}).get(metric)
        counted = MISSING if count is None else f"{count:,}"
        documents = f"{after['tasks'][name]['documents']:,}"
        yield name, metric, _cell(other), _cell(score), _number(fall(other, score)), documents, counted


def _is_grouped(name: str, row: Row) -> bool:
    return any(name in group["tasks"] for group in row["groups"].values())


def _request_notes(row: Row) -> list[str]:
    return [
        f"Edits fired for {counts['with_edits']:,} of {counts['asked']:,} requests ({kind})"
        + (f", and {counts['withheld']:,} edited answers were withheld." if counts["withheld"] else ".")
        for kind, counts in row["requests"].items()
    ]


def _key(sample: Mapping[str, Any]) -> tuple[Any, ...]:
    return sample["task"], sample.get("filter"), sample["doc_id"]


def _metric_name(metric: str, sample: Mapping[str, Any]) -> str:
    kept = sample.get("filter")
    return metric if kept in (None, "none") else f"{metric} ({kept})"


def _cell(score: Score) -> str:
    error = "" if score["stderr"] is None else f" ± {_number(score['stderr'])}"
    return f"{_number(score['value'])}{error}"


def _number(value: float) -> str:
    return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"


def _provenance(rows: Sequence[Row]) -> str:
    """Which code, backbone, packages and commands the columns come from."""
    lines = []
    for row in rows:
        record = row["provenance"]
        lines += [f"- {row['column']}: {origin(record)}", *(f"- {row['column']}: {way}" for way in ways_of(record))]
    lead = "Each column's configuration is in rows.json, and the harness's samples in results/."
    return "\n".join(["## Provenance", "", lead, "", *lines])
