"""Results is what `make results` writes, and says what the kept rows say."""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections.abc import Callable
from math import fsum
from pathlib import Path
from statistics import stdev

import pytest
import results_page
from results_page import PAGE, RESULTS

from liveedit.cli.paper import app
from liveedit.errors import ConfigError, NotFoundError

FROM_THE_PAPERS = {
    *(f"LiveEdit, table {number}" for number in (1, 2, 5, 6)),
    *(f"LiveEdit, figure {number}" for number in (3, 4, 5, 6, 7)),
    "LEMoE, tables: all lines",
    *(f"LEMoE, figure {number}" for number in (2, 3, 5)),
}
"""The tables and figures of both papers with measured values."""


@pytest.fixture(scope="module")
def page() -> str:
    return results_page.results_page()


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """A copy of docs/results that a test may change."""
    return shutil.copytree(RESULTS, tmp_path / "results")


def change(file: Path, old: str, new: str) -> None:
    text = file.read_text(encoding="utf-8")
    assert old in text
    file.write_text(text.replace(old, new, 1), encoding="utf-8")


def section(page: str, heading: str) -> str:
    match = re.search(rf"^#+ {re.escape(heading)}$(.*?)(?=^##|\Z)", page, re.MULTILINE | re.DOTALL)
    assert match is not None, heading
    return match[1]


def table_in(text: str) -> list[dict[str, str]]:
    lines = re.findall(r"^\|(.*)\|$", text, re.MULTILINE)
    head, _, *rows = ([cell.strip() for cell in line.split("|")] for line in lines)
    return [dict(zip(head, row, strict=True)) for row in rows]


def test_the_page_is_what_the_generator_writes(page: str) -> None:
    assert PAGE.read_text(encoding="utf-8") == page, "docs/results changed: run `make results`."


# -- the page says what the rows say -------------------------------------------------------------------------


@pytest.mark.parametrize("edits", [1, 10, 100, 1000])
def test_every_cell_of_table_1_is_mean_and_deviation_over_the_seeds(page: str, edits: int) -> None:
    """Independent of how the page is made: the file of rows is read and averaged here."""
    with (RESULTS / "table1" / "table.csv").open(encoding="utf-8", newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if row["edits"] == str(edits)]
    named = f"{edits:,} edit" + "s" * (edits > 1)
    lines = table_in(section(page, f"All editors on three backbones: after {named}"))
    metrics = [column.removesuffix(".count") for column in rows[0] if column.endswith(".count")]
    assert len(lines) == 36 and len(rows) == 108 and len(metrics) == 9
    for line in lines:
        own = [row for row in rows if (row["backbone"], row["editor"]) == (line["Backbone"], line["Editor"])]
        for metric in metrics:
            found = []
            for score in ("teacher_forced", "exact_match"):
                values = [float(row[f"{metric}.{score}"]) for row in own]
                found.append(f"{fsum(values) / 3:.1f}±{stdev(values):.1f}")
            assert line[metric.replace("_", " ").capitalize()] == " / ".join(found)


def test_the_table_of_choosing_says_what_the_rows_say(page: str) -> None:
    lines = {
        (line["Backbone"], line["Editor"]): line
        for line in table_in(section(page, "All editors on three backbones: after 1,000 edits"))
    }
    choosing = (PAGE.parent / "CHOOSING.md").read_text(encoding="utf-8")
    table = table_in(section(choosing, "By their limits"))
    assert len(table) == 12
    for line in table:
        row = lines["tiny-llava", line["editor"].strip("`")]
        for column in ("average", "reliability", "modal generality", "modal locality"):
            exact = row[column.capitalize()].split(" / ")[1].split("±")[0]
            assert line[column] == exact, (line["editor"], column)


def test_a_changed_cell_changes_the_page(results: Path, page: str) -> None:
    change(results / "lemoe-smollm2-zsre" / "table.csv", "86.3482733932734,69.8,", "86.3482733932734,12.3,")
    changed = results_page.results_page(results)
    assert "86.3 / 69.8 / 27.3" in page and "86.3 / 12.3 / 27.3" not in page
    assert "86.3 / 12.3 / 27.3" in changed and "86.3 / 69.8 / 27.3" not in changed


def test_a_verdict_follows_from_the_rows(results: Path, page: str) -> None:
    """Without SERAC, which is ahead of it on one backbone, LiveEdit is nowhere behind another method."""
    file = results / "table1" / "table.csv"
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
    file.write_text("".join(line for line in lines if not line.startswith("serac,")), encoding="utf-8")
    behind = "liveedit 98.1 is not the best: serac 99.0 is ahead"
    assert behind in page
    changed = section(results_page.results_page(results), "All editors on three backbones")
    assert "serac" not in changed and behind not in changed and "liveedit 98.8 is" in changed


def test_rows_of_an_experiment_bring_commit_and_findings_with_them(results: Path) -> None:
    """rows.json names its experiment. The entry in runs.toml gives only the folder."""
    row = {
        **{"backbone": "small-lm", "data": "facts", "edits": 20, "seed": 0, "status": "complete", "label": "kv_anchor"},
        **{"router": "kv_anchor", "diagonal_mass": 0.875, "consistency": [[1.0]], "batch_sizes": [20]},
        "batches": {score: [60.0] for score in ("teacher_forced", "exact_match", "broken")},
        "metrics": {"reliability": {"teacher_forced": 61.5, "exact_match": 50.0, "broken": 5.0, "count": 20}},
        "provenance": {"git_sha": "0123456789abcdef", "dirty": True},
    }
    rows = [{**row, "when": when, "editor": f"kv_anchor, {when}"} for when in ("immediate", "final")]
    (results / "small").mkdir()
    written = {"rows": rows, "report": {"of": "lemoe-figure2"}}
    (results / "small" / "rows.json").write_text(json.dumps(written), encoding="utf-8")
    with (results / "runs.toml").open("a", encoding="utf-8") as stream:
        stream.write('[[run]]\ntitle = "Small"\nquestion = "Which?"\ncommand = "liveedit"\nfolder = "small"\n')
    found = section(results_page.results_page(results), "Small")
    assert "Commit 0123456 with uncommitted changes." in found
    assert "87.5 % of the edits are routed to the expert that processed them" in found.replace("\\", "")


def test_a_figure_without_rows_has_its_commit_and_its_numbers(results: Path) -> None:
    folder = results / "seen"
    folder.mkdir()
    (folder / "attribution.json").write_text("{}", encoding="utf-8")
    (folder / "one.png").write_bytes(b"")
    entry = '[[run]]\ntitle = "Seen"\nquestion = "Where?"\ncommand = "liveedit"\nfolder = "seen"\n'
    with (results / "runs.toml").open("a", encoding="utf-8") as stream:
        stream.write(entry + 'commits = ["0123456"]\nfigures = { "one.png" = "What is seen" }\n')
    found = section(results_page.results_page(results), "Seen")
    assert "Commit 0123456. [Numbers](results/seen/attribution.json)." in found
    assert "![What is seen](results/seen/one.png)" in found and "|" not in found


# -- what it has ---------------------------------------------------------------------------------------------


def test_every_table_and_figure_of_both_papers_is_in_the_index(page: str) -> None:
    rows = table_in(section(page, "The papers' tables and figures"))
    assert FROM_THE_PAPERS.issubset(row["of the paper"] for row in rows)
    for row in rows:
        assert row["command"].startswith("`") and row["ours"].startswith("[") and row["question"].endswith("?")
        assert bool(re.search(r"[0-9a-f]{7}", row["commit"])) != ("run" in row["ours"].split("]")[0])


def test_every_command_of_the_index_exists_and_every_command_of_a_paper_is_on_the_page(page: str) -> None:
    known = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}
    found = re.findall(r"^`?liveedit paper ([a-z0-9 -]+?)(?: --|`)", page, re.MULTILINE)
    assert {name for names in found for name in names.split()} == known


def test_every_kept_folder_has_an_entry(page: str) -> None:
    folders = {path.name for path in RESULTS.iterdir() if path.is_dir()} - {"speed"}
    assert folders == set(re.findall(r"\[(?:Rows|Numbers)\]\(results/([\w-]+)/", page))


def test_a_kept_run_of_a_benchmark_is_linked(results: Path, page: str) -> None:
    (results / "speed").mkdir(exist_ok=True)
    (results / "speed" / "store.json").write_text("{}", encoding="utf-8")
    rows = table_in(section(results_page.results_page(results), "Speed"))
    kept = {row["command"]: row["a run"] for row in rows}
    assert kept["`python benchmarks/store.py`"] == "[kept](results/speed/store.json)"
    assert kept["`python benchmarks/query_overhead.py`"] == "–"


# -- what is refused -----------------------------------------------------------------------------------------


def test_a_missing_folder_is_named(results: Path) -> None:
    shutil.rmtree(results / "paper-form")
    with pytest.raises(NotFoundError, match=r"\"The paper's form\" has its rows in .*paper-form"):
        results_page.results_page(results)


def test_a_missing_figure_is_named(results: Path) -> None:
    (results / "table1" / "table1-averages.png").unlink()
    with pytest.raises(NotFoundError, match=r"names the figure table1-averages\.png"):
        results_page.results_page(results)


def test_a_table_of_another_form_is_refused(results: Path) -> None:
    change(results / "lemoe-smollm2-zsre" / "table.csv", "editor,", "method,")
    with pytest.raises(ConfigError, match=r"is not the table\.csv of a report"):
        results_page.results_page(results)


def replaced(old: str, new: str) -> Callable[[str], str]:
    return lambda text: text.replace(old, new, 1)


@pytest.mark.parametrize(
    ("edited", "said"),
    [
        (replaced('command = "liveedit paper table2 --out DIR"\n', ""), "'LiveEdit without one part'.command: Field"),
        (replaced('"liveedit paper table2 --out DIR"', '" "'), "'LiveEdit without one part'.command"),
        (replaced('not_run = "not run at length"\n', ""), "give either folder, with the rows, or not_run"),
        (replaced('folder = "table1"\n', 'folder = "table1"\nnot_run = "no"\n'), "give either folder"),
        (replaced('folder = "table1"\n', 'folder = "table1"\nseed = 0\n'), "Extra inputs are not permitted"),
        (replaced("mostly by rounding.", "79.0 % of the answers."), "'79.0 %' in .* looks measured"),
        (replaced('commits = ["7dd084b"]\n', ""), "Give `commits` if none is recorded"),
        (replaced('folder = "table1"\n', 'folder = "table1"\ncommits = ["7dd084b"]\n'), "and only then"),
    ],
)
def test_an_entry_that_cannot_be_used_is_refused(results: Path, edited: Callable[[str], str], said: str) -> None:
    file = results / "runs.toml"
    text = file.read_text(encoding="utf-8")
    assert edited(text) != text
    file.write_text(edited(text), encoding="utf-8")
    with pytest.raises(ConfigError, match=said):
        results_page.results_page(results)
