"""`liveedit train` before anything long: the dry run, and the published annotation files."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from liveedit.backbones import Backbone
from liveedit.backbones.hidden_states import HiddenStateCache
from liveedit.cli import main
from liveedit.cli.training import print_estimate
from liveedit.datasets import read
from liveedit.editors import trained_editor_class
from liveedit.editors.liveedit import LiveEditConfig
from liveedit.editors.liveedit.modules import LiveEditModules
from liveedit.editors.liveedit.task import LiveEditLosses, LiveEditTask
from liveedit.samples import EditCase

DATA = Path(os.environ.get("LIVEEDIT_DATA", Path(__file__).parents[1] / ".." / "shared" / "data"))
E_VQA = DATA / "e-vqa" / "vqa_train.json"

SMALL = ("--module-width", "32", "--rank", "2", "--heads", "4", "--set", "validate_every=4")
STAGES = ("--stage", "routing:9:20:1e-3", "joint:4:3:1e-3")


def result_of(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    assert main(["train", *map(str, arguments), "--json"]) == 0, capsys.readouterr().err
    return json.loads(capsys.readouterr().out)


def test_a_dry_run_tells_what_a_training_takes_and_writes_nothing(
    world: Path,
    train_cases: tuple[EditCase, ...],
    tiny_llava: Backbone,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = ("--data", world, "--out", tmp_path / "out", "--validation", 4, *SMALL, *STAGES)
    found = result_of(capsys, *options, "--dry-run")
    assert not (tmp_path / "out").exists()
    layer = tiny_llava.default_edit_layer()
    task = LiveEditTask(tiny_llava, layer, train_cases, LiveEditLosses(), HiddenStateCache(tiny_llava, layer))
    task.prepare()
    kept = [task.store.batch([place]) for place in range(len(task.items))]
    tokens = sum(len(item.ids[0]) + int(item.answer.sum()) for item in kept)
    assert (found["cases"], found["validation_cases"], found["inputs"]) == (12, 4, len(task.items))
    assert found["states_bytes"] == pytest.approx(tokens * tiny_llava.width * 2, rel=0.05)
    assert found["states_on_disk"] is False
    assert 16 < found["tokens_per_text_input"] < found["tokens_per_image_input"] < 16 + 32
    sizes = {"module_width": 32, "rank": 2, "heads": 4, "width": tiny_llava.width, "layer": layer, "image_tokens": 16}
    modules = LiveEditModules(LiveEditConfig.create(**sizes))
    parameters = sum(part.numel() for part in modules.parameters())
    assert (found["parameters"], found["parameters_bytes"]) == (parameters, 4 * parameters)
    assert (found["gradients_bytes"], found["moments_bytes"]) == (4 * parameters, 8 * parameters)
    routing, joint = found["stages"]
    assert (routing["batch"], routing["validations"]) == (8, 3)  # No more edits than there are; 4, 8, and the last.
    assert (joint["name"], joint["batch"], joint["validations"]) == ("joint", 3, 1)
    for stage in found["stages"]:
        validating = stage["validations"] * found["validation_seconds"]
        assert stage["seconds"] == pytest.approx(stage["steps"] * stage["seconds_per_step"] + validating)
    stages = routing["seconds"] + joint["seconds"]
    assert found["seconds"] == pytest.approx(found["fill_seconds"] + stages)
    assert found["peak_memory_bytes"] > found["backbone_bytes"] > 1e6
    assert found["disk_free_bytes"] > 0
    assert found["gpu_peak_bytes"] is None or torch.cuda.is_available()

    print_estimate({**found, "states_on_disk": True, "states_bytes": 128.4e9, "processes": 2, "seconds": 9000})
    shown = capsys.readouterr().out
    assert "128.4 GB, kept on disk by each process" in shown
    assert "2.5 h" in shown and "4 steps of 3 edits" in shown and "12, of which 4" in shown


def test_a_dry_run_of_a_world_draws_a_few_cases_for_many(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = result_of(capsys, "--out", "out", "--cases", 5000, *SMALL, "--stage", "generator:3:2:1e-3", "--dry-run")
    assert (found["cases"], found["validation_cases"]) == (5000, 256)
    assert found["inputs"] == pytest.approx(8 * 5000, rel=0.1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("editor", ["mend", "serac", "lte", "recipe", "liveedit-refine"])
def test_a_dry_run_estimates_any_trained_editor(
    editor: str, world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stages = trained_editor_class(editor).default_stages()
    given = [f"{stage.name}:{number}:3:1e-3" for number, stage in enumerate(stages, 1)]
    options = ("--editor", editor, "--data", world, "--out", tmp_path / "out", "--validation", 4, "--stage", *given)
    found = result_of(capsys, *options, "--dry-run")
    assert not (tmp_path / "out").exists()
    assert [(stage["name"], stage["steps"]) for stage in found["stages"]] == [
        (stage.name, number) for number, stage in enumerate(stages, 1)
    ]
    assert all(stage["seconds_per_step"] > 0 for stage in found["stages"])
    assert 12 * 3 <= found["inputs"] <= 12 * 8
    assert found["states_bytes"] > 0 and found["fill_seconds"] > 0
    assert 16 < found["tokens_per_image_input"] < 16 + 32
    assert found["parameters"] > 0


@pytest.mark.parametrize("editor", ["mend", "serac", "lte", "recipe"])
def test_editors_with_one_form_refuse_the_papers(
    editor: str, world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--editor", editor, "--data", str(world), "--out", str(tmp_path / "out"), "--form", "paper")
    assert main(["train", *options]) == 1
    message = capsys.readouterr().err
    assert f"'{editor}' has no paper form" in message and "Leave out --form" in message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--validation", "12"), "12 cases were given and 12 are kept"),
        (("--layer", "5"), "layer 5"),
        (("--cases", "13"), "13 cases"),
    ],
)
def test_a_dry_run_refuses_what_the_training_would(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: Sequence[str], message: str
) -> None:
    assert main(["train", "--data", str(world), "--out", str(tmp_path / "out"), "--dry-run", *options]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("dry", [(), ("--dry-run",)])
def test_missing_pictures_are_told_before_anything_is_computed(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], dry: Sequence[str]
) -> None:
    rows = json.loads((world / "train.json").read_text())
    copied = shutil.copytree(world, tmp_path / "world")
    (copied / rows[2]["image_rephrase"]).unlink()
    (copied / rows[5]["image"]).unlink()
    assert main(["train", "--data", str(copied), "--out", str(tmp_path / "out"), *dry]) == 1
    told = capsys.readouterr().err
    assert "2 of " in told and rows[2]["image_rephrase"] in told and "liveedit data check" in told
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(not E_VQA.is_file(), reason=f"E-VQA is not under LIVEEDIT_DATA ({DATA})")
def test_one_command_trains_on_published_e_vqa(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The real annotations, with drawn pictures under the real pictures' names."""
    cases = read("e-vqa", E_VQA, tmp_path / "images")[:8]
    drawn = sorted(world.rglob("*.png"))
    named = {probe.question.image for case in cases for probe in (case.reliability, *case.probes)} - {None}
    for place, picture in enumerate(sorted(map(str, named))):
        Path(picture).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(drawn[place], picture)
    source = ("--data", "e-vqa", "--annotations", E_VQA, "--images", tmp_path / "images", "--cases", 8)
    options = (*source, "--out", tmp_path / "out", *SMALL, "--stage", "routing:2:4:1e-3", "joint:1:3:1e-3")
    estimate = result_of(capsys, *options, "--dry-run")
    assert (estimate["cases"], estimate["inputs"]) == (8, 8 * 5)
    trained = result_of(capsys, *options)
    assert set(trained["validation"]) >= {"reliability", "modal_generality", "modal_locality", "text_locality"}
    assert (Path(trained["editor"]) / "editor.safetensors").is_file()
