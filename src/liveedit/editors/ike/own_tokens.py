"""The tokens of a question itself as one vector, and at which layer these vectors distinguish questions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.nn import functional as F

from ...backbones import Backbone, TokenBatch
from ...samples import Question
from ..shared.everyday_questions import EVERYDAY_QUESTIONS
from ..shared.reading import KeptLayer, Template
from ..shared.separation import Separation, separation_questions

WEIGHT_POWER: Final = 3
"""Tokens count by this power of their length. See docs/EXPERIMENTS.md."""

_READ_AT_ONCE: Final = 36


@dataclass(frozen=True)
class OwnTokens:
    """What tells a question from others of the same form: its tokens that everyday questions do not have.

    `x_t = LayerNorm(h_t) - m`, with m the mean over the tokens of the everyday questions, and the feature is
    `sum_t |x_t|^3 x_t` over the question's tokens t, of length 1. A plain mean of a dozen tokens says which words a
    question is made of, and two questions that differ in a name alone are nearer to each other than two wordings of
    one. The tokens of names are the farthest from m.

    mean: m, (width,) float32. neutral: (questions, width) features of `separation_questions`.
    """

    template: Template
    mean: Tensor
    neutral: Tensor

    def features(self, states: Tensor, tokens: TokenBatch) -> Tensor:
        """(batch, width) float32 of length 1, from hidden states, (batch, length, width)."""
        inside = self.template.question_mask(tokens).to(states.device)[..., None]
        # Not a product with the mask: padding may hold anything, infinities included.
        return _weighted(torch.where(inside, _normed(states) - self.mean.to(states.device), 0.0))


_KEPT: WeakKeyDictionary[Backbone, dict[int, OwnTokens]] = WeakKeyDictionary()
"""By layer. They depend on the frozen model alone, and are read once."""


def own_tokens(backbone: Backbone, layers: Sequence[int]) -> dict[int, OwnTokens]:
    """How questions are compared at each of these layers."""
    kept = _KEPT.setdefault(backbone, {})
    missing = [layer for layer in layers if layer not in kept]
    if missing:
        kept |= _read(backbone, missing)
    return {layer: kept[layer] for layer in layers}


def separations(backbone: Backbone, layers: Sequence[int], false_firing: float) -> list[Separation]:
    """What the neutral questions show at each of these layers."""
    return [Separation.of(layer, found.neutral, false_firing) for layer, found in own_tokens(backbone, layers).items()]


def _read(backbone: Backbone, layers: Sequence[int]) -> dict[int, OwnTokens]:
    with backbone.transformed(None):
        template = Template.of(backbone)
        everyday = _own_states(backbone, template, layers, [Question(text) for text in EVERYDAY_QUESTIONS])
        neutral = _own_states(backbone, template, layers, separation_questions())
    found: dict[int, OwnTokens] = {}
    for layer in layers:
        mean = torch.cat(everyday[layer]).mean(0)
        rows = [_weighted(states - mean) for states in neutral[layer]]
        found[layer] = OwnTokens(template, mean, torch.stack(rows))
    return found


@torch.no_grad()
def _own_states(
    backbone: Backbone, template: Template, layers: Sequence[int], questions: Sequence[Question]
) -> dict[int, list[Tensor]]:
    """By layer, of each question the normed states of its own tokens, (tokens, width) float32."""
    found: dict[int, list[Tensor]] = {layer: [] for layer in layers}
    kept = {layer: KeptLayer(backbone, layer) for layer in layers}
    try:
        for start in range(0, len(questions), _READ_AT_ONCE):
            inputs = backbone.encode(questions[start : start + _READ_AT_ONCE])
            backbone.hidden_states(inputs, max(layers))
            inside = template.question_mask(inputs).cpu()
            for layer, one in kept.items():
                states = _normed(one.states).cpu()
                found[layer] += [row[mask] for row, mask in zip(states, inside, strict=True)]
    finally:
        for one in kept.values():
            one.remove()
    return found


def _normed(states: Tensor) -> Tensor:
    # Without LayerNorm the few tokens that gather attention, which are longest, would decide.
    return F.layer_norm(states.float(), states.shape[-1:])


def _weighted(centred: Tensor) -> Tensor:
    return F.normalize((centred * centred.norm(dim=-1, keepdim=True) ** WEIGHT_POWER).sum(-2), dim=-1)
