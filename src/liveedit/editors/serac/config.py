"""Every choice of SERAC."""

from __future__ import annotations

from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from ..shared import EncoderConfig


class SeracConfig(BaseModel):
    """What the scope classifier and the counterfactual model are, and how they are trained.

    Paper: Mitchell et al. 2022, https://arxiv.org/abs/2206.06520. Its models are pretrained; the LiveEdit paper
    (section 7) takes BERT and OPT-125M. If none is named, small ones are trained here from scratch.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    width: int = Field(gt=0, description="Width d of the backbone's hidden states.")
    layer: int = Field(ge=0, description="Decoder layer whose states the classifier reads, counted from 0.")
    vocabulary: int = Field(gt=0, description="Word embeddings of the backbone; the counterfactual model shares them.")
    classifier: str | None = Field(
        default=None,
        description="Folder or hub name of a text encoder for the classifier (paper: distilbert-base-cased; LiveEdit "
        "paper: bert-base-cased). None: a small one.",
    )
    counterfactual: str | None = Field(
        default=None,
        description="Folder or hub name of the counterfactual model, a causal language model with the backbone's "
        "vocabulary (LiveEdit paper: facebook/opt-125m, which shares that of BLIP-2 with OPT). None: a small one.",
    )
    features: int = Field(default=128, gt=0, description="Length of the vector of a question.")
    classifier_layers: int = Field(default=2, gt=0, description="Layers of the small classifier.")
    classifier_heads: int = Field(default=4, gt=0, description="Attention heads of the small classifier.")
    counterfactual_width: int = Field(default=128, gt=0, description="Width of the small counterfactual model.")
    counterfactual_layers: int = Field(default=2, ge=2, description="Layers of the small counterfactual model.")
    counterfactual_heads: int = Field(default=4, gt=0, description="Attention heads of the small counterfactual model.")
    random_answers: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="Share of the counterfactual model's training edits whose answer is made of random words, so that "
        "it learns to write answers that no training edit has.",
    )
    negative_weight: float = Field(default=1.0, gt=0, description="Weight of the pairs out of scope.")

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if self.counterfactual_width % (2 * self.counterfactual_heads):
            raise ValueError(
                f"counterfactual_heads = {self.counterfactual_heads} must divide counterfactual_width into even parts"
            )
        return self

    @property
    def encoder(self) -> EncoderConfig:
        """The classifier's part that reads one question."""
        return EncoderConfig(
            width=self.width,
            layer=self.layer,
            features=self.features,
            layers=self.classifier_layers,
            heads=self.classifier_heads,
            text_encoder=self.classifier,
        )
