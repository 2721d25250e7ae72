"""A question, with its image, as one vector: what retrieving editors find the right edit by."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from ...backbones import Backbone, HiddenTokens
from ...errors import BackboneError
from ...samples import Question
from .attention import CrossAttention, left_pack


class EncoderConfig(BaseModel):
    """Sizes of a `QuestionEncoder`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    width: int = Field(gt=0, description="Width d of the backbone's hidden states.")
    layer: int = Field(ge=0, description="Decoder layer whose states are read, counted from 0.")
    features: int = Field(default=128, gt=0, description="Length of the vector of a question.")
    layers: int = Field(default=2, gt=0, description="Layers of the small encoder that is trained here.")
    heads: int = Field(default=4, gt=0, description="Attention heads.")
    text_encoder: str | None = Field(
        default=None,
        description="Folder or hub name of a text encoder that reads the prompt instead of the small one "
        "(roberta-base in RECIPE's paper, bert-base-cased in SERAC's, all-MiniLM-L6-v2 in LTE's).",
    )
    image_slots: int = Field(default=32, gt=0, description="Tokens that an image takes in a named text encoder.")

    @model_validator(mode="after")
    def _heads_divide(self) -> EncoderConfig:
        if self.features % self.heads:
            raise ValueError(f"heads = {self.heads} must divide features = {self.features}")
        return self

    @classmethod
    def backbone_settings(cls, backbone: Backbone) -> dict[str, Any]:
        """The settings that the backbone decides."""
        return {"width": backbone.width, "layer": backbone.default_edit_layer()}


@torch.no_grad()
def read_questions(
    backbone: Backbone, questions: Sequence[Question], layer: int, answers: Sequence[str] | None = None
) -> HiddenTokens:
    """Questions, followed by their answers if given, as the unedited backbone reads them."""
    with backbone.transformed(None):
        inputs = backbone.encode(questions, answers)
        hidden_states = backbone.hidden_states(inputs, layer).float()
        embeddings = backbone.embeddings(inputs).float()
    return HiddenTokens.of(inputs, hidden_states, embeddings, [question.prompt for question in questions])


class QuestionEncoder(nn.Module):
    """A small transformer encoder over [image tokens; prompt tokens], read off at a trained [CLS] token.

    It reads the states of the unedited backbone at a layer, where the backbone has understood image and wording
    already. The answer is never read, since a query has none. In their released code, the editors that the LiveEdit
    paper compares with read the prompt alone and so cannot distinguish two images; this encoder reads both.
    """

    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.config = config
        reader = _SmallReader if config.text_encoder is None else _PretrainedReader
        self.reader: nn.Module = reader(config)

    def forward(self, tokens: HiddenTokens) -> Float[Tensor, "batch features"]:
        """One vector per question, float32, of unit length."""
        return F.normalize(self.reader(tokens).float(), dim=-1)


class ScopeSimilarity(nn.Module):
    """`s = exp(t) cos(query, edit) - b`, t and b trained: a query is in an edit's scope if s > 0.

    threshold: the cosine from which on s > 0, before training.
    """

    def __init__(self, temperature: float = 3.0, threshold: float = 0.5):
        super().__init__()
        self.temperature = nn.Parameter(torch.tensor(temperature))
        self.offset = nn.Parameter(torch.tensor(threshold * math.exp(temperature)))

    def forward(self, cosines: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """s of each cosine."""
        return cosines * self.temperature.exp() - self.offset


class _SmallReader(nn.Module):
    def __init__(self, config: EncoderConfig):
        super().__init__()
        features = config.features
        self.norm = nn.LayerNorm(config.width)
        self.enter_image, self.enter_prompt = nn.Linear(config.width, features), nn.Linear(config.width, features)
        self.summary = nn.Parameter(torch.randn(features) / math.sqrt(features))
        self.blocks = nn.ModuleList(Block(features, config.heads) for _ in range(config.layers))
        self.leave = nn.Sequential(nn.LayerNorm(features), nn.Linear(features, features))

    def forward(self, tokens: HiddenTokens) -> Tensor:
        image, image_present = left_pack(tokens.hidden_states, tokens.image_mask)
        prompt, prompt_present = left_pack(tokens.hidden_states, tokens.prompt_mask)
        batch = len(tokens)
        read = [self.enter_image(self.norm(image)), self.enter_prompt(self.norm(prompt))]
        x = torch.cat([self.summary.to(read[0].dtype).expand(batch, 1, -1), *read], 1)
        present = torch.cat([image_present.new_ones(batch, 1), image_present, prompt_present], 1)
        for block in self.blocks[:-1]:
            x = block(x, x, present)
        return self.leave(self.blocks[-1](x[:, :1], x, present)[:, 0])  # Of the last layer only [CLS] is read.


class Block(nn.Module):
    """Self-attention and a feed-forward layer, each after a LayerNorm."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.attend = CrossAttention(width, [width], width, width, heads, norm=True)
        self.feed = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(
        self,
        x: Float[Tensor, "batch wanted width"],
        tokens: Float[Tensor, "batch length width"],
        present: Bool[Tensor, "batch length"],
    ) -> Float[Tensor, "batch wanted width"]:
        """The output for those of the tokens that are wanted, x; `present` masks padding."""
        x = x + self.attend(x, [(tokens, present)])
        return x + self.feed(x)


class _PretrainedReader(nn.Module):
    """A pretrained text encoder that also reads the image: [prompt's own embeddings; image slots].

    Attention from trained queries takes the image's tokens to `image_slots` vectors of the encoder's width: all
    576 of LLaVA's would not fit into the 512 positions of a BERT.
    """

    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.encoder, self.tokenizer = _pretrained(str(config.text_encoder))
        width = int(self.encoder.config.hidden_size)
        self.slots = nn.Parameter(torch.randn(config.image_slots, width) / math.sqrt(width))
        heads = config.heads if width % config.heads == 0 else 1
        self.look = CrossAttention(width, [config.width], width, width, heads, norm=True)
        self.leave = nn.Linear(width, config.features)

    def forward(self, tokens: HiddenTokens) -> Tensor:
        if len(tokens.prompts) != len(tokens):
            raise BackboneError(
                "A named text encoder reads the texts of prompts: make the tokens with read_questions()."
            )
        device = self.slots.device
        limit = int(self.encoder.config.max_position_embeddings) - len(self.slots) - 2  # RoBERTa counts from 2.
        words = self.tokenizer(
            list(tokens.prompts), padding=True, truncation=True, max_length=limit, return_tensors="pt"
        ).to(device)
        image, present = left_pack(tokens.hidden_states, tokens.image_mask)
        seen = self.look(self.slots.expand(len(tokens), -1, -1), [(image, present)])
        embedded = self.encoder.get_input_embeddings()(words["input_ids"])
        has_image = present.any(1, keepdim=True).expand(-1, len(self.slots)).to(words["attention_mask"])
        found = self.encoder(
            inputs_embeds=torch.cat([embedded, seen.to(embedded.dtype)], 1),
            attention_mask=torch.cat([words["attention_mask"], has_image], 1),
        )
        return self.leave(found.last_hidden_state[:, 0])


def _pretrained(name: str) -> tuple[Any, Any]:
    from transformers import AutoModel, AutoTokenizer

    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(name, padding_side="right")
        return AutoModel.from_pretrained(name, dtype=torch.float32), tokenizer
    except (OSError, ValueError) as error:
        raise BackboneError(
            f"The text encoder {name!r} could not be loaded ({error}). Give a folder or hub name of an encoder with "
            "its tokenizer, or none for the small one that is trained here."
        ) from error
