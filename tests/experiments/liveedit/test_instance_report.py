"""Figures 6 and 7 on paper: numbers, picture and report, from plain data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from liveedit.evaluation.plotting import PlotsUnavailableError
from liveedit.experiments.liveedit import instance_report
from liveedit.experiments.liveedit.instance_report import write_attribution
from liveedit.images import open_image


def heat(kind: str, over: str = "cells") -> dict[str, Any]:
    values = [[0.1, 0.2], [0.3, 0.4]] if over == "cells" else [[0.1, 0.2, 0.3, 0.4]]
    return {"kind": kind, "over": over, "values": values, "note": f"{kind} over {over}"}


def candidate(number: int, passed: bool, weight: float) -> dict[str, Any]:
    return {
        "edit_id": f"edit-{number}",
        "prompt": f"What is {number}?",
        "answer": "red | blue",
        "image": "a.png",
        "margin": 2.5 - number,
        "passed": passed,
        "score": 1.25,
        "weight": weight,
        "weight_of_all": 2e-7,
        "attention": heat("attention"),
    }


def entry(over: str = "cells", count: int = 5) -> dict[str, Any]:
    return {
        "backbone": "tiny-llava",
        "kind": "the edit itself",
        "image": "b.png",
        "prompt": "What color is the hat?",
        "unedited_answer": "green",
        "answer": "",
        "sentinel": 0.5,
        "attention": heat("attention", over),
        "change": heat("change"),
        "candidates": [candidate(number, number in (0, 1, 3), 0.9 if number == 0 else 0.0) for number in range(count)],
    }


IMAGES = {
    "a.png": Image.new("RGB", (32, 32), (200, 30, 30)),
    "b.png": Image.new("RGB", (48, 32), (30, 30, 200)),
}


def test_everything_is_written(tmp_path: Path) -> None:
    entries = [entry(), entry("tokens", count=1), entry(count=0)]
    record = {
        **{"git_sha": "0123456789abcdef", "dirty": True, "backbone_digest": "b" * 64, "data_digest": "d" * 64},
        **{"versions": {"torch": "1.0"}, "device": "cpu", "threads": 2, "command": "liveedit paper figure6"},
    }
    report = write_attribution(entries, IMAGES, tmp_path, "A title", ["A remark."], {"tiny-llava": record})
    kept = json.loads((tmp_path / "attribution.json").read_text())
    assert kept == {
        **{"title": "A title", "remarks": ["A remark."]},
        **{"provenance": {"tiny-llava": record}, "questions": entries},
    }
    for name, picture in IMAGES.items():
        assert open_image(tmp_path / "images" / name).tobytes() == picture.tobytes()
    drawn = open_image(tmp_path / "attribution.png")
    assert drawn.size == (1200, 850)
    assert len(np.unique(np.asarray(drawn).reshape(-1, 3), axis=0)) > 100
    text = report.read_text()
    assert text.startswith("# A title\n\nA remark.\n\n![")
    assert text.count("(attribution.png)") == 1
    assert text.count("## ") == 4
    assert "- code 0123456789ab with uncommitted changes, backbone bbbbbbbbbbbb, data dddddddddddd: tiny-llava" in text
    assert "- torch 1.0, on cpu with 2 threads\n- `liveedit paper figure6`\n" in text


def test_the_table_tells_who_passed_and_who_came_near(tmp_path: Path) -> None:
    lines = write_attribution([entry()], IMAGES, tmp_path, "A title").read_text().splitlines()
    rows = [[cell.strip() for cell in line.split(" | ")] for line in lines if line.startswith("| edit-")]
    assert [(row[0], row[3]) for row in rows] == [
        ("| edit-0", "passed"),
        ("| edit-1", "passed, left out"),
        ("| edit-2", "filtered"),
        ("| edit-3", "passed, left out"),
    ]
    assert rows[0][2:] == ["red \\| blue", "passed", "+2.500", "1.25", "0.900", "2.0e-07 |"]
    (said, counted, maps) = [line for line in lines if line.startswith("- ")]
    assert "answers '(nothing)'; unedited it answers 'green'" in said
    assert "3 of 5 edits passed" in counted
    assert "Largest change: 0.400 at row 2, column 2 of 2" in maps


def test_images_are_bright_where_attention_is_high(tmp_path: Path) -> None:
    shade = np.array(instance_report._shade([[0.0, 0.1], [0.4, 0.2]]))
    darkness = shade[..., 3]
    assert darkness[1, 0] == 0
    assert darkness[0, 0] == darkness.max() > 0.8
    assert darkness[0, 1] == pytest.approx(0.75 * darkness[0, 0])
    assert not shade[..., :3].any()
    assert np.isfinite(instance_report._shade([[0.0, 0.0]])).all()


def test_without_matplotlib_there_are_numbers_and_a_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(height: float) -> None:
        raise PlotsUnavailableError("matplotlib is missing")

    monkeypatch.setattr(instance_report, "new_figure", refuse)
    report = write_attribution([entry()], IMAGES, tmp_path, "A title")
    assert "No figure: matplotlib is missing" in report.read_text()
    assert (tmp_path / "attribution.json").exists() and not (tmp_path / "attribution.png").exists()
