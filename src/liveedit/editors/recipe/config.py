"""Every choice of RECIPE."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from ..shared import EncoderConfig


class RecipeConfig(EncoderConfig):
    """Sizes of a RECIPE editor and weights of its losses. The paper's values are in the fields."""

    prompt_tokens: int = Field(default=3, gt=0, description="Vectors of an edit's continuous prompt (paper: 3).")
    generator_width: int = Field(default=192, gt=0, description="Width of the encoder that makes the prompts.")
    generator_layers: int = Field(default=2, gt=0, description="Its layers.")
    answer_slots: int = Field(default=16, gt=0, description="Positions that distinguish an answer's tokens.")
    embedding_scale: float = Field(
        default=1.0, gt=0, description="Standard deviation of the backbone's word embeddings, the unit of the prompts."
    )
    prompt_scale: float = Field(
        default=3.0,
        gt=0,
        description="Factor on what the generator gives, in that unit: prompts that are optimised one by one grow to "
        "four times the length of words.",
    )
    locality_share: float = Field(
        default=0.25, ge=0, le=1, description="Locality inputs per edit in a step of prompt training (paper: 1)."
    )
    locality_weight: float = Field(default=0.1, ge=0, description="Weight of the KL on them (paper: 1).")

    @model_validator(mode="after")
    def _generator_heads_divide(self) -> Self:
        if self.generator_width % self.heads:
            raise ValueError(f"heads = {self.heads} must divide generator_width = {self.generator_width}")
        return self
