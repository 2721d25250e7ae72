"""The doctor: healthy models of every family, and models that cannot be edited."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

from liveedit.backbones import Backbone, load_backbone
from liveedit.backbones.loading import DeviceMap, Quantization
from liveedit.doctor import _outcome, examine
from liveedit.edited.model import EditedModel
from liveedit.editors.liveedit import LiveEdit, LiveEditConfig
from liveedit.editors.liveedit.modules import LiveEditModules
from liveedit.testing.family_models import FAMILIES


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_healthy(family: str, tmp_path: Path) -> None:
    FAMILIES[family](tmp_path)
    backbone = load_backbone(tmp_path, device="cpu")
    diagnosis = examine(backbone)
    assert diagnosis.healthy, [check for check in diagnosis.checks if not check.holds]
    assert "covered by the contract tests" in diagnosis.found["family"]
    plan = diagnosis.plan
    assert plan["edit_layer"] == 2  # Two thirds of four, counted from 0.
    config = LiveEditConfig.create(**LiveEdit.backbone_settings(backbone))
    modules = LiveEditModules(config)
    assert plan["editor_parameters"] == sum(value.numel() for value in modules.parameters())
    assert plan["model_bytes"] == sum(4 * value.numel() for value in backbone.model.parameters())
    assert plan["untrained"]["rank"] > 0 and plan["untrained"]["bytes_per_answer_token"] == 8 * backbone.width
    assert not any("is not known" in warning for warning in diagnosis.warnings)
    assert json.loads(json.dumps(diagnosis.found)) == diagnosis.found
    assert any("no image" in warning for warning in diagnosis.warnings) == (family in ("llama", "mistral"))


def test_the_plan_of_fitted_experts_is_what_a_stored_one_takes(tiny_llava: Backbone, tmp_path: Path) -> None:
    plan = examine(tiny_llava).plan["untrained"]
    question, answer, image = "How many corners does it have?", plan["answer"], Image.new("RGB", (336, 336), "blue")
    with EditedModel.load(tiny_llava, edits=tmp_path / "edits.db", editor=plan["editor"]) as model:
        receipts = [
            model.edit(image, question, text, must_take=False, supersede=False)
            for text in (answer, f"{answer} {answer}")
        ]
        stored = [model.store.get(receipt.id).expert for receipt in receipts]
    assert receipts[0].evidence.rank == plan["rank"]
    assert (receipts[0].store_bytes, len(stored[0])) == (plan["memory_bytes_per_edit"], plan["store_bytes_per_edit"])
    further = (receipts[1].evidence.rank or 0) - plan["rank"]
    assert further > 0 and receipts[1].store_bytes - receipts[0].store_bytes == further * plan["bytes_per_answer_token"]


@pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")
@pytest.mark.filterwarnings("ignore::UserWarning")  # bitsandbytes' own, about what it does on CPUs.
@pytest.mark.parametrize("quantization", ["8bit", "4bit"])
def test_quantized_models_are_healthy(quantization: Quantization) -> None:
    """On a built-in model, whose widths are whole blocks of 64."""
    backbone = load_backbone("tiny-llava", device="cpu", quantization=quantization)
    assert "Linear" in type(backbone.layers[0].self_attn.q_proj).__name__  # type: ignore[union-attr]
    diagnosis = examine(backbone)
    assert diagnosis.healthy, [check for check in diagnosis.checks if not check.holds]
    assert any("quantized" in warning for warning in diagnosis.warnings)


def test_a_model_whose_head_lies_on_disk_is_healthy(tmp_path: Path) -> None:
    FAMILIES["llava"](tmp_path / "m")
    parts: DeviceMap = {"model": "cpu", "lm_head": "disk"}
    diagnosis = examine(load_backbone(tmp_path / "m", device_map=parts, offload_folder=tmp_path / "offloaded"))
    assert diagnosis.healthy, [check for check in diagnosis.checks if not check.holds]
    assert any("offloaded" in warning for warning in diagnosis.warnings)


class _LooksAhead(nn.Module):
    """A head that peeks at the whole batch: rows are no longer what they are alone."""

    def __init__(self, head: nn.Module):
        super().__init__()
        self.head = head

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.head(hidden) + len(hidden)


def test_a_model_that_breaks_the_contract_is_reported(tmp_path: Path) -> None:
    FAMILIES["llama"](tmp_path)
    backbone = load_backbone(tmp_path, device="cpu")
    model = backbone.model
    model.lm_head = _LooksAhead(model.lm_head)  # type: ignore[assignment]
    diagnosis = examine(backbone)
    assert not diagnosis.healthy
    broken = {check.name for check in diagnosis.checks if not check.holds}
    assert "a batch gives the logits of its rows, padded left or right" in broken


@pytest.mark.slow
def test_the_command_says_one_sentence_and_exits_with_one(tmp_path: Path) -> None:
    FAMILIES["llava"](tmp_path / "good")
    shutil.copytree(tmp_path / "good", tmp_path / "cut")
    weights = tmp_path / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    (tmp_path / "empty").mkdir()
    for name, reason in (("cut", "damaged or cut off"), ("empty", "no config.json")):
        done = _doctor(tmp_path / name)
        assert done.returncode == 1
        assert done.stdout == ""
        (line,) = done.stderr.strip().splitlines()
        assert line.startswith("Error: ") and reason in line
    healthy = _doctor(tmp_path / "good", "--json")
    assert healthy.returncode == 0
    assert json.loads(healthy.stdout)["healthy"] is True


def _doctor(folder: Path, *further: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "liveedit", "doctor", "--backbone", str(folder), *further]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_an_error_without_a_message_is_reported_by_its_type() -> None:
    def fails() -> str:
        raise RuntimeError

    check = _outcome("a property", fails)
    assert (check.holds, check.detail) == (False, "RuntimeError: RuntimeError")
