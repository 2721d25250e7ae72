"""Writes docs/RESULTS.md from docs/results/runs.toml and the rows that are kept beside it.

`make results` runs this, and a test compares what it writes with the page. Each run of runs.toml names the folder of
its rows, or says why it was not run. What the rows or their report record (seeds, commits, figures, verdicts) is taken
from there and not written by hand.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from results_rows import Kept, Run, read_rows, read_runs

from liveedit.errors import LiveEditError, NotFoundError
from liveedit.evaluation.lines import Line, at_largest, metric_label, metric_names, reported
from liveedit.evaluation.published import published_ablation_table, published_table
from liveedit.evaluation.report import BENCH
from liveedit.evaluation.report_tables import (
    MISSING,
    SettingColumns,
    joined_figures,
    left_out_notes,
    number_cell,
    passage_table,
    status_notes,
)
from liveedit.evaluation.table import Table, markdown_text
from liveedit.experiments.papers import TABLES
from liveedit.experiments.report.averages import average_spread
from liveedit.experiments.verification import summarizer

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "results"
PAGE = ROOT / "docs" / "RESULTS.md"

Columns = Mapping[str, Callable[[Line], str]]
"""Columns of a table: how the cell of a line is made, by heading."""


def results_page(results: Path = RESULTS, benchmarks: Path = ROOT / "benchmarks") -> str:
    """The whole page. Raises `LiveEditError` if an entry cannot be used, or if what it names is not there."""
    found = read_runs(results / "runs.toml")
    kept = {run.title: read_rows(run, results / run.folder) for run in found.run if run.folder}
    parts = ["# Results", found.introduction, *index(found.run, kept)]
    for run in found.run:
        parts += run_section(run, kept[run.title], results / run.folder) if run.folder else []
    parts += ["## What was not run", _bullets(found.limits)]
    for run in found.run:
        parts += not_run_section(run) if run.not_run else []
    parts += speed_section(results / "speed", benchmarks)
    return "\n\n".join(part.strip() for part in parts if part.strip()) + "\n"


# -- sections --------------------------------------------------------------------------------------------------


def index(runs: Sequence[Run], kept: Mapping[str, Kept]) -> list[str]:
    """Every table and figure of the papers with ours, the paper's, command and commit; then the other runs."""
    of_papers, others = [], []
    for run in runs:
        commits = ", ".join(kept[run.title].commits) if run.folder else MISSING
        for what in run.stands_for:
            of_papers.append((what, run.question, _ours(run), _theirs(run), _in_cell(run.command), commits))
        if not run.stands_for:
            others.append((run.question, _ours(run), _in_cell(run.command), commits))
    return [
        "## The papers' tables and figures",
        _grid(("of the paper", "question", "ours", "the paper's", "command", "commit"), of_papers),
        "## Other results",
        _grid(("question", "ours", "command", "commit"), others),
    ]


def run_section(run: Run, kept: Kept, folder: Path) -> list[str]:
    """A kept result: where it comes from, what follows from its rows, its tables, and the paper's values."""
    parts = [f"## {run.title}", run.question, f"```\n{run.command}\n```", _origin(run, kept)]
    parts.append(_bullets(map(markdown_text, _findings(kept))))
    for name, caption in run.figures.items():
        if not (folder / name).is_file():
            raise NotFoundError(f"The run {run.title!r} names the figure {name}, which is not in {folder}.")
        parts.append(f"![{caption}](results/{folder.name}/{name})\n\n*{caption}*")
    parts.append(_bullets(run.notes))
    if not kept.lines:
        return parts
    numbers = sorted({line.edits for line in kept.lines}, reverse=True)
    for edits in numbers:
        lines = [line for line in kept.lines if line.edits == edits]
        parts.append(_below(metric_table(lines, f"{run.title}: after {edits:,} edit{'s' * (edits != 1)}")))
    passages = passage_table(kept.lines)
    parts.append(_below(replace(passages, title=f"{run.title}: passages")) if passages else "")
    parts.append(_below(cost_table(at_largest(kept.lines), f"{run.title}: routing and cost")))
    return [*parts, _published(run, numbers[0])]


def not_run_section(run: Run) -> list[str]:
    """A table or figure that was not run: why, and the paper's values if the package has them."""
    reason = str(run.not_run)
    said = f"{run.question} {reason[0].upper()}{reason[1:]}."
    return [f"### {run.title}", said, f"```\n{run.command}\n```", _bullets(run.notes), _published(run, 1000)]


def speed_section(kept: Path, benchmarks: Path) -> list[str]:
    """What each benchmark measures, by its own docstring, and the run of it that is kept, if one is."""
    rows = []
    for file in sorted(benchmarks.glob("*.py")):
        text = file.read_text(encoding="utf-8")
        if "__main__" in text:
            said = (ast.get_docstring(ast.parse(text)) or "").split("\n\n")[0]
            ours = f"[kept](results/speed/{file.stem}.json)" if (kept / f"{file.stem}.json").is_file() else MISSING
            rows.append((f"`python benchmarks/{file.name}`", " ".join(said.split()), ours))
    lead = (
        "`make bench` runs these. Most figures are ratios within one run, and differ between processors. A run is kept "
        "as the JSON that the benchmark prints last; of a benchmark without one, this page has no figure."
    )
    return ["## Speed", lead, _grid(("command", "what it measures", "a run"), rows)]


# -- tables ----------------------------------------------------------------------------------------------------


def metric_table(lines: Sequence[Line], title: str) -> Table:
    """Every metric of these lines, and the average of those that have the paper's five metrics."""
    scores = [score for score, _ in reported(lines)]

    def metric(name: str) -> Callable[[Line], str]:
        return lambda line: joined_figures(number_cell(line.score(name, score), line.seeds) for score in scores)

    def average(line: Line) -> str:
        return joined_figures(number_cell(average_spread(line, score), line.seeds) for score in scores)

    columns = {metric_label(name): metric(name) for name in metric_names(lines)}
    cell = "Each cell: teacher-forced token accuracy / exact match" + " / broken answers" * (len(scores) > 2)
    spread = "; ± is the sample standard deviation over seeds" if any(line.seeds > 1 for line in lines) else ""
    notes = (f"{cell}, in %{spread}.", *status_notes(lines), *left_out_notes(lines))
    return _table(lines, title, {**columns, "Average": average}, notes)


def cost_table(lines: Sequence[Line], title: str) -> Table:
    """Routing, gradient steps and bytes. Times are left out, because they depend on the machine."""

    def quantity(key: str, inner: str | None = None) -> Callable[[Line], str]:
        return lambda line: number_cell(line.quantity(key, inner), line.seeds)

    columns = {
        "Routing precision, %": quantity("routing", "precision"),
        "Routing recall, %": quantity("routing", "recall"),
        "Gradient steps per edit, mean": quantity("refine_steps", "mean"),
        "Gradient steps, most for one edit": quantity("refine_steps", "max"),
        "Bytes per edit": quantity("store_bytes_per_edit"),
    }
    return _table(lines, title, columns, ("The mean over seeds is shown.",))


def _table(lines: Sequence[Line], title: str, columns: Columns, notes: tuple[str, ...]) -> Table:
    """One line per setting; columns without any value are left out."""
    setting = SettingColumns.of(lines)
    found = {heading: [cell(line) for line in lines] for heading, cell in columns.items()}
    found = {heading: cells for heading, cells in found.items() if set(cells) != {MISSING}}
    rows = tuple((*setting.cells(line), *(cells[i] for cells in found.values())) for i, line in enumerate(lines))
    shown = rows if found else ()
    return Table(title, (*setting.header, *found), shown, (*setting.notes, *notes), setting.text_columns)


def _published(run: Run, edits: int) -> str:
    """The paper's values after this number of edits; "" if the package has none."""
    if run.published is None:
        return ""
    if run.published == "table2":
        table = published_ablation_table()
    else:
        paper = TABLES[run.published]
        table = published_table({edits}, paper.published_backbones, paper.published_data)
    return _below(replace(table, title=_published_title(run)))


# -- words -----------------------------------------------------------------------------------------------------


def _findings(kept: Kept) -> Sequence[str]:
    """What the experiment's own report concludes, computed from the rows."""
    if kept.report is None or kept.report["of"] == BENCH:
        return ()
    return summarizer(kept.report)(kept.rows, ()).summary


def _origin(run: Run, kept: Kept) -> str:
    folder = f"results/{run.folder}"
    seeds = ", ".join(map(str, sorted({row["seed"] for row in kept.rows})))
    said = f"Commit {', '.join(kept.commits)}. " + (f"Seeds: {seeds}. " if seeds else "")
    said += f"[{'Rows' if kept.lines else 'Numbers'}]({folder}/{kept.source}). "
    if kept.has_provenance:
        return f"{said}[Report]({folder}/report.md), with [its provenance]({folder}/report.md#provenance)."
    return f"{said}Digests and package versions were not kept here."


def _ours(run: Run) -> str:
    return f"[{run.not_run or run.title}](#{_anchor(run.title)})"


def _theirs(run: Run) -> str:
    return f"[values](#{_anchor(_published_title(run))})" if run.published else MISSING


def _published_title(run: Run) -> str:
    return f"The paper's own values: {', '.join(run.stands_for)}"


def _anchor(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")


def _in_cell(command: str) -> str:
    return ", then ".join(f"`{line}`" for line in re.sub(r"\s*\\\n\s*", " ", command).splitlines())


def _below(table: Table) -> str:
    """The table with a heading one level lower; "" if it has no lines."""
    return "#" + table.markdown() if table.rows else ""


def _bullets(texts: Iterable[str]) -> str:
    return "\n".join(f"- {' '.join(text.split())}" for text in texts)


def _grid(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(line) + " |" for line in (head, ["---"] * len(head), *rows)) if rows else ""


if __name__ == "__main__":
    try:
        PAGE.write_text(results_page(), encoding="utf-8")
    except LiveEditError as problem:
        sys.exit(str(problem))
