"""LEMoE's tables: what is planned, how many seeds there is time for, and a run from the command line."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from liveedit.cli import main
from liveedit.errors import ConfigError
from liveedit.experiments import runs
from liveedit.experiments.jobs import Done
from liveedit.experiments.lemoe.tables import SEQUENCE, Measured, tables
from liveedit.experiments.runs import BenchOptions, EditorChoice, TimedRun


def planned(out: Path, editors: Sequence[str] = (), **changes: Any) -> list[Any]:
    measured = replace(Measured(("zsre:a.json",), ("selfcheckgpt:b.json",)), **changes)
    return list(tables(out, ["tiny-llama-lm"], measured, editors, {"batch_edits": 20}).jobs)


def test_every_cell_is_a_job_and_lemoe_is_there_twice_beyond_one_batch(tmp_path: Path) -> None:
    jobs = planned(tmp_path, ["none", "lemoe"])
    short = {(job.editor.label, job.edits) for job in jobs if job.data == "zsre:a.json"}
    assert short == {
        *((name, (edits,)) for name in ("none", "lemoe") for edits in (1, 10, 100, 1000)),
        *((SEQUENCE, (edits,)) for edits in (100, 1000)),
    }
    passages = [job for job in jobs if job.data == "selfcheckgpt:b.json"]
    assert {(job.editor.label, job.edits) for job in passages} == {
        ("none", (600,)),
        ("lemoe", (600,)),
        (SEQUENCE, (600,)),
    }
    assert all(job.options.passages and job.options.max_new_tokens == 64 for job in passages)
    assert not any(job.options.passages for job in jobs if job not in passages)
    settings = {job.editor.label: dict(job.editor.settings) for job in jobs}
    assert settings == {"none": {}, "lemoe": {"batch_edits": 20}, SEQUENCE: {"batch_edits": 20, "order": "given"}}
    assert [job.stage for job in jobs] == sorted(job.stage for job in jobs)


def test_distinct_subjects_are_for_short_answers(tmp_path: Path) -> None:
    measured = Measured(("zsre:a.json",), ("selfcheckgpt:b.json",), edits=(1,))
    jobs: Sequence[Any] = tables(
        tmp_path, ["x"], measured, ["none"], None, BenchOptions(1, distinct_subjects=True)
    ).jobs
    assert {(job.data, job.options.distinct_subjects) for job in jobs} == {
        ("zsre:a.json", True),
        ("selfcheckgpt:b.json", False),
    }


def test_by_default_all_installed_rivals_are_measured(tmp_path: Path) -> None:
    labels = {job.editor.label for job in planned(tmp_path)}
    assert {"none", "ft-l", "t-patcher", "lemoe", "ike", SEQUENCE} <= labels


def test_settings_that_lemoe_does_not_have_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nonsense"):
        tables(tmp_path, settings={"nonsense": 1})


@pytest.mark.parametrize(("took", "seeds"), [(1.0, [0, 1, 2]), (9.0, [0])])
def test_further_seeds_are_measured_only_where_one_takes_little_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, took: float, seeds: list[int]
) -> None:
    asked: list[int] = []

    def measured(run: Any, editor: EditorChoice, report: Any) -> Done:
        (seed,) = run.seeds
        asked.append(seed)
        return Done(({"seed": seed, "seconds": took},), kept=seed == 0)

    monkeypatch.setattr(runs, "measure_run", measured)
    run = TimedRun(
        *(tmp_path, "tiny-llama-lm", "facts", EditorChoice("none", "none"), (1,), (0, 1, 2), BenchOptions(cases=1)),
        most_seconds=5.0,
    )
    done = run.run(lambda *arguments: None)
    assert [row["seed"] for row in done.rows] == asked == seeds
    assert done.kept is (seeds == [0])


def test_a_run_from_the_command_line_is_continued(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    zsre = [  # The first and the last are two wordings about one subject, with two answers.
        {"subject": s, "src": f"{q} {s}?", "rephrase": f"{s} is where?", "alt": a, "loc": "Who ran?", "loc_ans": "x"}
        for s, q, a in (("Coraland", "Where is", "red"), ("Vexland", "Where is", "blue"), ("Coraland", "Find", "four"))
    ]
    unrelated = {"locality_prompt": "a", "locality_ground_truth": "b"}
    passages = [
        {"prompt": f"About {name}.", "target_new": f"It is {name}.", "subject": name, **unrelated}
        for name in ("red", "blue")
    ]
    for name, rows in (("zsre", zsre), ("selfcheckgpt", passages)):
        (tmp_path / f"{name}.json").write_text(json.dumps(rows), encoding="utf-8")
    command = [
        *("paper", "lemoe-tables", "--out", str(tmp_path / "out"), "--backbone", "tiny-llama-lm", "--json"),
        *("--zsre", str(tmp_path / "zsre.json"), "--selfcheckgpt", str(tmp_path / "selfcheckgpt.json")),
        *("--edits", "3", "--passage-edits", "2", "--seeds", "0", "--editor", "none", "lemoe", "--batch-edits", "2"),
        *("--few-edits-cases", "1", "--set", "steps=3", "routing_steps=2", "hidden=16", "--max-new-tokens", "4"),
    ]
    assert main(command) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["failed"] == []
    rows = {(row["editor"], row["data"]): row for row in found["rows"]}
    assert set(rows) == {
        *((name, "zsre:zsre.json") for name in ("none", "lemoe", SEQUENCE)),
        *((name, "selfcheckgpt:selfcheckgpt.json") for name in ("none", "lemoe")),
    }
    assert all(row["seconds"] >= 0 for row in rows.values())
    assert rows["lemoe", "selfcheckgpt:selfcheckgpt.json"]["perplexity"]["mean"] > 0
    assert rows["none", "zsre:zsre.json"]["recurring"]["edits"] == 2
    report = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    titles = ("Short answers: edits in batch", "Short answers: edits in sequence", "Passages: edits in batch")
    assert all(f"## {title}" in report for title in (*titles, "Subjects with several answers"))
    assert "Passages: edits in sequence" not in report  # Two edits are one batch.

    monkeypatch.setattr(runs.Bench, "_measure", lambda *arguments: pytest.fail("it was measured again"))
    assert main(command) == 0
    assert json.loads(capsys.readouterr().out)["rows"] == found["rows"]
