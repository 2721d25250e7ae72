"""What decides how patches are trained."""

from __future__ import annotations

from typing import Final

from pydantic import BaseModel, ConfigDict, Field

BUILT_IN_RATE: Final = 1e-2
RELEASED_RATE: Final = 0.1
"""Default rates. A patch's value starts at zero, and the hidden states of released models are larger."""


class TPatcherConfig(BaseModel):
    """How the patches of one edit are trained.

    "Authors" are those of Transformer-Patcher (https://arxiv.org/abs/2301.09785); the values are those of their code
    (ZeroYuHuang/Transformer-Patcher), with which they edit generated answers. Steps and the size of the memory are the
    best of the settings tried in `docs/EXPERIMENTS.md`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    rate: float | None = Field(
        default=None,
        gt=0,
        description="Learning rate of Adam (authors, LiveEdit's table 3: 1e-2); None: 1e-2 for a built-in backbone, "
        "0.1 for any other.",
    )
    steps: int = Field(
        default=50, gt=0, description="Steps per edit, at most (LiveEdit's table 3: 25; authors: 2,000)."
    )
    activation_weight: float = Field(default=1.0, ge=0, description="Weight a of the activation loss (authors: 1).")
    memory_weight: float = Field(default=10.0, ge=0, description="Weight m of the memory loss (authors: 10).")
    memory_bound: float = Field(
        default=-3.0, description="beta: memory queries score below it (authors: -3). A patch is active above 0."
    )
    margin: float = Field(
        default=3.0, ge=0, description="-gamma: the edit's query scores so much above memory queries (authors: 3)."
    )
    largest: int = Field(
        default=1000, gt=0, description="Memory queries that count in the memory loss: the worst (authors: 1000)."
    )
    stop_below_nats: float = Field(
        default=0.05,
        ge=0,
        description="Stop early below this edit loss, where patches are active on the edit and silent on the memory.",
    )
    remember_edits: bool = Field(
        default=True, description="Whether the queries of earlier edits join the memory (authors: yes)."
    )
    memory_questions: int = Field(
        default=1000, ge=1, description="Questions of the drawn world or facts in a built-in backbone's memory."
    )

    def rate_for(self, built_in: bool) -> float:
        """The learning rate for a built-in, or for any other backbone."""
        if self.rate is not None:
            return self.rate
        return BUILT_IN_RATE if built_in else RELEASED_RATE
