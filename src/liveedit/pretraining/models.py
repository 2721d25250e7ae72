"""The untrained built-in backbones: configurations, processors, and the parts that are pretrained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2Processor,
    Blip2QFormerConfig,
    Blip2VisionConfig,
    BlipImageProcessorPil,
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    OPTConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    ProcessorMixin,
)

from ..backbones.families.blip2 import MINIGPT4_CHAT_TEMPLATE
from ..datasets.world import drawing
from .rows import Layout
from .tokenizer import build_tokenizer

PATCH = 16
IMAGE_TOKENS = (drawing.SIZE // PATCH) ** 2
"""Image tokens of an image: one for each patch, or one for each query of the Q-Former."""
EDIT_LAYER = 3
"""Index of the decoder layer whose output is edited: two thirds of the depth."""

_VISION: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
}
_MEAN, _STD = [0.5] * 3, [0.25] * 3
_SIZE = {"height": drawing.SIZE, "width": drawing.SIZE}


@dataclass(frozen=True)
class BuiltIn:
    """How a built-in backbone is made, and how its prompts are laid out.

    image_head, text_head: what stands before every question, with and without an image, special tokens as text.
    question: the question's own part of the prompt. vision_from: the built-in backbone whose trained vision it takes.
    """

    name: str
    base: str
    summary: str
    template_words: tuple[str, ...]
    image_head: str
    text_head: str
    question: str
    make_model: Callable[[PreTrainedTokenizerFast], PreTrainedModel]
    make_processor: Callable[[PreTrainedTokenizerFast], ProcessorMixin]
    vision_from: str | None = None

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """Its tokenizer."""
        # BLIP-2's processor makes the image's token itself, and fails if the tokenizer has one.
        return build_tokenizer(self.template_words, names_image_token=self.base.startswith("Llava"))

    @property
    def layout(self) -> Layout:
        """How its prompts are laid out."""
        return Layout(self.tokenizer(), self.image_head, self.text_head, self.question, " {}", IMAGE_TOKENS)

    def processor(self) -> ProcessorMixin:
        """Its processor: images to 64 x 64, prompts in its own format."""
        return self.make_processor(self.tokenizer())

    def build(self, seed: int = 0) -> PreTrainedModel:
        """The untrained model."""
        torch.manual_seed(seed)
        tokenizer = self.tokenizer()
        model = self.make_model(tokenizer)
        _ease_pointing(model)
        generation: Any = model.generation_config
        generation.pad_token_id, generation.bos_token_id = tokenizer.pad_token_id, tokenizer.bos_token_id
        generation.eos_token_id = tokenizer.eos_token_id
        return model


class VisionPart(nn.Module):
    """The vision part: pixels -> an image's 16 features, before the projection into the language model."""

    def __init__(self, model: Any):
        super().__init__()
        self.tower = model.model.vision_tower if hasattr(model, "model") else model.vision_model
        self.width: int = self.tower.config.hidden_size
        if hasattr(model, "qformer"):
            self.qformer, self.query_tokens = model.qformer, model.query_tokens
            self.width = self.qformer.config.hidden_size

    def forward(self, pixels: Tensor) -> Tensor:
        """(batch, 3, 64, 64) to (batch, 16, width)."""
        seen = self.tower(pixels).last_hidden_state
        if not hasattr(self, "qformer"):
            return seen[:, 1:]
        queries = self.query_tokens.expand(len(seen), -1, -1)
        return self.qformer(query_embeds=queries, encoder_hidden_states=seen).last_hidden_state


def language_parts(model: Any) -> tuple[Any, Any]:
    """The projection of image features, and the decoder."""
    if hasattr(model, "model"):
        return model.model.multi_modal_projector, model.model.language_model
    return model.language_projection, model.language_model.get_decoder()


def _ease_pointing(model: PreTrainedModel) -> None:
    """Initialisation that helps a small model to relate words to what the image shows.

    Word embeddings start four times larger than usual, and half of the heads of each layer start with equal query and
    key matrices.
    """
    _, decoder = language_parts(model)
    with torch.no_grad():
        cast(nn.Embedding, model.get_input_embeddings()).weight.mul_(4)
        for layer in decoder.layers:
            half = layer.self_attn.q_proj.weight.shape[0] // 2
            layer.self_attn.k_proj.weight[:half] = layer.self_attn.q_proj.weight[:half]


def _token_ids(tokenizer: Any) -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }


def _llama(tokenizer: PreTrainedTokenizerFast) -> LlamaConfig:
    return LlamaConfig(
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=6,
        num_attention_heads=6,
        num_key_value_heads=6,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        **_token_ids(tokenizer),
    )


def _opt(tokenizer: PreTrainedTokenizerFast) -> OPTConfig:
    return OPTConfig(
        hidden_size=192,
        word_embed_proj_dim=192,
        ffn_dim=768,
        num_hidden_layers=6,
        num_attention_heads=6,
        max_position_embeddings=1024,
        dropout=0.0,
        tie_word_embeddings=True,
        **_token_ids(tokenizer),
    )


def _llava(tokenizer: PreTrainedTokenizerFast) -> LlavaForConditionalGeneration:
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(image_size=drawing.SIZE, patch_size=PATCH, projection_dim=128, **_VISION),
        text_config=_llama(tokenizer),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),  # pyright: ignore[reportCallIssue]
        image_seq_length=IMAGE_TOKENS,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=True,
    )
    config._attn_implementation = "eager"
    return LlavaForConditionalGeneration(config)


def _blip2(tokenizer: PreTrainedTokenizerFast, text: OPTConfig | LlamaConfig) -> Blip2ForConditionalGeneration:
    config = Blip2Config(
        vision_config=Blip2VisionConfig(image_size=drawing.SIZE, patch_size=PATCH, **_VISION),
        qformer_config=Blip2QFormerConfig(
            vocab_size=4,
            hidden_size=128,
            encoder_hidden_size=128,
            intermediate_size=512,
            num_hidden_layers=3,
            num_attention_heads=4,
            cross_attention_frequency=1,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            max_position_embeddings=64,
        ),
        text_config=text,
        num_query_tokens=IMAGE_TOKENS,
        image_token_index=cast(int, tokenizer.convert_tokens_to_ids("<image>")),
    )
    config._attn_implementation = "eager"
    model = Blip2ForConditionalGeneration(config)
    with torch.no_grad():  # transformers starts all queries at zero; equal queries take long to become different.
        model.query_tokens.normal_()
    return model


def _llava_processor(tokenizer: PreTrainedTokenizerFast) -> LlavaProcessor:
    image_processor = CLIPImageProcessorPil(
        size={"shortest_edge": drawing.SIZE}, crop_size=_SIZE, image_mean=_MEAN, image_std=_STD
    )
    return LlavaProcessor(
        image_processor=image_processor,
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=_LLAVA_CHAT_TEMPLATE,
    )


def _blip2_processor(tokenizer: PreTrainedTokenizerFast) -> Blip2Processor:
    image_processor = BlipImageProcessorPil(size=_SIZE, image_mean=_MEAN, image_std=_STD)
    return Blip2Processor(image_processor=image_processor, tokenizer=tokenizer, num_query_tokens=IMAGE_TOKENS)


def _minigpt4_processor(tokenizer: PreTrainedTokenizerFast) -> Blip2Processor:
    tokenizer.chat_template = MINIGPT4_CHAT_TEMPLATE
    return _blip2_processor(tokenizer)


_LLAVA_CHAT_TEMPLATE = (
    "{% for message in messages %}{% for part in message.content %}"
    "{% if part.type == 'image' %}<image>{% endif %}{% endfor %}"
    "{% for part in message.content %}{% if part.type == 'text' %}Q: {{ part.text }} A:{% endif %}"
    "{% endfor %}{% endfor %}"
)

TINY_LLAVA = BuiltIn(
    name="tiny-llava",
    base="LlavaForConditionalGeneration",
    summary="CLIP's vision tower, a two-layer projection, Llama",
    template_words=("Q", "A"),
    image_head="<s><image>",
    text_head="<s>",
    question="Q: {} A:",
    make_model=_llava,
    make_processor=_llava_processor,
)
TINY_BLIP2 = BuiltIn(
    name="tiny-blip2",
    base="Blip2ForConditionalGeneration",
    summary="BLIP-2's vision tower and Q-Former, a linear projection, OPT",
    template_words=("Question", "Answer"),
    image_head="<image><s>",
    text_head="<s>",
    question="Question: {} Answer:",
    make_model=lambda tokenizer: _blip2(tokenizer, _opt(tokenizer)),
    make_processor=_blip2_processor,
)
TINY_MINIGPT4 = BuiltIn(
    name="tiny-minigpt4",
    base="Blip2ForConditionalGeneration",
    summary="the trained vision tower and Q-Former of tiny-blip2, a linear projection, Llama",
    template_words=("Human", "Assistant", "Img"),
    image_head="<s>###Human: <Img><image></Img>",
    text_head="<s>###Human:",
    question=" {}###Assistant:",
    make_model=lambda tokenizer: _blip2(tokenizer, _llama(tokenizer)),
    make_processor=_minigpt4_processor,
    vision_from="tiny-blip2",
)
BUILT_INS = {built_in.name: built_in for built_in in (TINY_LLAVA, TINY_BLIP2, TINY_MINIGPT4)}
