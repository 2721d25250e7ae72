"""Trainings that `torchrun` runs as two processes on one machine's CPUs, against the same trainings in one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from liveedit.cli import main
from liveedit.training import trainer as training
from liveedit.training.checkpoints import load_tensors

TRAINING = (
    *("--module-width", "32", "--rank", "2", "--heads", "4", "--validation", "3"),
    *("--set", "feature_parts=2", "warmup=1", "validate_every=5", "mixed_precision=false"),
    *("--stage", "routing:10:9:1e-3", "generator:5:5:1e-3", "joint:5:5:3e-4"),
)

pytestmark = pytest.mark.slow


def in_two_processes(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "liveedit"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(
        [*command, *map(str, arguments)], env=environment, capture_output=True, text=True, timeout=600, check=False
    )


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    """The best weights of the last stage, in full precision."""
    return load_tensors(folder / "2-joint-best.safetensors")[0]


def distance(one: Path, two: Path) -> float:
    """How far the weights of two trainings lie apart, over their size.

    The biases of attention keys do not count: softmax takes no notice of them, so that their gradients are rounding
    errors, which AdamW enlarges to steps.
    """
    first, second = (
        torch.cat([value.flatten() for name, value in weights_of(folder).items() if not is_key_bias(name)])
        for folder in (one, two)
    )
    return float((first - second).norm() / first.norm())


def is_key_bias(name: str) -> bool:
    return ".keys." in name and name.endswith(".bias")


@pytest.fixture
def one_process(tmp_path: Path, world: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    out = tmp_path / "one"
    assert main(["train", "--data", str(world), "--out", str(out), *TRAINING, "--json"]) == 0
    capsys.readouterr()
    return out


def test_two_processes_train_what_one_trains(one_process: Path, tmp_path: Path, world: Path) -> None:
    two = tmp_path / "two"
    done = in_two_processes("train", "--data", world, "--out", two, *TRAINING, "--json")
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)  # One object: the second process prints nothing.
    assert done.stderr.count("joint: 5 of 5") == 1
    print(
        "DIST",
        distance(one_process, two),
        sorted(((float((a - weights_of(two)[n]).abs().max()), n) for n, a in weights_of(one_process).items()))[-12:],
    )
    assert distance(one_process, two) < 1e-5
    curves = [json.loads((folder / "curves.json").read_text()) for folder in (one_process, two)]
    assert [entry.keys() for entry in curves[0]] == [entry.keys() for entry in curves[1]]
    for first, second in zip(*curves, strict=True):
        losses = [name for name in first if name.endswith("_nats")]
        assert [second[name] for name in losses] == pytest.approx([first[name] for name in losses], rel=1e-3, abs=1e-4)
    names = sorted(path.name for path in one_process.iterdir())
    assert sorted(path.name for path in two.iterdir()) == names
    assert Path(result["editor"]).joinpath("editor.safetensors").is_file()


def test_a_training_goes_on_with_another_number_of_processes(
    one_process: Path, tmp_path: Path, world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Cut off within its first stage as one process, ended as two; the end of two is one process's end as well."""
    out = tmp_path / "cut"
    save = training.save_training

    def interrupted(*arguments: Any) -> None:
        save(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "save_training", interrupted)
    assert main(["train", "--data", str(world), "--out", str(out), *TRAINING]) == 130
    monkeypatch.setattr(training, "save_training", save)
    capsys.readouterr()
    done = in_two_processes("train", "--data", world, "--out", out, *TRAINING, "--json")
    assert done.returncode == 0, done.stderr
    assert distance(one_process, out) < 1e-5
    curves = [json.loads((folder / "curves.json").read_text()) for folder in (one_process, out)]
    assert curves[0][0] == curves[1][0]  # The first five steps were not taken again.
    before = weights_of(out)
    assert main(["train", "--data", str(world), "--out", str(out), *TRAINING, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["validation"] == json.loads(done.stdout)["validation"]
    assert all(torch.equal(value, before[name]) for name, value in weights_of(out).items())


def test_what_is_wrong_is_told_by_processes_too(tmp_path: Path, world: Path) -> None:
    few = ("--stage", "joint:2:1:1e-3", "--validation", "4")
    done = in_two_processes("train", "--data", world, "--out", tmp_path / "out", *few)
    assert done.returncode != 0
    assert "takes 1 edits a step and there are 2 processes" in done.stderr
