"""The tables of Results whose rows are in docs/results agree with these rows."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from liveedit.evaluation.lines import Line, lines_of
from liveedit.evaluation.scoring import REPORTED, SCORES, Spread
from liveedit.experiments.report.averages import average_spread

DOCS = Path(__file__).parents[2] / "docs"
METRICS = {
    "reliability": "reliability",
    "reliability (the edit itself)": "reliability",
    "text generality": "text_generality",
    "text generality (rephrased)": "text_generality",
    "modal generality": "modal_generality",
    "modal generality (another image)": "modal_generality",
    "joint generality (both)": "joint_generality",
    "modal locality": "modal_locality",
    "modal locality (other image and question)": "modal_locality",
    "same image, other question": "same_image_locality",
    "same question, other image": "same_question_locality",
    "near-duplicate": "near_duplicate_locality",
    "near-duplicate image": "near_duplicate_locality",
}
"""What the tables call the metrics."""

Lines = dict[tuple[str, str, int], Line]
"""Lines by backbone, editor and number of edits."""


def lines_in(folder: str) -> Lines:
    """The rows of a folder of docs/results; teacher-forced accuracy and exact match alone, which the tables show."""
    with (DOCS / "results" / folder / "table.csv").open(encoding="utf-8", newline="") as stream:
        rows = [row_of(entry) for entry in csv.DictReader(stream)]
    return {(line.backbone, line.editor, line.edits): line for line in lines_of(rows)}


def row_of(entry: dict[str, str]) -> dict[str, Any]:
    metrics: dict[str, dict[str, float]] = {}
    for column, value in entry.items():
        metric, _, score = column.partition(".")
        if score in dict(SCORES) and value:
            metrics.setdefault(metric, {})[score] = float(value)
    numbers = {"edits": int(entry["edits"]), "seed": int(entry["seed"])}
    return {**{key: entry[key] for key in ("editor", "backbone", "data", "status")}, **numbers, "metrics": metrics}


def table_below(heading: str) -> tuple[list[str], dict[str, list[str]]]:
    """The first table below a heading of Results: its columns, and its cells by the first cell of each row."""
    text = (DOCS / "RESULTS.md").read_text(encoding="utf-8")
    match = re.search(rf"^## {re.escape(heading)}$.*?\n((?:\|[^\n]*\n)+)", text, re.MULTILINE | re.DOTALL)
    assert match is not None, heading
    head, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in match[1].splitlines())
    assert len({row[0] for row in rows}) == len(rows)
    return head[1:], {row[0]: row[1:] for row in rows}


def cell(spreads: Iterator[Spread | None]) -> str:
    found = [spread for spread in spreads if spread is not None]
    return " / ".join("100" if spread.mean == 100 and spread.seeds == 1 else f"{spread.mean:.1f}" for spread in found)


def figures(line: Line, metric: str) -> str:
    return cell(line.score(metric, score) for score, _ in SCORES)


def average(line: Line) -> str:
    spreads = [average_spread(line, score) for score, _ in SCORES]
    return " / ".join(f"{spread.mean:.1f}±{spread.std:.1f}" for spread in spreads if spread is not None)


@pytest.mark.parametrize(
    ("heading", "folder", "columns"),
    [
        (
            "After 1,000 edits",
            "table1",
            [
                *(("tiny-llava", name) for name in ("liveedit", "liveedit-refine", "lemoe", "serac", "ft-l")),
                *(("tiny-blip2", "liveedit"), ("tiny-minigpt4", "liveedit")),
            ],
        ),
        (
            "The paper's form",
            "paper-form",
            [("tiny-llava", name) for name in ("paper", "none")],
        ),
    ],
)
def test_a_table_with_a_line_for_each_metric(heading: str, folder: str, columns: Sequence[tuple[str, str]]) -> None:
    lines = lines_in(folder)
    head, rows = table_below(heading)
    assert len(head) == len(columns) and len(rows) == 7
    expected = {
        name: [figures(lines[backbone, editor, 1000], METRICS[name]) for backbone, editor in columns] for name in rows
    }
    assert rows == expected


def test_the_table_of_all_editors() -> None:
    lines = lines_in("table1")
    head, rows = table_below("All editors on three backbones")
    metrics = [METRICS[name] for name in head[:-1]]
    assert head[-1] == "average"
    expected = {
        f"{backbone}, `{editor}`": [*(figures(line, metric) for metric in metrics), average(line)]
        for (backbone, editor, edits), line in lines.items()
        if edits == 1000
    }
    assert len(expected) == 36
    assert rows == expected


@pytest.mark.parametrize(
    ("row", "folder"),
    [("ZsRE, all rows", "lemoe-smollm2-zsre"), ("SelfCheckGPT, passages", "lemoe-smollm2-selfcheckgpt")],
)
def test_the_table_of_lemoe_on_a_released_model(row: str, folder: str) -> None:
    with (DOCS / "results" / folder / "table.csv").open(encoding="utf-8", newline="") as stream:
        (entry,) = csv.DictReader(stream)

    def figures_of(metric: str) -> str:
        found = [entry.get(f"{metric}.{score}") for score, _ in REPORTED]
        return "–" if None in found else " / ".join(f"{float(value or 0):.1f}" for value in found)

    head, rows = table_below("LEMoE on a released language model")
    metrics = [METRICS.get(name, name.replace(" ", "_")) for name in head[1:]]
    assert rows[row] == [f"{int(entry['edits']):,}", *map(figures_of, metrics)]
