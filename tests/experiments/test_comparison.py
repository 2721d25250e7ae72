"""Table 1 in small: runs that are measured once, go on after an interruption, and fail by themselves."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from liveedit.backbones import Backbone
from liveedit.cli import main
from liveedit.editors import editor_names
from liveedit.errors import InvalidInputError, NotFoundError
from liveedit.evaluation import bench as bench_module
from liveedit.experiments import runs
from liveedit.experiments.comparison import comparison, default_editors, summarize, variants
from liveedit.experiments.experiment import Experiment, ExperimentResult, run_experiment
from liveedit.experiments.jobs import Outcome, Workers
from liveedit.experiments.papers import TABLE_1, TABLE_5, TABLE_6
from liveedit.experiments.report.averages import PAPER_METRICS
from liveedit.experiments.runs import BenchOptions

SMALL = BenchOptions(cases=4, few_edits_cases=2, max_new_tokens=2)


@pytest.fixture
def loaded(tiny_llava: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs get the backbone that is loaded already, by any name."""
    monkeypatch.setattr(runs, "load_backbone", lambda name, **load: tiny_llava)
    runs.loaded_backbone.cache_clear()
    runs.opened_data.cache_clear()


def small(out: Path, world: Path, editors: tuple[str, ...] = ("none", "ft-l"), **changes: Any) -> Experiment:
    given: dict[str, Any] = {"backbones": ("tiny-llava",), "edits": (1, 2), "seeds": (0, 1), "options": SMALL}
    data = (f"mmedit:{world / 'eval.json'}",)
    return comparison(TABLE_1, out, **{"editors": editors, "data": data, **given, **changes})


def run(experiment: Experiment, out: Path, ended: Callable[..., None] = lambda *_: None) -> ExperimentResult:
    return run_experiment(experiment, out, Workers(), ended)


def row_files(out: Path) -> dict[str, int]:
    return {file.name: file.stat().st_mtime_ns for file in (out / "runs").rglob("*-seed?.json")}


@pytest.mark.usefixtures("loaded")
def test_a_table_is_measured_once(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = run(small(tmp_path, world), tmp_path)
    assert (first.measured, first.failed) == (8, ())
    rows = first.findings.rows
    assert {(row["editor"], row["edits"], row["seed"]) for row in rows} == {
        (editor, edits, seed) for editor in ("none", "ft-l") for edits in (1, 2) for seed in (0, 1)
    }
    assert all(row["provenance"]["backbone_digest"] and row["provenance"]["data_digest"] for row in rows)
    files = row_files(tmp_path)
    assert len(files) == 8
    assert len(list((tmp_path / "runs").rglob("*.answers.jsonl"))) == 8

    monkeypatch.setattr(bench_module, "measure", lambda *_, **__: pytest.fail("a finished run was measured again"))
    again = run(small(tmp_path, world), tmp_path)
    assert (again.measured, row_files(tmp_path)) == (0, files)
    assert again.findings.rows == rows


@pytest.mark.usefixtures("loaded")
def test_an_interrupted_table_goes_on_where_it_was(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[int] = []
    measure = bench_module.measure

    def interrupted(backbone: Any, editor: Any, group: Any, *others: Any, **options: Any) -> Any:
        measured.append(len(group))
        if len(measured) == 4:  # The second run of groups of one has begun.
            raise KeyboardInterrupt
        return measure(backbone, editor, group, *others, **options)

    monkeypatch.setattr(bench_module, "measure", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(small(tmp_path, world, seeds=(0,)), tmp_path)
    kept = row_files(tmp_path)
    assert list(kept) == ["none-1-seed0.json"]
    assert not (tmp_path / "report.md").exists()
    endings: list[tuple[str, bool]] = []

    def ended(outcome: Outcome, done: int, total: int) -> None:
        assert outcome.done is not None
        endings.append((outcome.job.title, outcome.done.kept))

    whole = run(small(tmp_path, world, seeds=(0,)), tmp_path, ended)
    assert [title.split(": ")[1] for title, was_kept in endings if was_kept] == ["none, 1 edits, seed 0"]
    assert len(whole.findings.rows) == 4
    assert row_files(tmp_path)["none-1-seed0.json"] == kept["none-1-seed0.json"]


@pytest.mark.usefixtures("loaded")
def test_other_settings_or_weights_are_measured_anew(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few: dict[str, Any] = {"editors": ("none",), "edits": (1,), "seeds": (0,)}
    assert run(small(tmp_path, world, **few), tmp_path).measured == 1
    longer = BenchOptions(cases=4, few_edits_cases=2, max_new_tokens=3)
    assert run(small(tmp_path, world, **few, options=longer), tmp_path).measured == 1
    quantized = replace(longer, load=(("quantization", "8bit"),))
    assert run(small(tmp_path, world, **few, options=quantized), tmp_path).measured == 1
    assert run(small(tmp_path, world, **few, options=quantized), tmp_path).measured == 0
    assert run(small(tmp_path, world, **few, options=longer), tmp_path).measured == 1
    monkeypatch.setattr(Backbone, "digest", lambda backbone: "other weights")
    assert run(small(tmp_path, world, **few, options=longer), tmp_path).measured == 1


@pytest.mark.usefixtures("loaded")
def test_a_failing_run_is_named_and_stops_no_other(world: Path, tmp_path: Path) -> None:
    missing = {"own": str(tmp_path / "nothing-here")}
    given = small(tmp_path, world, ("own=liveedit", "none"), edits=(1,), seeds=(0,), sources=missing)
    found = run(given, tmp_path)
    (failed,) = found.failed
    assert failed.job.title.endswith("own, 1 edits, seed 0")
    assert "There is no trained" in failed.error
    assert [row["editor"] for row in found.findings.rows] == ["none"]
    report = found.report.read_text(encoding="utf-8")
    assert "## Not measured" in report and "own, 1 edits, seed 0" in report
    assert "| none | 1 |" in report


def test_runs_fill_the_table_from_few_edits_to_many_seed_by_seed(tmp_path: Path) -> None:
    found = comparison(TABLE_1, tmp_path, editors=("none", "ft-l"), backbones=("tiny-llava", "tiny-blip2"))
    stages = {(job.seeds[0], job.edits[0]): job.stage for job in found.jobs}  # type: ignore[attr-defined]
    assert sorted(stages, key=lambda key: stages[key]) == [
        (seed, edits) for seed in (0, 1, 2) for edits in (1, 10, 100, 1000)
    ]
    assert len(found.jobs) == 2 * 2 * 4 * 3


def test_tables_5_and_6_are_the_other_backbones_with_all_published_data(tmp_path: Path) -> None:
    assert TABLE_5.backbones == ("tiny-blip2", "tiny-llava")
    assert TABLE_6.backbones == ("tiny-minigpt4",)
    findings = comparison(TABLE_6, tmp_path, editors=("none",)).summarize([], [("a run", "an error")])
    assert {line[0] for line in findings.published[0].rows} == {"MiniGPT-4 (7B)"}
    assert {line[1] for line in findings.published[0].rows} == {"E-VQA", "VLKEB", "E-IC"}
    assert findings.summary == ("Nothing could be measured.",)


def test_a_variant_is_judged_apart_and_is_no_rival() -> None:
    scores = {"liveedit": 90.0, "liveedit-refine": 95.0, "lte": 92.0}
    rows = [
        {
            **{"editor": editor, "backbone": "tiny-llava", "data": "world", "edits": 1000, "seed": seed},
            "status": "complete",
            "metrics": {
                name: {"teacher_forced": value, "exact_match": value - seed, "count": 9} for name in PAPER_METRICS
            },
        }
        for editor, value in scores.items()
        for seed in (0, 1, 2)
    ]
    findings = summarize(TABLE_1, list(scores), rows, [])
    verdicts = (findings.extra or {})["verdicts"]
    assert [(found["own"], found["rival"], found["standing"]) for found in verdicts] == [
        *[("liveedit", "lte", "not best")] * 2,
        *[("liveedit-refine", "lte", "best")] * 2,
    ]
    assert sum(line.startswith("liveedit-refine has the best average") for line in findings.summary) == 1
    assert {"Is liveedit the best?", "Is liveedit-refine the best?"} <= {table.title for table in findings.tables}


def test_what_no_cell_uses_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no editor 'no-such'"):
        comparison(TABLE_1, tmp_path, editors=("no-such",))
    with pytest.raises(InvalidInputError, match="given twice"):
        comparison(TABLE_1, tmp_path, editors=("none", "none"))
    with pytest.raises(InvalidInputError, match="tiny-blip2/none"):
        comparison(TABLE_1, tmp_path, editors=("none",), backbones=("tiny-llava",), sources={"tiny-blip2/none": "x"})


def test_each_backbone_may_have_trained_parts_of_its_own(tmp_path: Path) -> None:
    sources = {"tiny-blip2/liveedit": "of-blip2", "liveedit": "of-all"}
    found = comparison(TABLE_1, tmp_path, editors=("liveedit", "none"), edits=(1,), seeds=(0,), sources=sources)
    choices = {(job.backbone, job.editor.label): job.editor.source for job in found.jobs}  # type: ignore[attr-defined]
    assert choices["tiny-blip2", "liveedit"] == "of-blip2"
    assert choices["tiny-llava", "liveedit"] == "of-all"
    assert choices["tiny-llava", "none"] is None


def test_all_editors_are_compared_unless_some_are_named() -> None:
    assert set(default_editors()) == set(editor_names())
    assert default_editors() == (
        *("none", "ft-l", "ft-m", "mend", "serac", "t-patcher", "lte", "recipe", "lemoe", "ike"),
        *("liveedit", "liveedit-refine", "fitted-experts"),
    )


def test_variants_of_an_editor_are_those_derived_from_it() -> None:
    assert variants("liveedit") == ("liveedit-refine",)
    assert variants("ft-l") == ()


@pytest.mark.usefixtures("loaded")
def test_the_command(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few = ("--edits", "1", "2", "--seeds", "0", "--few-edits-cases", "2", "--max-new-tokens", "4")
    data = ("--data", f"mmedit:{world / 'eval.json'}", "--backbone", "tiny-llava")
    bad = ("--editor-path", f"own={tmp_path / 'nothing'}")
    given = ["paper", "table1", "--out", str(tmp_path / "out"), "--editor", "none", "own=liveedit", *few, *data, *bad]
    assert main(given) == 1
    out, err = capsys.readouterr()
    assert "[4/4] " in err
    assert "FAILED (There is no trained" in err
    assert "Average" in out and "report.md" in out
    files = {file.name for file in (tmp_path / "out").iterdir()}
    assert files >= {"report.md", "table.md", "table.tex", "table.csv", "rows.json", "runs"}

    whole = [argument for argument in given if not argument.startswith("own=") and argument != "--editor-path"]
    assert main([*whole, "--json"]) == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert [row["edits"] for row in found["rows"]] == [1, 2]
    assert (found["failed"], found["verdicts"]) == ([], [])
    assert err.count("done before") == 2
