"""The papers' tables from made-up rows: averages, verdicts, what is published beside, and the files of a report."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from liveedit.evaluation.lines import lines_of
from liveedit.evaluation.published import published_ablation_table, published_table, published_values
from liveedit.evaluation.table import Table
from liveedit.experiments.report.averages import PAPER_METRICS, average_spread, in_order
from liveedit.experiments.report.figures import draw_averages
from liveedit.experiments.report.report import Findings, write_findings
from liveedit.experiments.report.tables import harder_table, paper_table, verdict_table
from liveedit.experiments.report.verdict import headline, judge

Row = dict[str, Any]


def row(
    editor: str, average: float, seed: int = 0, edits: int = 1000, exact: float | None = None, **changes: Any
) -> Row:
    """A run whose five metrics have this average: they stand 2, 1, 0, -1 and -2 points from it; of broken answers 5."""
    exact = average if exact is None else exact
    steps = zip(PAPER_METRICS, (2, 1, 0, -1, -2), strict=True)
    metrics = {
        name: {"teacher_forced": average + step, "exact_match": exact + step, "broken": 5 + step, "count": 10}
        for name, step in steps
    }
    named = {"editor": editor, "backbone": "tiny-blip2", "data": "world", "edits": edits, "seed": seed}
    return {**named, "metrics": metrics, "status": "complete", **changes}


def seeds(editor: str, averages: Sequence[float], exact: Sequence[float] | None = None, **changes: Any) -> list[Row]:
    exact = exact or averages
    return [row(editor, value, seed, exact=exact[seed], **changes) for seed, value in enumerate(averages)]


# -- averages --------------------------------------------------------------------------------------------


def test_the_average_is_taken_seed_by_seed_and_only_where_all_five_are_there() -> None:
    whole = seeds("liveedit", [90, 92, 94], [80, 80, 80])
    (line,) = lines_of(whole)
    spread = average_spread(line, "teacher_forced")
    assert spread is not None
    assert (spread.mean, spread.std) == (pytest.approx(92), pytest.approx(2))
    del whole[1]["metrics"]["text_locality"]
    (line,) = lines_of(whole)
    spread = average_spread(line, "teacher_forced")
    assert spread is not None
    assert (spread.mean, spread.seeds) == (pytest.approx(92), 2)
    (table,) = [paper_table(lines_of(whole), "Title")]
    assert table.rows[0][-2] == "92.0±2.8 (2 of 3 seeds) / 80.0±0.0 (2 of 3 seeds) / 5.0±0.0 (2 of 3 seeds)"


def test_the_paper_s_columns_with_three_figures() -> None:
    lines = in_order(lines_of([*seeds("ft-l", [50, 60, 70], [40, 40, 40]), *seeds("a", [1, 1, 1])]), ["ft-l"])
    table = paper_table(lines, "Title")
    assert table.header[-7:] == (
        *("Reliability", "Text generality", "Modal generality", "Text locality", "Modal locality", "Average", "Seeds"),
    )
    assert table.rows[0] == (
        *("ft-l", "1,000", "62.0 / 42.0 / 7.0", "61.0 / 41.0 / 6.0", "60.0 / 40.0 / 5.0"),
        *("59.0 / 39.0 / 4.0", "58.0 / 38.0 / 3.0", "60.0±10.0 / 40.0±0.0 / 5.0±0.0", "3"),
    )
    assert table.rows[1][0] == "a"  # An editor that is not named in the order follows.
    assert harder_table(lines, "Harder") is None
    rows = seeds("ft-l", [50, 60, 70])
    rows[0]["metrics"]["near_duplicate_locality"] = {"teacher_forced": 30.0, "exact_match": 20.0, "count": 4}
    harder = harder_table(lines_of(rows), "Harder")
    assert harder is not None
    assert harder.header[-1] == "Near duplicate locality"
    assert harder.rows[0][-1] == "30.0 (1 of 3 seeds) / 20.0 (1 of 3 seeds) / –"


# -- verdicts --------------------------------------------------------------------------------------------


def test_best_where_every_seed_is_ahead_by_about_as_much() -> None:
    rows = [*seeds("liveedit", [92, 93, 94]), *seeds("lte", [80, 82, 81]), *seeds("none", [40, 40, 40])]
    found = judge(lines_of(rows), "liveedit")
    assert [(verdict.standing, verdict.rival, verdict.score) for verdict in found] == [
        ("best", "lte", "teacher_forced"),
        ("best", "lte", "exact_match"),
    ]
    # Leads 12, 11 and 13: mean 12, std 1, half width 4.303 / sqrt(3) = 2.484.
    assert found[0].lead is not None
    assert (found[0].lead.mean, found[0].lead.low) == (pytest.approx(12), pytest.approx(12 - 2.484, abs=1e-3))
    assert "liveedit 93.0 is the best, ahead of lte 81.0 by 12.0 points" in found[0].sentence()
    assert "in all 2 comparisons" in headline(found)


def test_ahead_within_the_spread_is_not_best() -> None:
    # Leads 10, -1 and 3: mean 4, std 5.568, half width 13.83.
    rows = [*seeds("liveedit", [92, 81, 85]), *seeds("lte", [82, 82, 82])]
    found = judge(lines_of(rows), "liveedit")
    assert [verdict.standing for verdict in found] == ["within spread", "within spread"]
    assert "not shown to be the best" in found[0].sentence()
    assert "in 0 of 2 comparisons" in headline(found)
    assert "within spread: tiny-blip2 on world (teacher-forced token accuracy and exact match)" in headline(found)


def test_a_rival_further_behind_may_be_the_doubtful_one() -> None:
    # Surely ahead of "near" (by 2 in each seed), but "wild" was ahead in one seed of three.
    rows = [*seeds("liveedit", [90, 90, 90]), *seeds("near", [88, 88, 88]), *seeds("wild", [95, 60, 70])]
    found = judge(lines_of(rows), "liveedit")
    assert (found[0].standing, found[0].rival) == ("within spread", "wild")


def test_the_two_ways_of_scoring_are_judged_apart() -> None:
    rows = [*seeds("liveedit", [92, 93, 94], [60, 61, 62]), *seeds("lte", [80, 81, 82], [70, 71, 72])]
    forced, exact = judge(lines_of(rows), "liveedit")
    assert (forced.standing, exact.standing) == ("best", "not best")
    assert "liveedit 61.0 is not the best: lte 71.0 is ahead by 10.0 points" in exact.sentence()
    text = headline([forced, exact])
    assert "in 1 of 2 comparisons" in text
    assert "not best: tiny-blip2 on world (exact match)" in text


def test_level_is_not_best() -> None:
    found = judge(lines_of([*seeds("liveedit", [90, 90]), *seeds("lte", [90, 90])]), "liveedit")
    assert found[0].standing == "not best"
    assert "lte 90.0 is level" in found[0].sentence()


def test_one_seed_shows_no_spread() -> None:
    found = judge(lines_of([row("liveedit", 95), row("lte", 20)]), "liveedit")
    assert found[0].standing == "one seed"
    assert "the spread is not known" in found[0].sentence()


def test_only_seeds_that_both_ran_are_compared() -> None:
    rows = [*seeds("liveedit", [90, 10, 90]), *(row("lte", 80, seed) for seed in (0, 2))]
    found = judge(lines_of(rows), "liveedit")
    assert found[0].lead is not None
    assert (found[0].standing, found[0].lead.mean, found[0].lead.seeds) == ("best", pytest.approx(10), 2)


def test_judged_at_the_most_edits_and_never_by_a_variant_or_an_unfinished_run() -> None:
    rows = [
        *(*seeds("liveedit", [90, 90], edits=1), *seeds("liveedit", [80, 81])),
        *(*seeds("lte", [99, 99], edits=1), *seeds("lte", [70, 71])),
        *seeds("liveedit-refine", [99, 99]),
        *seeds("mend", [99, 99], status="cut off"),
        *seeds("ft-l", [99, 99], edits=1),
    ]
    found = judge(lines_of(rows), "liveedit", ["liveedit-refine"], ["liveedit", "liveedit-refine", "lte", "serac"])
    assert [(verdict.standing, verdict.rival, verdict.edits) for verdict in found] == [("best", "lte", 1000)] * 2
    assert found[0].absent == ("ft-l", "mend", "serac")
    assert "Not measured there: ft-l, mend, serac." in found[0].sentence()
    table = verdict_table(found)
    assert dict(zip(table.header, table.rows[0], strict=True))["Lead"] == "+10.0 [10.0, 10.0]"


def test_nothing_is_judged_without_a_run_of_its_own() -> None:
    found = judge(lines_of([*seeds("liveedit", [90], edits=1), *seeds("lte", [70])]), "liveedit")
    assert {verdict.standing for verdict in found} == {"not judged"}
    assert "not judged" in found[0].sentence()
    assert verdict_table(found).rows[0][-1] == "–"


# -- published values ------------------------------------------------------------------------------------


def test_published_ablation_is_that_of_the_paper() -> None:
    values = published_values("published_ablation.json")
    # Read off the paper's table 2.
    assert ["- l_sr1", 87.93, 83.77, 73.4, 100.0, 76.93, 84.41] in values["rows"]
    for entry in values["rows"]:
        assert sum(entry[1:6]) / 5 == pytest.approx(entry[6], abs=0.0101)
    table = published_ablation_table()
    assert "table 2" in table.notes[0]
    assert table.rows[0] == ("N/A", "20.57", "19.03", "14.17", "100.00", "100.00", "50.75")


def test_published_values_can_be_kept_to_backbones_and_data() -> None:
    table = published_table({1000}, ["MiniGPT-4 (7B)"], ["E-IC", "VLKEB"])
    assert len(table.rows) == 18
    assert {line[:2] for line in table.rows} == {("MiniGPT-4 (7B)", "E-IC"), ("MiniGPT-4 (7B)", "VLKEB")}


# -- a report --------------------------------------------------------------------------------------------


def findings(**changes: Any) -> Findings:
    rows = [*seeds("liveedit", [92, 93, 94]), *seeds("t-patcher_&", [80, 82, 81])]
    table = paper_table(lines_of(rows), "A title with 5 % & more")
    return Findings(
        **{"title": "A title", "rows": rows, "tables": [table], "published": [published_table()], **changes}
    )


def test_a_report_keeps_published_values_apart(tmp_path: Path) -> None:
    report = write_findings(findings(summary=["liveedit is *so* good."]), tmp_path / "new").read_text(encoding="utf-8")
    assert report.startswith("# A title\n\nliveedit is \\*so\\* good.\n")
    ours, published = report.split("## Published values (not ours)")
    assert "BLIP2-OPT" not in ours and "BLIP2-OPT" in published
    assert "tiny-blip2" not in published.split("## Provenance")[0]
    for name in ("table.md", "table.tex", "table.csv", "rows.json"):
        text = (tmp_path / "new" / name).read_text(encoding="utf-8")
        assert "liveedit" in text
        assert "BLIP2-OPT" not in text and "2411.15432" not in text
    rows = list(csv.DictReader(io.StringIO((tmp_path / "new" / "table.csv").read_text(encoding="utf-8"))))
    assert [(line["editor"], line["seed"]) for line in rows[:2]] == [("liveedit", "0"), ("liveedit", "1")]
    assert float(rows[0]["reliability.teacher_forced"]) == 94.0


def test_what_failed_is_named(tmp_path: Path) -> None:
    failed = [("tiny-blip2, world: mend", "There is no\ntrained editor 'mend'.")]
    report = write_findings(findings(failed=failed, extra={"verdicts": []}), tmp_path).read_text(encoding="utf-8")
    assert "## Not measured" in report
    assert "- tiny-blip2, world: mend: There is no trained editor 'mend'." in report
    found = json.loads((tmp_path / "rows.json").read_text(encoding="utf-8"))
    assert found["failed"] == [{"job": failed[0][0], "error": failed[0][1]}]
    assert (len(found["rows"]), found["verdicts"]) == (6, [])


def test_rows_that_are_not_of_the_bench_are_written_flat(tmp_path: Path) -> None:
    rows = [{"grid": 1, "value": 2.5}, {"grid": 2, "other": "x"}]
    write_findings(findings(rows=rows, bench_rows=False), tmp_path)
    lines = (tmp_path / "table.csv").read_text(encoding="utf-8").splitlines()
    assert lines == ["grid,value,other", "1,2.5,", "2,,x"]


def latex_is_whole(text: str, tables: Sequence[Table]) -> None:
    """Every environment is closed, every line has as many cells as columns, and nothing special stands bare."""
    begun, ended = re.findall(r"\\begin\{(\w+)\}", text), re.findall(r"\\end\{(\w+)\}", text)
    assert sorted(begun) == sorted(ended) == sorted(["table", "tabular"] * len(tables))
    depth = 0
    for mark in re.findall(r"(?<!\\)[{}]", text):
        depth += 1 if mark == "{" else -1
        assert depth >= 0
    assert depth == 0
    bodies = re.findall(r"\\begin\{tabular\}\{([lr]+)\}\n(.*?)\\end\{tabular\}", text, re.DOTALL)
    for (columns, body), table in zip(bodies, tables, strict=True):
        lines = [line for line in body.splitlines() if not line.endswith("rule")]
        assert len(lines) == len(table.rows) + 1
        assert {len(re.findall(r"(?<!\\)&", line)) + 1 for line in lines} == {len(columns)}
        assert all(line.endswith(r" \\") for line in lines)
        assert not re.search(r"(?<!\\)[%#_]", body)
        assert [rule for rule in ("toprule", "midrule", "bottomrule") if body.count(rule) == 1] == [
            *("toprule", "midrule", "bottomrule"),
        ]


def test_latex_is_whole(tmp_path: Path) -> None:
    rows = [*seeds("liveedit", [92, 93, 94]), *seeds("t-patcher_&", [80, 82, 81])]
    lines = lines_of(rows)
    tables = [paper_table(lines, "5 % & more_{"), verdict_table(judge(lines, "liveedit"))]
    write_findings(findings(tables=tables), tmp_path)
    text = (tmp_path / "table.tex").read_text(encoding="utf-8")
    assert text.startswith("% Needs \\usepackage{booktabs}.\n")
    latex_is_whole(text.split("\n", 1)[1], tables)


def test_averages_are_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    rows = [*seeds("liveedit", [92, 93, 94]), *seeds("liveedit", [95, 96, 97], edits=1), *seeds("$ft", [50, 51, 52])]
    rows += [row("liveedit", 90, backbone="tiny-llava"), row("mend", 10, status="cut off")]
    plot = draw_averages(lines_of(rows), tmp_path / "new" / "averages.png", "Averages")
    assert plot.path.read_bytes().startswith(b"\x89PNG")
