"""Families of models inside vLLM: small, with random weights, edited by fitted experts, which need no training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from vllm_engines import fired, generate, prompts, shut_down, texts

from liveedit.backbones import Backbone
from liveedit.edited.model import EditedModel
from liveedit.editors.fitted import FittedConfig, FittedExperts
from liveedit.editors.fitted import calibration as calibration_module
from liveedit.samples import Question
from liveedit.testing import family_models, tiny_backbone

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900), pytest.mark.filterwarnings("default")]

PROMPT, ANSWER, TOKENS = "What is this called?", "red", 8
FAMILIES = ("llava", "qwen2.5-vl", "qwen3-vl", "internvl", "llama")
"""Of which vLLM alone gives the answers of transformers for these small models."""


def edited(backbone: Backbone, folder: Path, image: Image.Image | None) -> tuple[list[str], list[str]]:
    """Make an edit; answers of the edited model and of the unedited one."""
    config = FittedConfig(wordings=2, confidence=0.5, answer_confidence=0.0)
    editor = FittedExperts(backbone, config)
    editor.calibration.save(folder / "calibration", backbone, config)
    editor.detach()
    path = folder / "calibration"
    with EditedModel.load(backbone, edits=folder / "edits.db", editor="fitted-experts", editor_path=path) as model:
        before = model.ask(image, PROMPT, TOKENS).text
        model.edit(image, PROMPT, ANSWER, must_take=False)
        return [model.ask(image, PROMPT, TOKENS).text], [before]


WIDTH = 128
"""vLLM computes attention on CPUs for heads of at least 32 numbers."""


@pytest.fixture
def wide_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(family_models, "WIDTH", WIDTH)
    for sizes in (family_models._TEXT, family_models._GROUPED):
        monkeypatch.setitem(sizes, "hidden_size", WIDTH)
    monkeypatch.setitem(family_models._QWEN_ROPE, "mrope_section", [4, 6, 6])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_is_edited(
    family: str,
    vllm_is_here: None,
    wide_enough: None,
    tmp_path: Path,
    picture: Callable[[int], Image.Image],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from vllm import LLM

    monkeypatch.setattr(calibration_module, "NEUTRAL_QUESTIONS", calibration_module.NEUTRAL_QUESTIONS[::3])
    monkeypatch.setattr(calibration_module, "DRAWN_IMAGES", 16)
    backbone = tiny_backbone(family, tmp_path / "model")
    image = picture(1) if backbone.reads_images else None
    wanted, unedited = edited(backbone, tmp_path, image)
    assert wanted != unedited
    settings = {"edits": str(tmp_path / "edits.db"), "editor_path": str(tmp_path / "calibration")}
    sizes: dict[str, Any] = {"max_num_seqs": 4, "max_num_batched_tokens": 2048, "seed": 0, "enforce_eager": True}
    engine = LLM(model=str(tmp_path / "model"), dtype="float32", additional_config={"liveedit": settings}, **sizes)
    with shut_down(engine):
        asked = prompts(backbone, [Question(PROMPT, image)])
        unedited_found = texts(generate(engine, asked, tokens=TOKENS, extra_args={"liveedit": "none"}))
        outputs = generate(engine, asked, tokens=TOKENS)
        assert (unedited_found, texts(outputs)) == (unedited, wanted)
        assert len(fired(engine, outputs)[0]) == 1
