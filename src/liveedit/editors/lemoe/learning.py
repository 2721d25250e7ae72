"""Training one expert on its batch of edits, through the layers from its own on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ...backbones import Backbone, TokenBatch
from ...backbones.shared_beginning import SharedBeginning
from .config import LemoeConfig
from .experts import FeedForward


@dataclass(frozen=True)
class Batch:
    """A batch of edits: right-padded inputs with answers, and the states that enter the edit layer."""

    inputs: TokenBatch
    states: Tensor


@dataclass(frozen=True)
class Learned:
    """How a training went: optimiser steps taken, and the largest loss of an answer token before the last of them."""

    steps: int
    worst_nats: float


def learn(
    backbone: Backbone,
    layer: int,
    place: FeedForward,
    batch: Batch,
    trained: list[Tensor],
    added: Callable[[Tensor], Tensor],
    config: LemoeConfig,
    alike: bool = False,
) -> Learned:
    """AdamW on the NLL of the answers, in place, with `added` beside the FFN; nothing else changes.

    trained: leaf tensors; added: what the experts give for what the FFN reads, (batch, length, d) both. alike: whether
    it is the same for all rows, so that the beginning that they have in common can be computed once; `added` is then
    called with one row as well. Stops early when no answer token's loss exceeds `stop_below_nats`: further steps would
    only reach further questions.
    """
    inputs = batch.inputs
    targets = inputs.input_ids[inputs.answer_mask]
    shared = SharedBeginning.of(backbone, inputs, layer - 1) if alike else None

    def beside(x: Tensor) -> Tensor:
        rows = len(inputs) if shared is None else shared.rows
        whole = x if x.ndim == 3 else x.unflatten(0, (rows, -1))
        return added(whole.float()).reshape(x.shape)

    optimizer = torch.optim.AdamW(trained, lr=config.rate, weight_decay=config.weight_decay)
    worst, steps = float("inf"), 0
    with place.beside(beside), torch.enable_grad():
        for tensor in trained:
            tensor.requires_grad_(True)
        try:
            while True:
                logits = (
                    backbone.logits_from(batch.states, inputs, layer - 1, inputs.predicting)
                    if shared is None
                    else shared.logits(batch.states, inputs.predicting)
                )
                losses = F.cross_entropy(logits.float(), targets.to(logits.device), reduction="none")
                worst = float(losses.detach().max())
                if worst < config.stop_below_nats or steps == config.steps:
                    break
                optimizer.zero_grad(set_to_none=True)
                losses.mean().backward()
                optimizer.step()
                steps += 1
        finally:
            for tensor in trained:
                tensor.requires_grad_(False)
                tensor.grad = None
    return Learned(steps, worst)
