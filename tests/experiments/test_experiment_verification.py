"""Reports of the papers' experiments are compared with their rows, and these with their raw answers."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import typer

from liveedit.backbones import Backbone
from liveedit.cli import paper
from liveedit.evaluation.verification import Verification
from liveedit.experiments import runs
from liveedit.experiments.comparison import comparison
from liveedit.experiments.experiment import Experiment, run_experiment
from liveedit.experiments.jobs import Workers
from liveedit.experiments.lemoe import figures, tables
from liveedit.experiments.liveedit import ablation, forms, sweeps
from liveedit.experiments.liveedit.trained_runs import TrainedRun, Training
from liveedit.experiments.papers import TABLE_1, TABLES
from liveedit.experiments.report.report import findings_texts
from liveedit.experiments.runs import BenchOptions, EditorChoice
from liveedit.experiments.verification import summarizer, verify_folder
from liveedit.training.trainer import StageConfig

SMALL = BenchOptions(cases=4, few_edits_cases=2, max_new_tokens=2, command="liveedit paper")


@pytest.fixture(autouse=True)
def loaded(tiny_llava: Backbone, monkeypatch: pytest.MonkeyPatch) -> Backbone:
    """Runs get the backbone that is loaded already; reports have no figures, which take long to draw."""
    monkeypatch.setattr(runs, "load_backbone", lambda name, **load: tiny_llava)
    monkeypatch.setattr("liveedit.experiments.report.report._figures", lambda drawings, folder: [])
    runs.loaded_backbone.cache_clear()
    runs.opened_data.cache_clear()
    return tiny_llava


@pytest.fixture
def data(world: Path) -> str:
    return f"mmedit:{world / 'eval.json'}"


def run(experiment: Experiment, out: Path) -> None:
    result = run_experiment(experiment, out, Workers())
    assert result.findings.rows
    assert {row["provenance"]["command"] for row in result.findings.rows} == {"liveedit paper"}


def rewritten(file: Path, change: Callable[[Any], None]) -> str:
    """Change a JSON file; returns what it was."""
    text = file.read_text(encoding="utf-8")
    content = json.loads(text)
    change(content)
    file.write_text(json.dumps(content), encoding="utf-8")
    return text


def found_in(found: Verification) -> set[str]:
    return {remark.file for remark in found.disagreements}


def test_a_table_with_verdicts_and_a_failed_run(data: str, tmp_path: Path) -> None:
    missing = {"own": str(tmp_path / "nothing")}
    given: dict[str, Any] = {"backbones": ["tiny-llava"], "data": [data], "edits": [1, 2], "seeds": [0, 1]}
    editors = ["none", "liveedit", "own=liveedit"]
    run(comparison(TABLE_1, tmp_path, editors, **given, sources=missing, options=SMALL), tmp_path)
    whole = verify_folder(tmp_path)
    assert whole.disagreements == []
    assert whole.rows == 8 and whole.answers > 8

    def lead(content: Any) -> None:
        content["verdicts"][0]["own_average"] += 0.5

    def error(content: Any) -> None:
        content["failed"][0]["error"] = "another"

    for change, names in ((lead, {"rows.json"}), (error, {"report.md"})):
        before = rewritten(tmp_path / "rows.json", change)
        assert found_in(verify_folder(tmp_path)) == names
        (tmp_path / "rows.json").write_text(before, encoding="utf-8")
    report = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "Not measured there: own." in report
    (tmp_path / "report.md").write_text(report.replace(" points", " Points", 1), encoding="utf-8")
    assert found_in(verify_folder(tmp_path)) == {"report.md"}
    (tmp_path / "report.md").write_text(report, encoding="utf-8")
    (file,) = (tmp_path / "runs").glob("*/results/liveedit-2-seed1.json")
    rewritten(file, lambda row: row["metrics"]["reliability"].update(count=3))
    assert found_in(verify_folder(tmp_path)) == {file.relative_to(tmp_path).as_posix(), "rows.json"}


def test_rows_of_lemoe_share_their_answers(data: str, tmp_path: Path) -> None:
    settings = {"batch_edits": 2, "steps": 2, "routing_steps": 2}
    options = BenchOptions(cases=5, max_new_tokens=2, command="liveedit paper")
    run(figures.figure_2(tmp_path, ["tiny-llava"], data, 5, (0,), settings, options), tmp_path)
    whole = verify_folder(tmp_path)
    assert whole.disagreements == [] and whole.rows == 4
    (note,) = [one.text for one in whole.unchecked if "not in the raw answers" in one.text]
    assert "consistency" in note and "batches" not in note and "metrics" not in note
    row = json.loads((tmp_path / "rows.json").read_text(encoding="utf-8"))["rows"][0]
    assert row["provenance"]["config"]["editor_digest"] and row["seconds"] > 0

    file = sorted((tmp_path / "runs").glob("*/kv-anchor-*.answers.jsonl"))[0]
    lines = file.read_text(encoding="utf-8").splitlines()
    last = json.loads(lines[-1])
    lines[-1] = json.dumps({**last, "teacher_forced": 100.0 - last["teacher_forced"] / 2 - 12.5})
    file.write_text("\n".join(lines), encoding="utf-8")
    found = verify_folder(tmp_path)
    final = [one.text for one in found.disagreements if "by its raw answers" in one.text]
    assert final and all("kv_anchor, final" in text for text in final)


def test_rows_of_trained_editors(world: Path, data: str, tmp_path: Path) -> None:
    small = (("module_width", 32), ("rank", 2), ("heads", 4), ("same_subject", "ignored"))
    stages = (StageConfig(name="routing", steps=1, batch=4, learning_rate=1e-3),)
    training = Training(str(world), validation=4, stages=stages, settings=small)
    where, choice = (tmp_path, "tiny-llava", data), EditorChoice("feature_parts=2", "liveedit")
    job = TrainedRun(*where, choice, (1,), (0,), SMALL, 0, (("feature_parts", 2),), training)
    summarize = partial(sweeps.summarize, sweeps.FIGURE_4, training)
    run(Experiment("figure4", (job,), summarize, {"training": training.summarized}), tmp_path)
    assert verify_folder(tmp_path).disagreements == []
    rewritten(tmp_path / "rows.json", lambda content: content["rows"][0]["training"].update(parameters=3))
    assert found_in(verify_folder(tmp_path)) == {"rows.json"}


def test_every_experiment_can_be_summarized_again(tmp_path: Path, loaded: Backbone) -> None:
    half = Training(steps_share=0.5, form="paper")
    experiments = [
        *(comparison(table, tmp_path, ["none", "ft-l"]) for table in TABLES.values()),
        ablation.ablation(tmp_path, training=half),
        forms.forms(tmp_path, loaded, training=half),
        *(sweeps.sweep(figure, tmp_path, loaded, training=half) for figure in sweeps.SWEEPS.values()),
        *(tables.tables(tmp_path), figures.figure_2(tmp_path), figures.figure_3(tmp_path)),
    ]
    assert {one.name for one in experiments} == {*typer.main.get_command(paper.app).commands} - {"figure6", "figure7"}
    failed = [("a run", "an error")]
    for one in experiments:
        again = summarizer(json.loads(json.dumps({"of": one.name, **one.about})))
        assert findings_texts(again([], failed)) == findings_texts(one.summarize([], failed))
        assert arguments(again) == arguments(one.summarize)


def arguments(summarize: Any) -> list[Any]:
    """What it was given besides rows; of a training what reports name."""
    given = getattr(summarize, "args", ())
    return [one.summarized if isinstance(one, Training) else one for one in given]
