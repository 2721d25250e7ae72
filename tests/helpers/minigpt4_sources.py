"""Tiny random sources of a MiniGPT-4, with the released names, and weights that are known by their shapes alone."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2QFormerConfig,
    Blip2VisionConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaTokenizer,
    T5Config,
)

from liveedit.backbones.conversion.minigpt4 import Conversion, convert_minigpt4

VISION = {"hidden_size": 176, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2}
QFORMER = {"hidden_size": 128, "intermediate_size": 96, "num_hidden_layers": 4, "num_attention_heads": 2}
IMAGE_SIZE, PATCH, QUERIES, LLAMA_WIDTH = 28, 14, 6, 48
MEAN, STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]


class Sources:
    """The three sources, and the models that they were saved from."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.blip2, self.vicuna, self.projection = folder / "blip2", folder / "vicuna", folder / "minigpt4.pth"
        self.blip2_model, self.llama = _tiny_blip2(), _tiny_llama(vicuna_tokenizer())
        self.weight, self.bias = torch.randn(LLAMA_WIDTH, QFORMER["hidden_size"]), torch.randn(LLAMA_WIDTH)
        self.blip2_model.save_pretrained(self.blip2, max_shard_size="150KB")
        _write_image_settings(self.blip2)
        self.llama.save_pretrained(self.vicuna, max_shard_size="50KB")
        vicuna_tokenizer().save_pretrained(self.vicuna)
        weights = {"llama_proj.weight": self.weight, "llama_proj.bias": self.bias}
        torch.save({"model": weights, "optimizer": {"state": {}}, "config": {"run": "x"}, "epoch": 3}, self.projection)

    def convert(self, out: Path, **changes: Any) -> Conversion:
        arguments: dict[str, Any] = {
            "projection": self.projection,
            "blip2": self.blip2,
            "language_model": self.vicuna,
            "out": out,
            "dtype": "float32",
        }
        return convert_minigpt4(**{**arguments, **changes})


def _randomise(model: torch.nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            spread = 0.3 if parameter.dim() == 1 else parameter.shape[-1] ** -0.5
            parameter.add_(torch.randn(parameter.shape, generator=generator) * spread)
        for name, parameter in model.named_parameters():
            if name.endswith("qkv.bias"):  # EVA has no bias of the keys.
                parameter.view(3, -1)[1] = 0


def _tiny_blip2() -> Any:
    """BLIP-2 with a T5, as the one that MiniGPT-4 took its vision tower and Q-Former from."""
    config = Blip2Config(
        vision_config=Blip2VisionConfig(**VISION, image_size=IMAGE_SIZE, patch_size=PATCH),
        qformer_config=Blip2QFormerConfig(**QFORMER, encoder_hidden_size=176),
        text_config=T5Config(vocab_size=4000, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2),
        num_query_tokens=QUERIES,
        image_token_index=39,
    )
    model = Blip2ForConditionalGeneration(config).eval()
    _randomise(model, 1)
    return model


def vicuna_tokenizer(**changes: Any) -> LlamaTokenizer:
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    tokens = ["<unk>", "<s>", "</s>", *byte_tokens, "▁", *"abcdefghijklmnopqrstuvwxyzAHI#:.?<>/"]
    return LlamaTokenizer(vocab={token: index for index, token in enumerate(tokens)}, merges=[], **changes)


def _tiny_llama(tokenizer: LlamaTokenizer, **changes: Any) -> Any:
    sizes = {"hidden_size": LLAMA_WIDTH, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes, **changes)).eval()
    _randomise(model, 2)
    return model


def _write_image_settings(folder: Path) -> None:
    """As in the released BLIP-2 folders."""
    settings = {"do_convert_rgb": True, "do_normalize": True, "do_rescale": True, "do_resize": True}
    settings |= {"image_mean": MEAN, "image_std": STD, "resample": 3, "rescale_factor": 1 / 255}
    settings |= {"image_processor_type": "BlipImageProcessor", "processor_class": "Blip2Processor"}
    settings |= {"size": {"height": IMAGE_SIZE, "width": IMAGE_SIZE}}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings), encoding="utf-8")


def load_model(folder: Path, **options: Any) -> tuple[Any, Any]:
    return AutoModelForImageTextToText.from_pretrained(folder, **options).eval(), AutoProcessor.from_pretrained(folder)


def stored_weights(folder: Path) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            found |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return found


class Shapes:
    """Weights that are known by their shapes alone, and perhaps some that are there."""

    def __init__(self, shapes: dict[str, tuple[int, ...]], tensors: dict[str, Tensor] | None = None):
        self.tensors = tensors or {}
        self.shapes = {**shapes, **{name: tuple(tensor.shape) for name, tensor in self.tensors.items()}}

    def names(self) -> Iterable[str]:
        return self.shapes

    def shape(self, name: str) -> tuple[int, ...] | None:
        return self.shapes.get(name)

    def read(self, name: str) -> Tensor:
        return self.tensors[name]
