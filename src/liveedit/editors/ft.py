"""FT-L: fine-tune the last layer of the language model on each edit, one after the other."""

from __future__ import annotations

from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional as F

from ..backbones import Backbone, Inputs
from ..samples import Edit
from .base import Editor


class FineTuneConfig(BaseModel):
    """How one edit is trained.

    Optimiser and steps are those of the LiveEdit paper's table 3. Its rate, 1e-3, forgets earlier edits of `tiny-llava`
    faster than 3e-4 does, the best of the settings tried in `docs/EXPERIMENTS.md`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    rate: float = Field(default=3e-4, gt=0, description="Learning rate of AdamW (paper: 1e-3).")
    steps: int = Field(default=25, gt=0, description="Optimiser steps per edit, at most.")
    weight_decay: float = Field(default=0.0, ge=0, description="Weight decay of AdamW.")
    stop_below_nats: float = Field(
        default=0.01, ge=0, description="Stop an edit early below this loss: further steps only harm other answers."
    )


class FineTuneLast(Editor):
    """FT-L: AdamW on the last decoder layer until the edit is learned or its steps are spent.

    The states before the last layer do not change while only that layer is trained: they are computed once per
    edit. The layer's weights are kept from before the first edit and put back bit for bit by `reset` and `detach`.
    """

    name = "ft-l"
    summary = "fine-tuning of the last language layer (FT-L)"

    def __init__(self, backbone: Backbone, config: FineTuneConfig | None = None):
        super().__init__(backbone)
        self.config = config or FineTuneConfig()
        self._layer: nn.Module = backbone.layers[-1]
        self._original = {name: value.clone() for name, value in self._layer.state_dict().items()}

    def _edit_one(self, edit_id: str, edit: Edit) -> dict[str, Any]:
        inputs = self.backbone.encode([edit.question], [edit.answer])
        before = len(self.backbone.layers) - 2
        with torch.no_grad():
            states = self.backbone.states(inputs, before)
        parameters = list(self._layer.parameters())
        optimizer = torch.optim.AdamW(parameters, lr=self.config.rate, weight_decay=self.config.weight_decay)
        self._layer.requires_grad_(True)
        steps = 0
        try:
            while steps < self.config.steps:
                loss = self._loss(states, inputs, before)
                if loss.item() < self.config.stop_below_nats:
                    break
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                steps += 1
        finally:
            self._layer.requires_grad_(False)
            optimizer.zero_grad(set_to_none=True)
        return {"refine_steps": steps}

    def _loss(self, states: Tensor, inputs: Inputs, layer: int) -> Tensor:
        logits = self.backbone.logits_from(states, inputs, layer, inputs.predicting)
        return F.cross_entropy(logits.float(), inputs.input_ids[inputs.answer_mask].to(logits.device))

    def reset(self) -> None:
        """Put the layer's first weights back."""
        self._layer.load_state_dict(self._original)

    def configuration(self) -> dict[str, Any]:
        """The whole `FineTuneConfig`."""
        return self.config.model_dump()
