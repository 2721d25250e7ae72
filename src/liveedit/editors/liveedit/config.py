"""Every choice of the LiveEdit editor: the paper's exact form, the improved form, each difference a switch."""

from __future__ import annotations

from typing import Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ...errors import ConfigError

Weighting = Literal["both", "absolute", "relative", "equal"]
"""Weight of an expert that passed hard routing: sigmoid(s) softmax(s), sigmoid(s), softmax(s), or 1 / their number."""

_LATER_FIELDS: Final = ("soft_routing", "soft_factors", "hard_prompt")


class LiveEditConfig(BaseModel):
    """The shape of an editor. `LiveEditConfig.paper` gives the paper's exact form, the defaults the improved one."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    width: int = Field(gt=0, description="Width d of the backbone's hidden states.")
    layer: int = Field(ge=0, description="Decoder layer whose output is edited, counted from 0.")
    image_tokens: int = Field(gt=0, description="Image tokens N_v of the vision sentinel.")
    module_width: int = Field(default=256, gt=0, description="Module width d_m (paper: 1024).")
    rank: int = Field(default=4, gt=0, description="Rank r of an expert (paper: 4).")
    feature_parts: int = Field(default=4, gt=0, description="Feature size k, in units of the module width (paper: 4).")
    heads: int = Field(default=8, gt=0, description="Attention heads (paper: 1; released code: 8).")
    norm: bool = Field(default=True, description="LayerNorm on what attention reads, and biases (paper: neither).")
    features: Literal["vector", "set"] = Field(
        default="set", description="One vector of k d_m (paper), or k vectors of d_m whose similarities are averaged."
    )
    similarity: Literal["dot", "cosine"] = Field(
        default="cosine", description="Dot product over sqrt(d_m) (paper), or cosine times a trained temperature."
    )
    expert_input: Literal["states", "normed"] = Field(
        default="normed", description="What an expert reads: h (paper) or LayerNorm(h) (released code)."
    )
    expert_scale: Literal["none", "fixed"] = Field(
        default="fixed", description="Factor on an expert's output: 1 (paper) or 1 / (5 sqrt(r)) (released code)."
    )
    answer_source: Literal["states", "embeddings", "both"] = Field(
        default="both",
        description="What the generator knows the answer by: its states (paper), its word embeddings, both.",
    )
    answer_slots: int = Field(default=16, gt=0, description="Positions that the answer's embeddings are told apart by.")
    residual_tokens: Literal["all", "text"] = Field(
        default="text",
        description="Tokens that experts change: all (paper) or text only; image tokens precede the prompt.",
    )
    scope: Literal["image", "text+image"] = Field(
        default="image", description="Queries that edits can reach: those with an image, or text-only ones as well."
    )
    top_experts: int | None = Field(
        default=32, gt=0, description="Experts mixed per query at most; None mixes all that pass (exact mode)."
    )
    soft_routing: bool = Field(
        default=True,
        description="Weigh the experts that pass hard routing by what is asked; else all n weigh 1/n (table 2: - SR).",
    )
    soft_factors: Literal["both", "absolute", "relative"] = Field(
        default="both",
        description="A soft weight: sigmoid(s) softmax(s) (paper, equation 7), or sigmoid(s) or softmax(s) alone.",
    )
    hard_prompt: bool = Field(
        default=True,
        description="The prompt decides what is looked at in the image: phi = CA_phi2(CA_phi1(phi0, h_p), h_v) "
        "(paper); else phi = CA_phi2(phi0, h_v) (table 2: HR*).",
    )

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if self.module_width % self.heads or self.width % self.heads:
            raise ValueError(f"heads = {self.heads} must divide module_width and width")
        return self

    @property
    def weighting(self) -> Weighting:
        """How the experts that pass hard routing are weighed."""
        return self.soft_factors if self.soft_routing else "equal"

    def for_digest(self) -> str:
        """The configuration as JSON; fields that an earlier version did not have are left out at their defaults.

        Digests then stay what they were, and with them the edits that were made under them.
        """
        defaults = {name: type(self).model_fields[name].default for name in _LATER_FIELDS}
        return self.model_dump_json(exclude={name for name in defaults if getattr(self, name) == defaults[name]})

    @classmethod
    def paper(cls, width: int, layer: int, image_tokens: int, **changes: object) -> LiveEditConfig:
        """The paper's exact form (sections 4.1, 4.2 and 7.4)."""
        exact: dict[str, object] = {
            "module_width": 1024,
            "heads": 1,
            "norm": False,
            "features": "vector",
            "similarity": "dot",
            "expert_input": "states",
            "expert_scale": "none",
            "answer_source": "states",
            "residual_tokens": "all",
            "top_experts": None,
        }
        return cls.create(width=width, layer=layer, image_tokens=image_tokens, **{**exact, **changes})

    @classmethod
    def create(cls, **values: object) -> LiveEditConfig:
        """Build a configuration; unknown keys and impossible values raise `ConfigError`."""
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            problems = "; ".join(
                f"{'.'.join(map(str, issue['loc'])) or 'configuration'}: {issue['msg']}" for issue in error.errors()
            )
            raise ConfigError(f"The LiveEdit configuration cannot be used: {problems}.") from error
