"""A tiny random model of each supported family, saved to a folder as transformers saves any model.

`FAMILIES[name](folder)` writes weights, tokenizer, image processor, processor configuration and chat template. Weights
are float32 and the same for every call. All have four decoder layers of width 64, so that there are layers on both
sides of layer 2.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import (
    BaseImageProcessor,
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2QFormerConfig,
    Blip2VisionConfig,
    BlipImageProcessorPil,
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3ImageProcessorPil,
    Gemma3TextConfig,
    GotOcr2ImageProcessorPil,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3ImageProcessorPil,
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLVisionConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    MistralConfig,
    MistralForCausalLM,
    OPTConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLTextConfig,
    Qwen2_5_VLVisionConfig,
    Qwen2Config,
    Qwen2VLImageProcessorPil,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLTextConfig,
    Qwen3VLVisionConfig,
    SiglipVisionConfig,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
    SmolVLMImageProcessorPil,
)

from .family_tokenizers import TOKENS

LAYERS, WIDTH, HEADS = 4, 64, 4
EDIT_LAYER = 2
PATCH = 8

_VISION: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
_TEXT: dict[str, Any] = {"hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS}
_GROUPED: dict[str, Any] = {**_TEXT, "intermediate_size": 96, "num_key_value_heads": 2, "max_position_embeddings": 1024}


def _square(side: int) -> Any:
    return {"height": side, "width": side}


def _id(tokenizer: PreTrainedTokenizerFast, token: str) -> int:
    return int(tokenizer.convert_tokens_to_ids(token))  # type: ignore[arg-type]


def _vocabulary(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """Special ids, and more embeddings than tokens, as in most released models."""
    return {
        "vocab_size": (len(tokenizer) // 64 + 1) * 64,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }


def _build(kind: type[PreTrainedModel], config: PreTrainedConfig, seed: int) -> PreTrainedModel:
    """A model whose weights are large enough that every part of it influences the logits.

    By transformers' own initialisation, BLIP-2's vision tower and queries and most biases are zero or almost zero.
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model = kind(config)
        for weight in model.parameters():
            noise = torch.randn_like(weight)
            if weight.ndim < 2:  # norms and biases
                weight.add_(noise, alpha=0.1)
            else:
                fan_in = weight.shape[-1] if weight.ndim == 3 else weight[0].numel()
                weight.copy_(noise / fan_in**0.5)
    return model.eval()


def _save(
    folder: Path,
    name: str,
    kind: type[PreTrainedModel],
    config: PreTrainedConfig,
    tokenizer: PreTrainedTokenizerFast,
    stop_tokens: tuple[str, ...] = (),
    image_processor: BaseImageProcessor | None = None,
    processor: dict[str, object] | None = None,
) -> None:
    """Save the files of a released folder. stop_tokens: those of its generation_config.json, if it has its own."""
    folder.mkdir(parents=True, exist_ok=True)
    model = _build(kind, config, seed=sorted(TOKENS).index(name))
    if stop_tokens:
        model.generation_config.eos_token_id = [_id(tokenizer, token) for token in stop_tokens]  # type: ignore[union-attr]
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if image_processor is not None:
        image_processor.save_pretrained(folder)
        (folder / "processor_config.json").write_text(json.dumps(processor, indent=2))


def _llama_config(tokenizer: PreTrainedTokenizerFast, **changes: Any) -> LlamaConfig:
    return LlamaConfig(**{**_GROUPED, "tie_word_embeddings": False, **_vocabulary(tokenizer), **changes})


def save_llava(folder: Path) -> None:
    """LLaVA-1.5: CLIP's vision tower, a two-layer projection, Llama. An image is 16 tokens."""
    tokenizer = TOKENS["llava"].build()
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(image_size=32, patch_size=PATCH, projection_dim=32, **_VISION),
        text_config=_llama_config(tokenizer),
        image_token_index=_id(tokenizer, "<image>"),
        image_seq_length=16,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )
    _save(
        folder,
        "llava",
        LlavaForConditionalGeneration,
        config,
        tokenizer,
        image_processor=CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=_square(32)),
        processor={
            "processor_class": "LlavaProcessor",
            "image_token": "<image>",
            "num_additional_image_tokens": 1,
            "patch_size": PATCH,
            "vision_feature_select_strategy": "default",
        },
    )


def _blip2(name: str, folder: Path, tokenizer: PreTrainedTokenizerFast, text: LlamaConfig | OPTConfig) -> None:
    config = Blip2Config(
        vision_config=Blip2VisionConfig(image_size=32, patch_size=PATCH, **_VISION),
        qformer_config=Blip2QFormerConfig(
            vocab_size=4,
            max_position_embeddings=32,
            encoder_hidden_size=32,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            **_VISION,
        ),
        text_config=text,
        num_query_tokens=8,
        image_token_index=_id(tokenizer, "<image>"),
    )
    _save(
        folder,
        name,
        Blip2ForConditionalGeneration,
        config,
        tokenizer,
        image_processor=BlipImageProcessorPil(size=_square(32)),
        processor={"processor_class": "Blip2Processor", "num_query_tokens": 8},
    )


def save_blip2_opt(folder: Path) -> None:
    """BLIP-2 with OPT: an image is the Q-Former's 8 queries. As released, it stops at a line break, not at `</s>`."""
    tokenizer = TOKENS["blip2-opt"].build()
    config = OPTConfig(
        word_embed_proj_dim=WIDTH,
        ffn_dim=96,
        max_position_embeddings=1024,
        dropout=0.0,
        **{**_TEXT, **_vocabulary(tokenizer), "eos_token_id": _id(tokenizer, "Ċ")},
    )
    _blip2("blip2-opt", folder, tokenizer, config)


def save_minigpt4(folder: Path) -> None:
    """MiniGPT-4: BLIP-2's vision tower and Q-Former, one linear projection, Llama (Vicuna)."""
    tokenizer = TOKENS["minigpt4"].build()
    _blip2("minigpt4", folder, tokenizer, _llama_config(tokenizer, num_key_value_heads=HEADS))


def _qwen_ids(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    return {
        "image_token_id": _id(tokenizer, "<|image_pad|>"),
        "video_token_id": _id(tokenizer, "<|video_pad|>"),
        "vision_start_token_id": _id(tokenizer, "<|vision_start|>"),
        "vision_end_token_id": _id(tokenizer, "<|vision_end|>"),
    }


def _qwen_vision(**changes: Any) -> dict[str, Any]:
    return {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_heads": 2,
        "patch_size": PATCH,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "out_hidden_size": WIDTH,
        **changes,
    }


def _qwen_images() -> Qwen2VLImageProcessorPil:
    """One token for 16 x 16 pixels, between 4 and 36 of them."""
    size = {"shortest_edge": 32 * 32, "longest_edge": 96 * 96}
    return Qwen2VLImageProcessorPil(size=size, patch_size=PATCH, merge_size=2, temporal_patch_size=2)


_QWEN_ROPE: dict[str, Any] = {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [2, 3, 3]}


def save_qwen2_5_vl(folder: Path) -> None:
    """Qwen2.5-VL: windowed vision tower; the number of tokens follows the image's size."""
    tokenizer = TOKENS["qwen2.5-vl"].build()
    config = Qwen2_5_VLConfig(
        vision_config=Qwen2_5_VLVisionConfig(**_qwen_vision(window_size=32, fullatt_block_indexes=[1])),
        text_config=Qwen2_5_VLTextConfig(rope_parameters=_QWEN_ROPE, **_GROUPED, **_vocabulary(tokenizer)),
        **_qwen_ids(tokenizer),
    )
    _save(
        folder,
        "qwen2.5-vl",
        Qwen2_5_VLForConditionalGeneration,
        config,
        tokenizer,
        stop_tokens=("<|im_end|>", "<|endoftext|>"),
        image_processor=_qwen_images(),
        processor={"processor_class": "Qwen2_5_VLProcessor"},
    )


def save_qwen3_vl(folder: Path) -> None:
    """Qwen3-VL: states of the first vision layer are added again after decoder layer 0 (deepstack)."""
    tokenizer = TOKENS["qwen3-vl"].build()
    rope = {**_QWEN_ROPE, "mrope_interleaved": True}
    config = Qwen3VLConfig(
        vision_config=Qwen3VLVisionConfig(**_qwen_vision(num_position_embeddings=64, deepstack_visual_indexes=[0])),
        text_config=Qwen3VLTextConfig(
            head_dim=WIDTH // HEADS, rope_parameters=rope, **_GROUPED, **_vocabulary(tokenizer)
        ),
        **_qwen_ids(tokenizer),
    )
    _save(
        folder,
        "qwen3-vl",
        Qwen3VLForConditionalGeneration,
        config,
        tokenizer,
        stop_tokens=("<|im_end|>", "<|endoftext|>"),
        image_processor=_qwen_images(),
        processor={"processor_class": "Qwen3VLProcessor"},
    )


def save_internvl(folder: Path) -> None:
    """InternVL: an image becomes tiles of 4 tokens, their number by its shape, and a thumbnail."""
    tokenizer = TOKENS["internvl"].build()
    config = InternVLConfig(
        vision_config=InternVLVisionConfig(image_size=[32, 32], patch_size=[PATCH, PATCH], **_VISION),
        text_config=Qwen2Config(tie_word_embeddings=False, **_GROUPED, **_vocabulary(tokenizer)),
        image_token_id=_id(tokenizer, "<IMG_CONTEXT>"),
        image_seq_length=4,
        downsample_ratio=0.5,
        tie_word_embeddings=False,
    )
    _save(
        folder,
        "internvl",
        InternVLForConditionalGeneration,
        config,
        tokenizer,
        image_processor=GotOcr2ImageProcessorPil(size=_square(32), min_patches=1, max_patches=4),
        processor={"processor_class": "InternVLProcessor", "image_seq_length": 4},
    )


def save_gemma3(folder: Path) -> None:
    """Gemma 3: SigLIP pooled to 16 tokens that see each other both ways; sliding and full attention alternate."""
    tokenizer = TOKENS["gemma3"].build()
    config = Gemma3Config(
        vision_config=SiglipVisionConfig(image_size=64, patch_size=PATCH, vision_use_head=False, **_VISION),
        text_config=Gemma3TextConfig(
            head_dim=WIDTH // HEADS,
            query_pre_attn_scalar=16,
            sliding_window=12,
            layer_types=["sliding_attention", "full_attention"] * 2,
            **_GROUPED,
            **_vocabulary(tokenizer),
        ),
        mm_tokens_per_image=16,
        image_token_index=_id(tokenizer, "<image_soft_token>"),
        boi_token_index=_id(tokenizer, "<start_of_image>"),
        eoi_token_index=_id(tokenizer, "<end_of_image>"),
    )
    _save(
        folder,
        "gemma3",
        Gemma3ForConditionalGeneration,
        config,
        tokenizer,
        stop_tokens=("<eos>", "<end_of_turn>"),
        image_processor=Gemma3ImageProcessorPil(size=_square(64)),
        processor={"processor_class": "Gemma3Processor", "image_seq_length": 16},
    )


def save_idefics3(folder: Path) -> None:
    """Idefics3 with splitting: an image becomes tiles of 4 tokens, row by row, and a thumbnail."""
    tokenizer = TOKENS["idefics3"].build()
    config = Idefics3Config(
        vision_config={"image_size": 32, "patch_size": PATCH, **_VISION},
        text_config=_llama_config(tokenizer),
        image_token_id=_id(tokenizer, "<image>"),
        pad_token_id=tokenizer.pad_token_id,  # pyright: ignore[reportCallIssue]  # Taken by the base class.
        scale_factor=2,
    )
    _save(
        folder,
        "idefics3",
        Idefics3ForConditionalGeneration,
        config,
        tokenizer,
        stop_tokens=("<end_of_utterance>", "<|end_of_text|>"),
        image_processor=Idefics3ImageProcessorPil(size={"longest_edge": 64}, max_image_size={"longest_edge": 32}),
        processor={"processor_class": "Idefics3Processor", "image_seq_len": 4},
    )


def save_smolvlm(folder: Path) -> None:
    """SmolVLM without splitting: an image is one tile of 4 tokens."""
    tokenizer = TOKENS["smolvlm"].build()
    config = SmolVLMConfig(
        vision_config={"image_size": 32, "patch_size": PATCH, **_VISION},
        text_config=_llama_config(tokenizer),
        image_token_id=_id(tokenizer, "<image>"),
        pad_token_id=tokenizer.pad_token_id,  # pyright: ignore[reportCallIssue]  # Taken by the base class.
        scale_factor=2,
    )
    _save(
        folder,
        "smolvlm",
        SmolVLMForConditionalGeneration,
        config,
        tokenizer,
        image_processor=SmolVLMImageProcessorPil(
            size={"longest_edge": 64}, max_image_size={"longest_edge": 32}, do_image_splitting=False
        ),
        processor={"processor_class": "SmolVLMProcessor", "image_seq_len": 4},
    )


def save_llama(folder: Path) -> None:
    """Llama, text only, without a chat template."""
    tokenizer = TOKENS["llama"].build()
    _save(folder, "llama", LlamaForCausalLM, _llama_config(tokenizer), tokenizer)


def save_mistral(folder: Path) -> None:
    """Mistral, text only, with a chat template that takes a message's content as one string."""
    tokenizer = TOKENS["mistral"].build()
    config = MistralConfig(sliding_window=None, tie_word_embeddings=False, **_GROUPED, **_vocabulary(tokenizer))
    _save(folder, "mistral", MistralForCausalLM, config, tokenizer)


FAMILIES: dict[str, Callable[[Path], None]] = {
    "llava": save_llava,
    "blip2-opt": save_blip2_opt,
    "minigpt4": save_minigpt4,
    "qwen2.5-vl": save_qwen2_5_vl,
    "qwen3-vl": save_qwen3_vl,
    "internvl": save_internvl,
    "gemma3": save_gemma3,
    "idefics3": save_idefics3,
    "smolvlm": save_smolvlm,
    "llama": save_llama,
    "mistral": save_mistral,
}
