"""The conversion of MiniGPT-4 against the released names and shapes, without memory for them."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from minigpt4_sources import Shapes
from transformers import Blip2QFormerConfig, Blip2VisionConfig, LlamaConfig

from liveedit.backbones.conversion.language import prepare_language_model
from liveedit.backbones.conversion.minigpt4 import minigpt4_config, plan_tensors
from liveedit.backbones.conversion.vision import VisionParts, from_lavis, lavis_name


def _linear(name: str, out: int, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (out, width), f"{name}.bias": (out,)}


def _norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _released_tower() -> dict[str, tuple[int, ...]]:
    """EVA-CLIP ViT-g as in BLIP-2's folders: 39 layers, width 1408."""
    shapes: dict[str, tuple[int, ...]] = {
        "vision_model.embeddings.class_embedding": (1, 1, 1408),
        "vision_model.embeddings.position_embedding": (1, 257, 1408),
        "vision_model.embeddings.patch_embedding.weight": (1408, 3, 14, 14),
        "vision_model.embeddings.patch_embedding.bias": (1408,),
    }
    for layer in range(39):
        name = f"vision_model.encoder.layers.{layer}"
        shapes |= _linear(f"{name}.self_attn.qkv", 4224, 1408) | _linear(f"{name}.self_attn.projection", 1408, 1408)
        shapes |= _linear(f"{name}.mlp.fc1", 6144, 1408) | _linear(f"{name}.mlp.fc2", 1408, 6144)
        shapes |= _norm(f"{name}.layer_norm1", 1408) | _norm(f"{name}.layer_norm2", 1408)
    return shapes | _norm("vision_model.post_layernorm", 1408)


def _released_qformer(layers: str = "qformer.encoder.layer", own: str = "attention") -> dict[str, tuple[int, ...]]:
    """12 layers of width 768 with cross-attention in every other one."""
    shapes: dict[str, tuple[int, ...]] = {"query_tokens": (1, 32, 768)}
    for layer in range(12):
        name = f"{layers}.{layer}"
        for kind, width in (("attention", 768), ("crossattention", 1408))[: 2 - layer % 2]:
            for part, size in (("query", 768), ("key", width), ("value", width)):
                shapes |= _linear(f"{name}.{kind}.{own}.{part}", 768, size)
            shapes |= _linear(f"{name}.{kind}.output.dense", 768, 768) | _norm(f"{name}.{kind}.output.LayerNorm", 768)
        shapes |= _linear(f"{name}.intermediate_query.dense", 3072, 768)
        shapes |= _linear(f"{name}.output_query.dense", 768, 3072) | _norm(f"{name}.output_query.LayerNorm", 768)
    return shapes


def _released_lavis() -> tuple[dict[str, tuple[int, ...]], dict[str, tuple[int, ...]]]:
    main_shapes = _released_qformer("Qformer.bert.encoder.layer", "self") | _norm("ln_vision", 1408)
    main_shapes |= _norm("Qformer.bert.embeddings.LayerNorm", 768) | _linear("t5_proj", 4096, 768)
    tower: dict[str, tuple[int, ...]] = {"cls_token": (1, 1, 1408), "pos_embed": (1, 257, 1408)}
    tower |= {"patch_embed.proj.weight": (1408, 3, 14, 14), "patch_embed.proj.bias": (1408,)}
    for layer in range(40):  # One more than BLIP-2 reads.
        name = f"blocks.{layer}"
        tower |= {f"{name}.attn.{part}_bias": (1408,) for part in "qv"} | {f"{name}.attn.qkv.weight": (4224, 1408)}
        tower |= _linear(f"{name}.attn.proj", 1408, 1408) | _norm(f"{name}.norm1", 1408) | _norm(f"{name}.norm2", 1408)
        tower |= _linear(f"{name}.mlp.fc1", 6144, 1408) | _linear(f"{name}.mlp.fc2", 1408, 6144)
    return main_shapes, tower


def _released_vicuna() -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (32000, 4096), "lm_head.weight": (32000, 4096)}
    for layer in range(32):
        name = f"model.layers.{layer}"
        shapes |= {f"{name}.self_attn.{part}_proj.weight": (4096, 4096) for part in "qkvo"}
        shapes |= {f"{name}.mlp.{part}_proj.weight": (11008, 4096) for part in ("gate", "up")}
        shapes |= {f"{name}.mlp.down_proj.weight": (4096, 11008), f"{name}.input_layernorm.weight": (4096,)}
        shapes |= {f"{name}.post_attention_layernorm.weight": (4096,)}
        shapes |= {f"{name}.self_attn.rotary_emb.inv_freq": (64,)}
    return shapes | {"model.norm.weight": (4096,)}


class ReleasedTokenizer:
    """32,000 tokens, as Vicuna's."""

    def __init__(self) -> None:
        self.vocabulary = {f"t{index}": index for index in range(32000)}
        self.pad_token_id, self.bos_token_id, self.eos_token_id, self.unk_token = None, 1, 2, "t0"
        self.chat_template = ""

    def get_vocab(self) -> dict[str, int]:
        return self.vocabulary

    def add_tokens(self, tokens: list[Any], special_tokens: bool = False) -> None:
        assert special_tokens
        self.vocabulary |= {token.content: len(self.vocabulary) for token in tokens}

    def add_special_tokens(self, tokens: dict[str, str]) -> None:
        self.pad_token_id = self.vocabulary[tokens["pad_token"]]

    def convert_tokens_to_ids(self, token: str) -> int:
        return self.vocabulary[token]


def _released_folder() -> VisionParts:
    shapes = _released_tower() | _released_qformer() | _norm("qformer.layernorm", 768)
    shapes |= _linear("language_projection", 4096, 768) | {"language_model.shared.weight": (32128, 4096)}
    return VisionParts("blip2", Shapes(shapes), Blip2VisionConfig(), Blip2QFormerConfig(), 32, None)


@pytest.mark.parametrize("form", ["folder", "lavis"])
def test_released_names_and_shapes(form: str) -> None:
    vision = _released_folder() if form == "folder" else from_lavis("lavis", *(Shapes(s) for s in _released_lavis()))
    config = LlamaConfig(hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32)
    language = prepare_language_model("vicuna", Shapes(_released_vicuna()), config, ReleasedTokenizer())
    projection = Shapes({"llama_proj.weight": (4096, 768), "llama_proj.bias": (4096,)})

    built = minigpt4_config(vision, language, "float16")
    planned = plan_tensors(built, projection, "minigpt4", vision, language, torch.float16)

    for part, defaults in (("vision_config", Blip2VisionConfig()), ("qformer_config", Blip2QFormerConfig())):
        found = getattr(built, part).to_dict()
        expected = defaults.to_dict()
        assert {name for name in expected if found[name] != expected[name]} <= {"dtype"}
    shapes = {tensor.name: tensor.shape for tensor in planned}
    grown = _released_vicuna() | {"model.embed_tokens.weight": (32001, 4096), "lm_head.weight": (32001, 4096)}
    expected_shapes = _released_tower() | _released_qformer() | _norm("qformer.layernorm", 768)
    expected_shapes |= _linear("language_projection", 4096, 768)
    expected_shapes |= {f"language_model.{name}": shape for name, shape in grown.items() if "rotary" not in name}
    assert shapes == expected_shapes
    assert sum(tensor.parameters for tensor in planned) == sum(math.prod(shape) for shape in expected_shapes.values())
    assert built.image_token_index == 32000
    in_float32 = sum(tensor.parameters for tensor in planned if tensor.dtype == torch.float32)
    assert in_float32 == sum(math.prod(shape) for shape in _released_qformer().values()) + 2 * 768


def test_the_names_of_lavis_follow_transformers_own_conversion() -> None:
    assert lavis_name("vision_model.encoder.layers.7.layer_norm2.bias") == "visual_encoder.blocks.7.norm2.bias"
    assert lavis_name("vision_model.encoder.layers.7.mlp.fc1.weight") == "visual_encoder.blocks.7.mlp.fc1.weight"
    ours = "qformer.encoder.layer.4.crossattention.attention.key.weight"
    assert lavis_name(ours) == "Qformer.bert.encoder.layer.4.crossattention.self.key.weight"
    assert lavis_name("query_tokens") == "query_tokens"
