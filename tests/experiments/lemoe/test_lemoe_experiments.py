"""LEMoE's figures: a watched run on a small model, and what is concluded from rows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from liveedit.backbones import Backbone
from liveedit.cli import main
from liveedit.editors.lemoe import Lemoe
from liveedit.errors import ConfigError
from liveedit.experiments import runs
from liveedit.experiments.jobs import Workers, run_jobs
from liveedit.experiments.lemoe import figures as lemoe
from liveedit.experiments.lemoe import runs as lemoe_runs
from liveedit.experiments.lemoe.runs import LemoeRun
from liveedit.experiments.runs import BenchOptions

MEASURING = BenchOptions(cases=5, max_new_tokens=2)
QUICK = {"batch_edits": 2, "steps": 2, "routing_steps": 2}

Row = dict[str, Any]


@pytest.fixture
def loaded(tiny_llava: Backbone, monkeypatch: pytest.MonkeyPatch) -> Backbone:
    monkeypatch.setattr(runs, "load_backbone", lambda name, **load: tiny_llava)
    runs.loaded_backbone.cache_clear()
    runs.opened_data.cache_clear()
    return tiny_llava


def run_of(out: Path, world: Path, routing: str = "kv_anchor", **changes: Any) -> LemoeRun:
    settings = tuple(sorted({**QUICK, "routing": routing}.items()))
    data = f"mmedit:{world / 'eval.json'}"
    return LemoeRun(out, "tiny-llava", data, routing, 5, 0, MEASURING, settings, **changes)


@pytest.mark.parametrize("routing", ["kv_anchor", "conventional"])
@pytest.mark.usefixtures("loaded")
def test_every_batch_is_asked_when_made_and_at_the_end(
    routing: str, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, list[str]]] = []
    measure = lemoe_runs.measure

    def noted(backbone: Any, editor: Lemoe, batch: Sequence[Any], *others: Any, **options: Any) -> Any:
        asked.append((len(editor.experts), [case.id for case in batch]))
        return measure(backbone, editor, batch, *others, **options)

    monkeypatch.setattr(lemoe_runs, "measure", noted)
    (outcome,) = run_jobs([run_of(tmp_path, world, routing)], Workers())
    assert outcome.error == ""
    assert outcome.done is not None and not outcome.done.kept
    # Five edits in batches of two: immediately with 1, 2 and 3 experts in force, finally with all three.
    assert [experts for experts, _ in asked] == [1, 2, 3, 3, 3, 3]
    assert [ids for _, ids in asked[:3]] == [ids for _, ids in asked[3:]]
    assert sorted(edit for _, ids in asked[:3] for edit in ids) == sorted({edit for _, ids in asked for edit in ids})
    immediate, final = outcome.done.rows
    assert (immediate["editor"], final["editor"]) == (f"{routing}, immediate", f"{routing}, final")
    assert (immediate["when"], final["when"]) == ("immediate", "final")
    for row in (immediate, final):
        assert row["batch_sizes"] == [2, 2, 1]
        assert row["metrics"]["reliability"]["count"] == 5
        assert len(row["consistency"]) == 3
        shares = [value for value in row["batches"]["teacher_forced"] if value is not None]
        assert len(shares) == 3
        weighted = sum(a * b for a, b in zip(shares, row["batch_sizes"], strict=True)) / 5
        assert weighted == pytest.approx(row["metrics"]["reliability"]["teacher_forced"])
    assert -1 <= final["between_similarity"] <= 1
    answers = next((tmp_path / "runs").rglob("*.answers.jsonl")).read_text(encoding="utf-8").splitlines()
    assert {json.loads(line)["case"] for line in answers} == {edit for _, ids in asked for edit in ids}

    asked.clear()
    (again,) = run_jobs([run_of(tmp_path, world, routing)], Workers())
    assert again.done is not None
    assert (again.done.kept, again.done.rows, asked) == (True, outcome.done.rows, [])


def test_orders_are_planned_shuffled_in_part_or_random(world: Path, tmp_path: Path) -> None:
    import torch

    points = torch.eye(4).repeat_interleave(3, 0)[torch.randperm(12, generator=torch.Generator().manual_seed(3))]

    def order(share: float, number: int = 0) -> list[int]:
        return run_of(tmp_path, world, shuffled=share, order=number)._order(points, 3)

    def alike(places: list[int]) -> int:
        """Batches of three whose points are one."""
        return sum(len({tuple(points[place].tolist()) for place in places[i : i + 3]}) == 1 for i in range(0, 12, 3))

    assert alike(order(0.0)) == 4
    for share in (0.0, 0.5, 1.0):
        assert sorted(order(share)) == list(range(12))
    moved = sum(a != b for a, b in zip(order(0.5), order(0.0), strict=True))
    assert 0 < moved <= 6
    assert order(1.0, 0) != order(1.0, 1)
    assert order(1.0, 1) == order(1.0, 1)


def test_what_is_planned(tmp_path: Path) -> None:
    jobs: Sequence[Any] = lemoe.figure_2(tmp_path, seeds=(0, 1)).jobs
    assert {(job.backbone, dict(job.settings)["routing"], job.seed) for job in jobs} == {
        (name, routing, seed)
        for name in ("tiny-llama-lm", "tiny-mistral-lm")
        for routing in ("conventional", "kv_anchor")
        for seed in (0, 1)
    }
    jobs = lemoe.figure_3(tmp_path, ["tiny-llama-lm"], orders=4).jobs
    assert len(jobs) == 2 * (4 + 4)
    assert {job.shuffled for job in jobs} == {0.0, 0.25, 0.5, 0.75, 1.0}
    assert len({(job.label, job.order) for job in jobs}) == len(jobs)
    with pytest.raises(ConfigError, match="batch_edits"):
        lemoe.figure_2(tmp_path, settings={"batch_edits": 0})


def row(routing: str, when: str, reliability: float, order: int = 0, **changes: Any) -> Row:
    values = {"teacher_forced": reliability, "exact_match": reliability - 5, "broken": 2.5, "count": 4, "left_out": 0}
    named = {"backbone": "tiny-llama-lm", "data": "facts", "edits": 4, "seed": 1000 * order, "order": order}
    found = {
        "batches": {
            "teacher_forced": [reliability, reliability],
            "exact_match": [reliability, None],
            "broken": [2.5, 0.0],
        },
        "batch_sizes": [3, 1],
        "consistency": [[0.5, 0.25], [None, None]],
        "diagonal_mass": 0.5,
        "within_similarity": 0.6,
        "between_similarity": 0.1,
        "shuffled": 1.0,
    }
    label = changes.pop("label", routing)
    kinds = {"editor": f"{label}, {when}", "label": label, "router": routing, "when": when, "status": "complete"}
    return {**named, **kinds, "metrics": {"reliability": values}, **found, **changes}


def test_figure_2_tells_what_is_forgotten(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    rows = [
        *(row("conventional", "immediate", 90), row("conventional", "final", 40)),
        *(row("kv_anchor", "immediate", 95), row("kv_anchor", "final", 94, diagonal_mass=1.0)),
    ]
    found = lemoe.summarize_2(rows, [])
    assert (
        "conventional: reliability teacher-forced token accuracy 90.0 immediately and 40.0 finally" in found.summary[0]
    )
    assert "50.0 % of the edits are routed to the expert" in found.summary[0]
    assert "100.0 % of the edits are routed to the expert" in found.summary[1]
    assert [line[0] for line in found.tables[0].rows][:2] == ["conventional, immediate", "conventional, final"]
    batches = found.tables[2]
    assert batches.rows[0][3:] == ("3", "90.0 / 90.0 / 2.5", "40.0 / 40.0 / 2.5")
    assert batches.rows[1][3:] == ("4", "90.0 / – / 0.0", "40.0 / – / 0.0")
    (plot,) = found.drawings[0](tmp_path)
    assert plot.path.name == "lemoe-figure2-tiny-llama-lm.png"
    assert plot.path.read_bytes().startswith(b"\x89PNG")
    for kept in rows:  # Runs that an earlier version kept have no broken answers counted.
        del kept["batches"]["broken"], kept["metrics"]["reliability"]["broken"]
    found = lemoe.summarize_2(rows, [])
    assert found.tables[2].rows[0][3:] == ("3", "90.0 / 90.0 / –", "40.0 / 40.0 / –")
    assert len(found.drawings[0](tmp_path)) == 1


def test_figure_3_tells_the_spread_over_orders(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")

    def final(share: float, reliability: float, order: int, within: float) -> Row:
        label = lemoe._label("kv_anchor", share)
        return row("kv_anchor", "final", reliability, order, label=label, shuffled=share, within_similarity=within)

    rows = [final(1.0, 50, 0, 0.1), final(1.0, 60, 1, 0.2), final(1.0, 70, 2, 0.3), final(0.0, 80, 0, 0.4)]
    found = lemoe.summarize_3([*rows, {**rows[0], "when": "immediate"}], [])
    assert "random orders 60.0 (50.0 to 70.0 over 3, standard deviation 10.0); planned order 80.0" in found.summary[0]
    assert "correlate by +1.00" in found.summary[1]
    assert "exact match: reliability in random orders 55.0 (45.0 to 65.0" in found.summary[2]
    assert [line[0] for line in found.tables[0].rows] == [
        "kv_anchor, planned order, final",
        "kv_anchor, random order, final",
    ]
    assert found.tables[1].rows[0][2:] == ("planned order", "0", "0.40", "0.10", "80.0 / 75.0 / 2.5")
    (plot,) = found.drawings[0](tmp_path)
    assert plot.path.read_bytes().startswith(b"\x89PNG")


def test_a_correlation_needs_something_that_varies() -> None:
    assert lemoe._correlation([(0.1, 1.0), (0.2, 2.0)]) is None
    assert lemoe._correlation([(0.1, 1.0), (0.1, 2.0), (0.1, 3.0)]) is None
    assert lemoe._correlation([(1.0, 3.0), (2.0, 2.0), (3.0, 1.0)]) == pytest.approx(-1)


@pytest.mark.usefixtures("loaded")
def test_the_command(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few = ("--edits", "4", "--batch-edits", "2", "--set", "steps=1", "routing_steps=1", "--max-new-tokens", "2")
    data = ("--data", f"mmedit:{world / 'eval.json'}", "--backbone", "tiny-llava", "--json")
    assert main(["paper", "lemoe-figure2", "--out", str(tmp_path), *few, *data]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [entry["editor"] for entry in found["rows"]] == [
        *("conventional, immediate", "conventional, final", "kv_anchor, immediate", "kv_anchor, final"),
    ]
    report = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "Routing consistency" in report and "Reliability batch by batch" in report
    assert "Published" not in report
