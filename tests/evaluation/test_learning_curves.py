"""Learning curves as a picture: what is drawn where."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from PIL import Image

from liveedit.errors import InvalidInputError
from liveedit.evaluation import learning_curves
from liveedit.evaluation.learning_curves import draw_curves

CURVES: list[dict[str, Any]] = [
    {
        "stage": "routing",
        "step": 10,
        "kind": "train",
        "loss_nats": 3.0,
        "gradient_norm": 1.0,
        "own_passes": 50.0,
    },
    {
        "stage": "routing",
        "step": 20,
        "kind": "train",
        "loss_nats": 2.0,
        "gradient_norm": 1.0,
        "own_passes": 60.0,
    },
    {"stage": "routing", "step": 20, "kind": "validation", "reliability": 40.0},
    {"stage": "joint", "step": 10, "kind": "train", "loss_nats": 1.0, "gradient_norm": 1.0},
    {"stage": "joint", "step": 10, "kind": "validation", "reliability": 90.0},
]


def test_a_stage_begins_where_the_one_before_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures: list[Figure] = []
    new_figure = learning_curves.new_figure

    def noted(height: float) -> Figure:
        figures.append(new_figure(height))
        return figures[-1]

    monkeypatch.setattr(learning_curves, "new_figure", noted)
    draw_curves(CURVES, tmp_path / "new" / "curves.png")
    losses, percent, validation = figures[0].axes
    lines = {
        panel: [line.get_xydata().tolist() for line in panel.get_lines() if len(line.get_xdata()) > 0]
        for panel in (losses, percent, validation)
    }
    assert [[10, 3.0], [20, 2.0]] in lines[losses]
    assert [[30, 1.0]] in lines[losses]
    assert [[10, 50.0], [20, 60.0]] in lines[percent]
    assert [[20, 40.0]] in lines[validation]
    assert [[30, 90.0]] in lines[validation]
    labels = [text.get_text() for panel in figures[0].axes for text in panel.get_legend().get_texts()]
    assert labels == ["loss", "own passes", "reliability"], "gradient norms are no percentages"
    with Image.open(tmp_path / "new" / "curves.png") as picture:
        assert picture.format == "PNG"


def test_no_curves_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="no learning curves"):
        draw_curves([], tmp_path / "curves.png")
