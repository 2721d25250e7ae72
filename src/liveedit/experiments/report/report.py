"""A report of an experiment in one folder: the same files as a report of the bench, with the paper's tables.

report.md    to read: the verdict or findings, images, tables, published values, where the rows come from
table.md     the tables alone
table.tex    the tables for a paper (needs the booktabs package)
table.csv    one line per row, unrounded
rows.json    {"rows": rows, and what else the experiment found}
*.png        the images, where matplotlib is installed
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
from ...evaluation.plots import Plot, PlotsUnavailableError
from ...evaluation.report import _csv, _provenance
from ...evaluation.table import Table, markdown_text

Drawing = Callable[[Path], Sequence[Plot]]
"""Draws images into a folder. Raises `PlotsUnavailableError` without matplotlib."""


@dataclass(frozen=True)
class Findings:
    """What an experiment shows.

    rows: rows of the bench, or other flat rows. summary: paragraphs that stand first. published: the paper's own
    tables, which stand apart. failed: (job, error) of what could not be measured. extra: more for rows.json.
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


def write_findings(findings: Findings, folder: Path) -> Path:
    """Write the report into `folder` and return the path of its report.md; without matplotlib it has no images."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = findings.rows
    lines = lines_of(rows) if findings.bench_rows and rows else ()
    files = {
        "rows.json": _rows_json(findings),
        "table.csv": _csv(rows, metric_names(lines)) if lines else _flat_csv(rows),
        "table.md": "\n".join(table.markdown() for table in findings.tables),
        "table.tex": "% Needs \\usepackage{booktabs}.\n" + "\n".join(table.latex() for table in findings.tables),
    }
    parts = [
        f"# {markdown_text(findings.title)}",
        *map(markdown_text, findings.summary),
        _failed(findings.failed),
        *_images(findings.drawings, folder),
        *(table.markdown() for table in (*findings.tables, *findings.published)),
        _provenance(lines) if lines else "",
    ]
    files["report.md"] = "\n\n".join(part.rstrip() for part in parts if part) + "\n"
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8", newline="\n")
    return folder / "report.md"


def _rows_json(findings: Findings) -> str:
    failed = [{"job": job, "error": error} for job, error in findings.failed]
    found = {"rows": list(findings.rows), **(findings.extra or {}), "failed": failed}
    return json.dumps(found, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _failed(failed: Sequence[tuple[str, str]]) -> str:
    if not failed:
        return ""
    items = [f"- {markdown_text(job)}: {markdown_text(' '.join(error.split()))}" for job, error in failed]
    return "\n".join(
        ["## Not measured", "", f"{len(failed)} jobs failed; their figures are missing below.", "", *items]
    )


def _images(drawings: Sequence[Drawing], folder: Path) -> list[str]:
    try:
        plots = [plot for draw in drawings for plot in draw(folder)]
    except PlotsUnavailableError as error:
        return [f"No images: {error}"]
    return [f"![{markdown_text(plot.caption)}]({plot.path.name})\n\n*{markdown_text(plot.caption)}*" for plot in plots]


def _flat_csv(rows: Sequence[Row]) -> str:
    stream = io.StringIO(newline="")
    writer = csv.writer(stream, lineterminator="\n")
    names = list(dict.fromkeys(name for row in rows for name in row))
    writer.writerow(names)
    writer.writerows([row.get(name) for name in names] for row in rows)
    return stream.getvalue()
