"""A report of an experiment in one folder: the same files as a report of the bench, with the paper's tables.

report.md    to read: the verdict or findings, figures, tables, published values, where the rows come from
table.md     the tables alone
table.tex    the tables for a paper (needs the booktabs package)
table.csv    one line per row, unrounded
rows.json    {"rows": rows, further results of the experiment, "report": what the report was made with}
*.png        the figures, if matplotlib is installed
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...evaluation.lines import Row, lines_of, metric_names
from ...evaluation.plotting import Plot, PlotsUnavailableError, plots_markdown
from ...evaluation.report import joined, provenance_markdown, rows_csv, table_texts
from ...evaluation.table import Table, markdown_text
from ...files import write_text

Drawing = Callable[[Path], Sequence[Plot]]
"""Draws figures into a folder. Raises `PlotsUnavailableError` without matplotlib."""


@dataclass(frozen=True)
class Findings:
    """The findings of an experiment.

    rows: rows of the bench, or other flat rows (bench_rows=False). summary: the first paragraphs. published: the
    paper's own tables, kept separate. failed: (job, error) of what could not be measured. extra: more for rows.json.
    """

    title: str
    rows: Sequence[Row]
    tables: Sequence[Table]
    summary: Sequence[str] = ()
    drawings: Sequence[Drawing] = ()
    published: Sequence[Table] = ()
    failed: Sequence[tuple[str, str]] = ()
    extra: Mapping[str, Any] | None = None
    bench_rows: bool = True


def write_findings(findings: Findings, folder: Path, report: Mapping[str, Any] | None = None) -> Path:
    """Write the report into `folder` and return the path of its report.md; without matplotlib it has no figures.

    report: which experiment it is of, and with which arguments its findings are made from the rows.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found = {"rows": list(findings.rows), **further_results(findings), "report": report}
    files = {
        "rows.json": json.dumps(found, indent=2, ensure_ascii=False, allow_nan=False) + "\n",
        **findings_texts(findings, _figures(findings.drawings, folder)),
    }
    for name, text in files.items():
        write_text(folder / name, text)
    return folder / "report.md"


def findings_texts(findings: Findings, figures: Sequence[str] = ()) -> dict[str, str]:
    """The files of the report that are made of rows, by name. figures: their Markdown, for report.md."""
    rows = findings.rows
    lines = lines_of(rows) if findings.bench_rows and rows else ()
    parts = [
        f"# {markdown_text(findings.title)}",
        *map(markdown_text, findings.summary),
        _failed(findings.failed),
        *figures,
        *(table.markdown() for table in (*findings.tables, *findings.published)),
        provenance_markdown(lines) if lines else "",
    ]
    table = rows_csv(rows, metric_names(lines)) if lines else _flat_csv(rows)
    return {"table.csv": table, **table_texts(findings.tables), "report.md": joined(parts)}


def further_results(findings: Findings) -> dict[str, Any]:
    """What rows.json has besides rows: further results, and what failed."""
    failed = [{"job": job, "error": error} for job, error in findings.failed]
    return {**(findings.extra or {}), "failed": failed}


def _failed(failed: Sequence[tuple[str, str]]) -> str:
    if not failed:
        return ""
    items = [f"- {markdown_text(job)}: {markdown_text(' '.join(error.split()))}" for job, error in failed]
    return "\n".join(
        ["## Not measured", "", f"{len(failed)} jobs failed; their figures are missing below.", "", *items]
    )


def _figures(drawings: Sequence[Drawing], folder: Path) -> list[str]:
    try:
        return plots_markdown([plot for draw in drawings for plot in draw(folder)])
    except PlotsUnavailableError as error:
        return [f"No figures: {error}"]


def _flat_csv(rows: Sequence[Row]) -> str:
    stream = io.StringIO(newline="")
    writer = csv.writer(stream, lineterminator="\n")
    names = list(dict.fromkeys(name for row in rows for name in row))
    writer.writerow(names)
    writer.writerows([row.get(name) for name in names] for row in rows)
    return stream.getvalue()
