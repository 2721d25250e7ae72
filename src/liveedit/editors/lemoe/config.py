"""Every choice of the LEMoE editor: what the paper's abstract says, and what had to be reconstructed, as switches."""

from __future__ import annotations

from typing import Literal, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from ..shared.separation import Calibrated, FalseFiring


class _Thresholds(NamedTuple):
    image_weight: float
    threshold: float
    text_threshold: float


_STATES, _MEANS = _Thresholds(0.9, 0.85, 0.9), _Thresholds(2.0, 0.72, 0.75)
"""Chosen on drawn data: see docs/EXPERIMENTS.md."""


class LemoeConfig(BaseModel):
    """How experts are inserted, found and trained.

    "Paper" is LEMoE by its abstract, its figures and secondary sources; what none of them says is marked as
    reconstructed, and can be switched. `calibrated` needs states as anchors, and measures from the edit layer on.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    # Where, and what an expert is.
    layer: int | None = Field(
        default=None,
        ge=0,
        description="Decoder layer, from 0 (paper: the 18th of 32). None: by `calibrated`, or the edit layer.",
    )
    expert: Literal["ffn", "low_rank"] = Field(
        default="ffn", description="An expert is an FFN of the layer's own form (paper), or a linear map of low rank."
    )
    hidden: int | None = Field(
        default=None, gt=0, description="Hidden width of an expert FFN. None: that of the layer's FFN (paper)."
    )
    rank: int = Field(default=16, gt=0, description="Rank of a low-rank expert.")
    start: Literal["copy", "random"] = Field(
        default="random",
        description="What a new FFN expert reads with: the layer's own weights, or random ones (reconstructed).",
    )
    strength: float = Field(default=1.0, gt=0, description="Factor lambda on the experts' sum (paper: 1).")

    # Which edits share an expert.
    batch_edits: int = Field(default=10, gt=0, description="Edits per expert (paper: a batch).")
    order: Literal["clustered", "given", "shuffled"] = Field(
        default="clustered",
        description="Similar edits in a batch, by K-means (paper); the given order; or a random one.",
    )

    # How experts are found.
    routing: Literal["kv_anchor", "conventional"] = Field(
        default="kv_anchor",
        description="Once per question by key and value (paper), or by a gate for every token (what it improves upon).",
    )
    conventional_trains: Literal["all", "new"] = Field(
        default="all",
        description="With conventional routing, experts that a batch trains: all, as in a conventional MoE adaptor, or "
        "the new one.",
    )
    top_k: int = Field(default=1, gt=0, description="Experts that fire in an answer, at most (paper: 1).")
    gate: Literal["softmax", "renormalized"] = Field(
        default="renormalized",
        description="Weight of a chosen expert: its softmax, or that over the sum of the chosen (reconstructed).",
    )
    anchor: Literal["state+image", "state", "text+image", "text"] = Field(
        default="state+image",
        description="What anchors are made of: what the FFN reads at its last token (ours), or the mean of its word "
        "embeddings (paper); either beside the mean of its image tokens (ours), where the model reads images.",
    )
    image_weight: float | None = Field(
        default=None,
        gt=0,
        description="Length of the image part; that of the other is 1. None: 0.9 beside states, 2 beside means.",
    )
    centered: bool = Field(
        default=True,
        description="Subtract the mean of everyday questions, and of a grey image, from anchors (ours).",
    )
    projection: Literal["fixed", "first_batch", "every_batch"] = Field(
        default="fixed",
        description="When W_up and W_down train: never, with the first batch, with each (reconstructed).",
    )
    projection_width: int = Field(default=1024, gt=0, description="Rows of W_down.")
    value_width: int = Field(default=1024, gt=0, description="Width of keys and values.")
    projection_gain: float = Field(default=4.0, gt=0, description="Spread of what W_down gives for an anchor.")
    force_new_expert: bool = Field(
        default=True, description="A batch goes to its new expert while that trains, whatever the router says "
        "(reconstructed)."
    )  # fmt: skip
    routing_steps: int = Field(
        default=100,
        ge=0,
        description="Steps of a key on cross-entropy over all anchors so far; 0: keys learn from answers alone "
        "(reconstructed).",
    )
    routing_rate: float = Field(default=0.05, gt=0, description="Learning rate of keys on that loss.")
    replay: int = Field(
        default=256, gt=0, description="Earlier anchors per step at most, where the projection trains along."
    )
    null_expert: Literal["none", "key", "threshold"] = Field(
        default="threshold",
        description="What keeps other questions out: nothing, a null key, or a least similarity (reconstructed).",
    )
    threshold: float | None = Field(
        default=None,
        gt=-1,
        le=1,
        description="Least cosine to an anchor of the expert, for anchors with an image part. None: 0.85 with states, "
        "0.72 with means.",
    )
    text_threshold: float | None = Field(
        default=None,
        gt=-1,
        le=1,
        description="The same for other anchors. None: by `calibrated`, or 0.9 for states, 0.75 for means.",
    )
    calibrated: Calibrated = True
    false_firing: FalseFiring = 0.01

    # How a batch is trained.
    rate: float = Field(default=1e-3, gt=0, description="Learning rate of AdamW (paper: 2e-4).")
    steps: int = Field(default=100, gt=0, description="Optimiser steps per batch at most (paper: 100).")
    weight_decay: float = Field(default=0.0, ge=0, description="Weight decay of AdamW.")
    stop_below_nats: float = Field(
        default=0.05, ge=0, description="A batch is done when no answer token's loss is above this."
    )
    seed: int = Field(default=0, ge=0, description="Seed of random weights and of the order.")

    @property
    def by_state(self) -> bool:
        """Whether anchors are made of states."""
        return self.anchor.startswith("state")

    @property
    def with_image(self) -> bool:
        """Whether anchors have an image part."""
        return self.anchor.endswith("+image")

    @property
    def image_length(self) -> float:
        """The `image_weight` that holds."""
        return self.image_weight or (_STATES if self.by_state else _MEANS).image_weight

    @property
    def least_similarity(self) -> tuple[float, float]:
        """The `threshold` and the `text_threshold` that hold."""
        usual = _STATES if self.by_state else _MEANS
        return (
            usual.threshold if self.threshold is None else self.threshold,
            usual.text_threshold if self.text_threshold is None else self.text_threshold,
        )

    @model_validator(mode="after")
    def _keys_learn(self) -> Self:
        silent = self.force_new_expert and not self.routing_steps and self.gate == "renormalized" and self.top_k == 1
        if silent and self.routing == "kv_anchor":
            raise ValueError(
                "routing_steps = 0 with force_new_expert and gate = renormalized leaves keys without any gradient: "
                "give routing_steps, or gate = softmax"
            )
        return self
