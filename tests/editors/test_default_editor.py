"""Which editor edits a backbone if none is named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from liveedit.backbones import Backbone
from liveedit.edited.model import EditedModel
from liveedit.editors import default_editor
from liveedit.editors.fitted import FittedConfig, FittedExperts, calibrate
from liveedit.editors.fitted import calibration as calibration_module
from liveedit.editors.liveedit import LiveEdit, LiveEditConfig, LiveEditRefine
from liveedit.errors import NotFoundError, StoreError


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LIVEEDIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(calibration_module, "NEUTRAL_QUESTIONS", calibration_module.NEUTRAL_QUESTIONS[::3])
    monkeypatch.setattr(calibration_module, "DRAWN_IMAGES", 16)


def test_by_the_backbone() -> None:
    assert [default_editor(name) for name in ("tiny-llava", "tiny-blip2")] == ["liveedit-refine"] * 2
    assert [default_editor(name) for name in ("tiny-llama-lm", "/models/mine")] == ["fitted-experts"] * 2


def test_by_the_folder_that_is_given(
    tmp_path: Path, tiny_llava: Backbone, small_config: Callable[..., LiveEditConfig]
) -> None:
    with LiveEdit.untrained(tiny_llava, small_config()) as editor:
        editor.save_pretrained(tmp_path / "trained")
    config = FittedConfig.model_validate({})
    calibrate(tiny_llava, config).save(tmp_path / "calibrated", tiny_llava, config)
    assert default_editor("/models/mine", tmp_path / "trained") == "liveedit-refine"
    assert default_editor("tiny-llava", tmp_path / "calibrated") == "fitted-experts"
    for folder, kind in (("trained", LiveEditRefine), ("calibrated", FittedExperts)):
        with EditedModel.load(tiny_llava, editor_path=tmp_path / folder) as model:
            assert type(model.editor) is kind
    with pytest.raises(NotFoundError, match="nowhere"):
        EditedModel.load(tiny_llava, editor_path=tmp_path / "nowhere")


def test_a_trained_folder_beside_a_backbone_of_the_users_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, random_backbone: Backbone
) -> None:
    """As `liveedit train` names it."""
    monkeypatch.chdir(tmp_path)
    assert default_editor(random_backbone.name) == "fitted-experts"
    with LiveEdit.untrained(random_backbone) as editor:
        editor.save_pretrained(f"{random_backbone.name}-liveedit")
    assert default_editor(random_backbone.name) == "liveedit-refine"


def test_by_the_edits_that_are_there(
    tmp_path: Path, tiny_llava: Backbone, picture: Callable[[int], Image.Image]
) -> None:
    with EditedModel.load(tiny_llava, edits=tmp_path / "edits.db", editor="fitted-experts") as model:
        assert model.edit(picture(1), "What is it?", "red").took
    with EditedModel.load(tiny_llava, edits=tmp_path / "edits.db") as model:
        assert type(model.editor) is FittedExperts
        assert model.ask(picture(1), "What is it?").text == "red"
    with pytest.raises(StoreError, match="fitted-experts"):
        EditedModel.load(tiny_llava, edits=tmp_path / "edits.db", editor="liveedit-refine")
    with EditedModel.load(tiny_llava, edits=tmp_path / "others.db") as model:
        assert type(model.editor) is LiveEditRefine, "trained for this backbone, and no edit says otherwise"
