"""Every supported family from a folder, without naming an editor: edit, ask, undo, load again, serve."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from fastapi.testclient import TestClient
from PIL import Image
from serving_fakes import data_uri

from liveedit.edited.model import EditedModel
from liveedit.editors.fitted import FittedConfig, FittedExperts
from liveedit.editors.fitted import calibration as calibration_module
from liveedit.editors.fitted import editor as editor_module
from liveedit.registry import UNTRAINED_EDITOR
from liveedit.samples import Question
from liveedit.serving.app import create_app
from liveedit.serving.engine import Engine
from liveedit.serving.served_model import ServedModel
from liveedit.serving.settings import ServingSettings
from liveedit.testing import tiny_backbone, tiny_families

PROMPT, ANSWER = "What is this called?", "red"


class QuickConfig(FittedConfig):
    """Fewer wordings, and less sure of an answer: random models need few steps then."""

    wordings: int = 2
    confidence: float = 0.5
    answer_confidence: float = 0.3


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A quick editor: these tests ask whether a family works, not how well edits are found."""
    monkeypatch.setenv("LIVEEDIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(calibration_module, "NEUTRAL_QUESTIONS", calibration_module.NEUTRAL_QUESTIONS[::3])
    monkeypatch.setattr(calibration_module, "DRAWN_IMAGES", 16)
    monkeypatch.setattr(editor_module, "FittedConfig", QuickConfig)


@pytest.fixture
def shown(picture: Callable[[int], Image.Image]) -> Image.Image:
    return picture(1)


@pytest.mark.parametrize("family", tiny_families())
def test_a_model_in_a_folder_is_edited(family: str, tmp_path: Path, shown: Image.Image) -> None:
    reads_images = tiny_backbone(family, tmp_path / "model").reads_images
    edited_and_kept(tmp_path / "model", tmp_path / "edits.db", shown if reads_images else None, device="cpu")


def test_a_model_that_is_partly_on_disk_is_edited(tmp_path: Path, shown: Image.Image) -> None:
    """The parts that gradients pass come for the time of their call."""
    tiny_backbone("llava", tmp_path / "model")
    parts = {"model.vision_tower": "cpu", "model.multi_modal_projector": "cpu", "lm_head": "disk"}
    parts |= {f"model.language_model.{name}": "cpu" for name in ("embed_tokens", "norm", "rotary_emb")}
    parts |= {f"model.language_model.layers.{layer}": "cpu" if layer < 3 else "disk" for layer in range(4)}
    spread = {"device_map": parts, "offload_folder": tmp_path / "offloaded"}
    edited_and_kept(tmp_path / "model", tmp_path / "edits.db", shown, **spread)


@pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="quantization is optional: pip install bitsandbytes")
@pytest.mark.filterwarnings("ignore::UserWarning")  # bitsandbytes' own, about what it does on CPUs.
@pytest.mark.parametrize("quantization", ["8bit", "4bit"])
def test_a_quantized_model_is_edited(quantization: str, tmp_path: Path, shown: Image.Image) -> None:
    """On a built-in model, whose widths are whole blocks of 64."""
    edited_and_kept("tiny-llava", tmp_path / "edits.db", shown, device="cpu", quantization=quantization)


def edited_and_kept(folder: str | Path, edits: Path, image: Image.Image | None, **loading: Any) -> None:
    """Edit, ask, undo and redo; load again from the edits file: each answer is the same, bit for bit."""
    loading["editor"] = UNTRAINED_EDITOR if folder == "tiny-llava" else None
    with EditedModel.load(folder, edits=edits, **loading) as model:
        assert isinstance(model.editor, FittedExperts)
        inputs = model.backbone.encode([Question(PROMPT, image)])

        def logits() -> torch.Tensor:
            with torch.no_grad():
                return model.backbone.logits(inputs)

        before, said = logits(), model.ask(image, PROMPT)
        receipt = model.edit(image, PROMPT, ANSWER, must_take=True)
        found = model.ask(image, PROMPT)
        assert (found.text, [fired.edit_id for fired in found.fired]) == (ANSWER, [receipt.id])
        assert said.text != ANSWER and not torch.equal(before, logits())
        if image is not None:
            assert model.ask(None, PROMPT).fired == ()
        model.undo(receipt.id)
        assert torch.equal(before, logits()) and model.ask(image, PROMPT) == said
        model.redo(receipt.id)
        edited = logits()
    with EditedModel.load(folder, edits=edits, **loading) as model, torch.no_grad():
        assert model.ask(image, PROMPT) == found
        assert torch.equal(model.backbone.logits(inputs), edited)


def test_a_model_in_a_folder_is_served(tmp_path: Path, shown: Image.Image) -> None:
    tiny_backbone("qwen3-vl", tmp_path / "model")
    settings = ServingSettings.model_validate({})
    with EditedModel.load(tmp_path / "model", edits=tmp_path / "edits.db", device="cpu") as model:
        served = ServedModel(model, settings)
        app = create_app(Engine(served, settings), "mine", served, None)
        parts = [
            {"type": "image_url", "image_url": {"url": data_uri(shown)}},
            {"type": "text", "text": PROMPT},
        ]
        asked = {"model": "mine", "messages": [{"role": "user", "content": parts}]}
        with TestClient(app, base_url="http://127.0.0.1") as client:
            edit = {"image": data_uri(shown), "prompt": PROMPT, "answer": ANSWER}
            made = client.post("/v1/edits", json=edit)
            assert made.is_success and made.json()["evidence"]["took"], made.text
            said = client.post("/v1/chat/completions", json=asked).json()
            assert said["choices"][0]["message"]["content"] == ANSWER
            assert [fired["id"] for fired in said["liveedit"]["edits"]] == [made.json()["id"]]
            assert client.post(f"/v1/edits/{made.json()['id']}/undo").is_success
            said = client.post("/v1/chat/completions", json=asked).json()
            assert said["choices"][0]["message"]["content"] != ANSWER and said["liveedit"]["edits"] == []
