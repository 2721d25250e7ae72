"""Fine-tuning on each edit, one after the other: the last language layer (FT-L), or the projector (FT-M)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional as F

from ..backbones import Backbone, TokenBatch
from ..backbones.vision_tower import computed_once, find_vision_tower
from ..errors import BackboneError, CheckpointError, InvalidInputError
from ..progress import Progress, no_progress
from ..samples import Edit
from .base import Editor, EditRecord

_MULTIMODAL_PARTS = ("qformer", "multi_modal_projector", "connector", "merger")
"""Names of the part between vision tower and language model: BLIP-2, LLaVA, Idefics3, Qwen."""

Logits = Callable[[], Tensor]
"""Gives the logits that predict the answer, (answer tokens, vocabulary), with the weights as they are now."""


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


class FineTuneMultimodalConfig(FineTuneConfig):
    """How one edit is trained into the part between vision tower and language model.

    Smaller steps, and up to twice as many as in the paper's table 3, forget less: the best of the settings tried in
    `docs/EXPERIMENTS.md`.
    """

    rate: float = Field(default=3e-4, gt=0, description="Learning rate of AdamW (paper: 1e-3).")
    steps: int = Field(default=50, gt=0, description="Optimiser steps per edit, at most (paper: 25).")


class FineTune(Editor):
    """AdamW on one part of the model until the edit is learned or its steps are spent.

    Each edit starts with fresh moments. The part's weights are kept from before the first edit and restored bit for
    bit by `reset` and `detach`. Later edits write over earlier ones: single edits cannot be undone.
    """

    def __init__(self, backbone: Backbone, part: nn.Module, config: FineTuneConfig):
        super().__init__(backbone)
        self.config = config
        self._part = part
        self._original = {name: value.clone() for name, value in part.state_dict().items()}

    @abstractmethod
    def _answering(self, inputs: TokenBatch) -> AbstractContextManager[Logits]:
        """Computes once what training does not change; gives what answers with the weights as they are now."""

    def _edit_one(self, edit_id: str, edit: Edit) -> dict[str, Any]:
        inputs = self.backbone.encode([edit.question], [edit.answer])
        wanted = inputs.input_ids[inputs.answer_mask]
        parameters = list(self._part.parameters())
        optimizer = torch.optim.AdamW(parameters, lr=self.config.rate, weight_decay=self.config.weight_decay)
        self._part.requires_grad_(True)
        steps = 0
        try:
            with self._answering(inputs) as logits:
                while steps < self.config.steps:
                    found = logits().float()
                    loss = F.cross_entropy(found, wanted.to(found.device))
                    if loss.item() < self.config.stop_below_nats:
                        break
                    optimizer.zero_grad(set_to_none=True)
                    loss.backward()
                    optimizer.step()
                    steps += 1
        finally:
            self._part.requires_grad_(False)
            optimizer.zero_grad(set_to_none=True)
        return {"refine_steps": steps}

    def reset(self) -> None:
        """Restore the part's first weights."""
        self._part.load_state_dict(self._original)

    def configuration(self) -> dict[str, Any]:
        """The whole configuration."""
        return self.config.model_dump()

    def edited_state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The part's weights as they are now."""
        return {name: value.detach().clone().cpu() for name, value in self._part.state_dict().items()}, {}

    def restore(self, tensors: dict[str, Tensor], note: dict[str, Any]) -> None:
        """Load saved weights. Raises `CheckpointError` for those of another part, and changes nothing."""
        wanted = {name: tuple(value.shape) for name, value in self._original.items()}
        found = {name: tuple(value.shape) for name, value in tensors.items()}
        if found != wanted:
            raise CheckpointError(f"Saved weights have the shapes {found}; this editor takes {wanted}. Use the same.")
        self._part.load_state_dict(tensors)


class FineTuneLast(FineTune):
    """FT-L: the last decoder layer.

    The states before the last layer do not change while only that layer is trained: they are computed once per edit.
    """

    name = "ft-l"
    summary = "fine-tuning of the last language layer (FT-L)"
    table_order = 10
    settings_class = FineTuneConfig

    def __init__(self, backbone: Backbone, config: FineTuneConfig | None = None):
        super().__init__(backbone, backbone.layers[-1], config or FineTuneConfig())

    @contextmanager
    def _answering(self, inputs: TokenBatch) -> Iterator[Logits]:
        before = len(self.backbone.layers) - 2
        with torch.no_grad():
            states = self.backbone.hidden_states(inputs, before)
        yield lambda: self.backbone.logits_from(states, inputs, before, inputs.predicting)


class FineTuneMultimodal(FineTune):
    """FT-M: the projector (LLaVA) or the Q-Former (BLIP-2, MiniGPT-4), as in the LiveEdit paper's table 3.

    A question without an image does not reach what is trained: text-only answers stay as they are, bit for bit, and an
    edit without an image is refused. The vision tower runs once per edit, what follows it at every step.
    """

    name = "ft-m"
    summary = "fine-tuning of the part between vision tower and language model (FT-M)"
    table_order = 11
    settings_class = FineTuneMultimodalConfig

    def __init__(self, backbone: Backbone, config: FineTuneMultimodalConfig | None = None):
        super().__init__(backbone, find_multimodal_part(backbone), config or FineTuneMultimodalConfig())
        self._tower = find_vision_tower(backbone.model, outside=self._part)

    def edit(self, edits: Sequence[tuple[str, Edit]], progress: Progress = no_progress) -> list[EditRecord]:
        """Make edits. Raises `InvalidInputError` if one has no image, before any is made."""
        for edit_id, edit in edits:
            if edit.question.image is None:
                raise InvalidInputError(
                    f"The edit {edit_id!r} has no image, and FT-M trains the part that passes images on: it "
                    "cannot reach this edit. Give the edit an image or use another editor."
                )
        return super().edit(edits, progress)

    @contextmanager
    def _answering(self, inputs: TokenBatch) -> Iterator[Logits]:
        with computed_once(self._tower):
            yield lambda: self.backbone.logits(inputs)[inputs.predicting]


def find_multimodal_part(backbone: Backbone) -> nn.Module:
    """The part between vision tower and language model: a Q-Former, or else a projector.

    Raises `BackboneError` if there is none, or none that is known.
    """
    if not backbone.reads_images:
        raise BackboneError(f"{backbone.name} reads text alone: there is no projector that FT-M could train. Use ft-l.")
    for wanted in _MULTIMODAL_PARTS:
        for name, module in backbone.model.named_modules():
            if name.rpartition(".")[2] == wanted and any(True for _ in module.parameters()):
                return module
    raise BackboneError(
        f"{backbone.name} ({type(backbone.model).__name__}) has no part between vision tower and language model that "
        f"FT-M knows; known are {', '.join(_MULTIMODAL_PARTS)}. Use ft-l."
    )
