"""An untrained tiny LLaVA: its tokenizer, its image processor, its configuration."""

from __future__ import annotations

from typing import Any, cast

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from torch import nn
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from ...datasets.world import drawing, questions

PATCH = 16
IMAGE_TOKENS = (drawing.SIZE // PATCH) ** 2
EDIT_LAYER = 3
"""Index of the decoder layer whose output is edited: two thirds of the depth."""

_SPECIAL = ("<pad>", "<s>", "</s>", "<image>")
_CHAT_TEMPLATE = (
    "{% for message in messages %}{% for part in message.content %}"
    "{% if part.type == 'image' %}<image>{% endif %}{% endfor %}"
    "{% for part in message.content %}{% if part.type == 'text' %}Q: {{ part.text }} A:{% endif %}"
    "{% endfor %}{% endfor %}"
)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Longest match over the world's words and syllables, with every byte as a fallback.

    A byte-level pre-tokenizer turns any text into the 256 byte letters first, so nothing is ever unknown.
    """
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*questions.vocabulary(), "Q", "A", "Say", "the", "a", "is"]
    known = dict.fromkeys([*_SPECIAL, *letters, *(f"Ġ{word}" for word in words), *words, *"0123456789"])
    vocabulary = {token: index for index, token in enumerate(known)}
    backend = Tokenizer(
        models.WordPiece(vocabulary, unk_token="<pad>", continuing_subword_prefix="", max_input_chars_per_word=100_000)
    )
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", vocabulary["<s>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        extra_special_tokens={"image_token": "<image>"},
        clean_up_tokenization_spaces=False,
        model_max_length=2048,
        padding_side="left",
    )


def build_processor(tokenizer: PreTrainedTokenizerFast) -> LlavaProcessor:
    """LLaVA's own processor: pictures to 64 x 64, prompts through the chat template."""
    size = {"height": drawing.SIZE, "width": drawing.SIZE}
    image_processor = CLIPImageProcessorPil(
        size={"shortest_edge": drawing.SIZE}, crop_size=size, image_mean=[0.5] * 3, image_std=[0.25] * 3
    )
    return LlavaProcessor(
        image_processor=image_processor,
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=_CHAT_TEMPLATE,
    )


def build_model(tokenizer: Any, seed: int = 0) -> LlavaForConditionalGeneration:
    """An untrained tiny LLaVA.

    Word embeddings start four times larger than usual, and half of the heads of each layer start with equal
    query and key matrices: both help a small model to find a word's thing in the picture.
    """
    torch.manual_seed(seed)
    vision = CLIPVisionConfig(
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=drawing.SIZE,
        patch_size=PATCH,
        projection_dim=128,
    )
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=6,
        num_attention_heads=6,
        num_key_value_heads=6,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),  # pyright: ignore[reportCallIssue]
        image_seq_length=IMAGE_TOKENS,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=True,
    )
    config._attn_implementation = "eager"
    model = LlavaForConditionalGeneration(config)
    with torch.no_grad():
        cast(nn.Embedding, model.get_input_embeddings()).weight.mul_(4)
        for layer in model.model.language_model.layers:
            half = layer.self_attn.q_proj.weight.shape[0] // 2
            layer.self_attn.k_proj.weight[:half] = layer.self_attn.q_proj.weight[:half]
    generation = model.generation_config
    generation.pad_token_id, generation.bos_token_id = tokenizer.pad_token_id, tokenizer.bos_token_id
    generation.eos_token_id = tokenizer.eos_token_id
    return model
