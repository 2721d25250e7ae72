"""Configuration of the LiveEdit editor: the paper's exact form and the improved form; each difference is a switch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from ..base import checked_config
from ..shared.fitting import FittingConfig
from ..shared.routing import Combining, Weighting
from .losses import SoftTerms

PAPER_CONFIG: Final[Mapping[str, Any]] = {
    "module_width": 1024,
    "heads": 1,
    "norm": False,
    "features": "vector",
    "similarity": "dot",
    "expert_input": "states",
    "expert_scale": "none",
    "answer_source": "states",
    "value_start": 0.2,
    "residual_tokens": "all",
    "scope": "text+image",
    "top_experts": None,
}
"""Settings of `LiveEditConfig` that give the paper's exact form (sections 4.1, 4.2 and 7.4)."""

PAPER_LOSSES: Final[Mapping[str, Any]] = {
    "hard_loss": "paper",
    "soft_loss": "paper",
    "mixing": "batch",
    "sampling": "one",
    "reduction": "sum",
    "prompt_dropout": 0.0,
}
"""Settings of `LiveEditLosses` that give the losses of section 4.3 exactly."""

PAPER_TRAINING: Final[Mapping[str, Any]] = {
    "weight_decay": 0.0,
    "beta2": 0.999,
    "warmup": 0,
    "decay": "constant",
    "clip": None,
    "validate_every": 500,
    "keep": "loss",
}
"""Settings of `TrainingConfig` that give the optimiser and the checkpoints of section 7.4: plain Adam."""


class RefineConfig(FittingConfig):
    """When and how an expert is refined, and how answers are kept whole. Not part of the trained modules."""

    learning_rate: float = Field(
        default=0.15, gt=0, description="Learning rate of Adam on a generated U and V, relative to their spread."
    )
    verified_wordings: int = Field(
        default=6,
        ge=1,
        description="Wordings of the prompt in which a generated expert must be right, the prompt included, to be left "
        "as it is.",
    )
    wordings: int = Field(
        default=24, ge=2, description="Wordings of the prompt on which an expert is refined, the prompt included."
    )
    visual_margin: float = Field(
        default=1.0,
        description="The edit's own query must exceed the sentinel by this margin, in units of visual similarity.",
    )
    prompt_score: float = Field(default=4.0, description="The edit's own query must reach this prompt similarity s.")
    combine: Literal["sum", "nearest"] = Field(default="nearest", description="As in `Combining`.")
    weight_threshold: float | None = Field(
        default=0.01, gt=0, le=1, description="As in `Combining`; by default 0.5 where `prompt_threshold` was chosen."
    )

    @property
    def combining(self) -> Combining:
        """How experts are combined."""
        return Combining(combine=self.combine, weight_threshold=self.weight_threshold)


class LiveEditConfig(BaseModel):
    """The modules of an editor. The defaults are the improved form; `LiveEditConfig.paper` gives the paper's."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    width: int = Field(gt=0, description="Width d of the backbone's hidden states.")
    layer: int = Field(ge=0, description="Decoder layer whose output is edited, counted from 0.")
    image_tokens: int = Field(gt=0, description="Number N_v of image tokens of the vision sentinel.")
    module_width: int = Field(default=256, gt=0, description="Module width d_m (paper: 1024).")
    rank: int = Field(default=4, gt=0, description="Rank r of an expert (paper: 4).")
    feature_parts: int = Field(default=4, gt=0, description="Feature size k, in units of the module width (paper: 4).")
    heads: int = Field(default=8, gt=0, description="Attention heads (paper: 1; released code: 8).")
    norm: bool = Field(default=True, description="LayerNorm on the inputs of attention, and biases (paper: neither).")
    features: Literal["vector", "set"] = Field(
        default="set", description="One vector of k d_m (paper), or k vectors of d_m whose similarities are averaged."
    )
    similarity: Literal["dot", "cosine"] = Field(
        default="cosine", description="Dot product over sqrt(d_m) (paper), or cosine times a trained temperature."
    )
    expert_input: Literal["states", "normed"] = Field(
        default="normed", description="Input of an expert: h (paper) or LayerNorm(h) (released code)."
    )
    expert_scale: Literal["none", "fixed"] = Field(
        default="fixed", description="Factor on an expert's output: 1 (paper) or 1 / (5 sqrt(r)) (released code)."
    )
    answer_source: Literal["states", "embeddings", "both"] = Field(
        default="both",
        description="Representation of the answer in the generator: hidden states (paper), word embeddings, or both.",
    )
    answer_slots: int = Field(
        default=16, gt=0, description="Number of position embeddings for the answer's word embeddings."
    )
    value_start: float | None = Field(
        default=None,
        gt=0,
        description="V's value matrix starts as this multiple of the identity, so that an untrained expert is small "
        "beside the hidden states and made of them; None: as PyTorch initialises (the paper gives no initial values).",
    )
    standardized_start: bool | None = Field(
        default=None,
        description="LayerNorms of hidden states start so that all dimensions vary alike, for models in which a few "
        "dimensions are far larger than the others (needs norm). None: with norm, if the backbone is not built in.",
    )
    residual_tokens: Literal["all", "text"] = Field(
        default="text",
        description="Tokens that experts change: all (paper) or text only; image tokens precede the prompt.",
    )
    scope: Literal["image", "text+image"] = Field(
        default="image",
        description="Queries that edits can reach: only those with an image, or text-only ones as well.",
    )
    top_experts: int | None = Field(
        default=32,
        gt=0,
        description="Largest number of experts mixed per query; None mixes all that pass (exact mode).",
    )
    soft_routing: bool = Field(
        default=True,
        description="Weigh the experts that pass hard routing by the prompt; else all n weigh 1/n (table 2: - SR).",
    )
    soft_factors: Literal["both", "absolute", "relative"] = Field(
        default="both",
        description="A soft weight: sigmoid(s) softmax(s) (paper, equation 7), or sigmoid(s) or softmax(s) alone.",
    )
    hard_prompt: bool = Field(
        default=True,
        description="Visual features depend on the prompt: phi = CA_phi2(CA_phi1(phi0, h_p), h_v) (paper); "
        "else phi = CA_phi2(phi0, h_v) (table 2: HR*).",
    )

    visual_threshold: float = Field(
        default=0.0,
        description="An expert passes hard routing if its similarity exceeds the sentinel's by more than this (paper: "
        "0). `liveedit calibrate` chooses it.",
    )
    prompt_threshold: float = Field(
        default=0.0, description="What is subtracted from every prompt similarity s (paper: 0); chosen likewise."
    )

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if self.module_width % self.heads or self.width % self.heads:
            raise ValueError(f"heads = {self.heads} must divide module_width and width")
        return self

    @model_validator(mode="after")
    def _standardized_by_norm(self) -> Self:
        if self.standardized_start and not self.norm:
            raise ValueError("standardized_start = true needs norm = true, whose weights it sets")
        return self

    @property
    def reaches_text(self) -> bool:
        """Whether an edit can fire for a query without an image.

        Without norm and biases the visual feature of such a query is exactly 0, and no expert passes `0 > 0`
        (equation 5), whatever the scope.
        """
        return self.scope == "text+image" and self.norm

    @property
    def weighting(self) -> Weighting:
        """The weighting of the experts that pass hard routing."""
        return self.soft_factors if self.soft_routing else "equal"

    @classmethod
    def paper(cls, width: int, layer: int, image_tokens: int, **changes: object) -> LiveEditConfig:
        """The paper's exact form, except for `changes`."""
        return cls.create(width=width, layer=layer, image_tokens=image_tokens, **{**PAPER_CONFIG, **changes})

    @classmethod
    def create(cls, **values: object) -> LiveEditConfig:
        """Build a configuration. Raises `ConfigError` for unknown settings and invalid values."""
        return checked_config(cls, values, "LiveEdit")


class LiveEditLosses(BaseModel):
    """The losses of LiveEdit's training. The defaults are the improved form; `paper` gives the paper's."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    hard_loss: Literal["paper", "margin"] = Field(
        default="margin", description="Hard-routing loss: equation 13, or margins."
    )
    soft_loss: Literal["paper", "masked"] = Field(
        default="masked", description="Soft-routing loss: equations 15, 16, or masked."
    )
    soft_terms: SoftTerms = Field(
        default="both",
        description="Terms of the soft-routing loss, in either form: both, the absolute alone (equation 15; table 2: "
        "- l_sr2) or the relative alone (equation 16; table 2: - l_sr1).",
    )
    mixing: Literal["batch", "prefix", "routed"] = Field(
        default="routed",
        description="Experts mixed in a step: the batch's (paper), a random prefix and the own one (released code), or "
        "those that pass hard routing, as at query time.",
    )
    sampling: Literal["all", "one"] = Field(
        default="all",
        description="Probes of each edit in a joint step: all, with the edit on the edit side of routing, or one of "
        "generality and one of locality, with the edit or its generality sample on either side, at random (paper, in "
        "the routing stage as well).",
    )
    reduction: Literal["mean", "sum"] = Field(
        default="mean",
        description="Means over answer tokens and over queries (released code), or sums over the tokens of an answer "
        "and, in the paper's routing losses, over the batch (paper, equations 8 to 12).",
    )
    kl_exchanged: bool = Field(default=False, description="KL(edited || base) as in the released code.")
    text_locality: bool = Field(default=True, description="Text-only locality in the losses (released code: no).")
    same_subject: Literal["negative", "ignored"] = Field(
        default="negative",
        description="Edits of the same subject that ask something else, in hard routing with margins.",
    )
    prompt_dropout: float = Field(
        default=0.3,
        ge=0,
        lt=1,
        description="Share of the prompt's tokens hidden from both extractors in the routing stage, so that routing "
        "does not depend on a single word.",
    )
    image_dropout: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="The same for the image's tokens: where few photographs are shown, so that none is known by heart.",
    )
    margin: float = Field(default=2.0, ge=0, description="Margin of hard routing with margins.")
    negative_weight: float = Field(
        default=2.0, gt=0, description="Weight of the negatives in margin and masked losses."
    )

    @classmethod
    def paper(cls) -> LiveEditLosses:
        """The losses of section 4.3 exactly."""
        return cls.model_validate(PAPER_LOSSES)
