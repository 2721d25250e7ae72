"""The report of judged answers: judged.md to read, judged.json with the figures and the judge's instruction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..files import write_json, write_text
from .judging import INSTRUCTION, Judge
from .lines import metric_label
from .provenance import Stopwatch, package_versions
from .report_tables import figure_text
from .table import Table

Row = Mapping[str, Any]


def write_judged_report(rows: Sequence[Row], judge: Judge, folder: Path, command: str | None = None) -> Path:
    """Write judged.json and judged.md into the folder of a bench, and return the path of judged.md."""
    about = {"model": judge.model, "endpoint": judge.endpoint, "instruction": INSTRUCTION, "digest": judge.digest}
    made = {"written": Stopwatch().started, "versions": package_versions(), "command": command}
    write_json(folder / "judged.json", {"rows": list(rows), "judge": about, "provenance": made})
    write_text(folder / "judged.md", judged_table(rows, judge.model).markdown())
    return folder / "judged.md"


def judged_table(rows: Sequence[Row], judge: str) -> Table:
    """One line per row of the bench and metric."""
    lines = [
        (
            row["editor"],
            f"{row['edits']:,}",
            str(row["seed"]),
            metric_label(name),
            f"{metric['count']:,}",
            figure_text(metric["judged_right"]),
            figure_text(metric["exact_match"]),
            figure_text(metric["agreement"]),
            figure_text(metric["kappa"], 2),
            f"{metric['unreadable']:,}",
        )
        for row in rows
        for name, metric in row["metrics"].items()
    ]
    header = ("Editor", "Edits", "Seed", "Metric", "Answers", "Judged right %", "Exact match %", "Agreement %")
    notes = (
        "Shares are of the answers with a readable verdict. Agreement: answers on which the judge and exact match say "
        "the same. κ: Cohen's kappa, their agreement beyond chance.",
        "Unreadable: replies that are no verdict. Replies are in results/*.verdicts.jsonl, as they came.",
    )
    return Table(f"Judged by {judge}", (*header, "κ", "Unreadable"), tuple(lines), notes, 4, 3)
