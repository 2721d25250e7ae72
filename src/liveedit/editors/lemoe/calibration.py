"""At which layer a language model's states say what a question is about, and how similar two wordings are there.

In a chat model the last token of a prompt belongs to the template. Up to some layer its state hardly depends on the
question; from there on it says what is asked, and two wordings of a question are nearer to each other than to the same
question about another subject. Both the layer and the distance differ from model to model, so they are measured.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ...backbones import Backbone
from ...samples import Question
from ..shared.everyday_questions import EVERYDAY_QUESTIONS
from ..shared.reading import last_of_prompt
from ..shared.separation import Separation, most_useful, separation_questions
from .experts import FeedForward

_READ_AT_ONCE: Final = 36


def best_separation(
    backbone: Backbone, layers: Sequence[int], false_firing: float, centered: bool
) -> Separation | None:
    """The layer that distinguishes most, the earliest of equals; None if no layer is useful."""
    return most_useful(separations(backbone, layers, false_firing, centered))


def separations(backbone: Backbone, layers: Sequence[int], false_firing: float, centered: bool) -> list[Separation]:
    """What the neutral questions show at each of these layers, in which the FFN reads the last token of a prompt.

    false_firing: share of the pairs of one relation and two subjects that may reach the threshold.
    """
    states = _kept_states(backbone, layers)
    return [_separation(layer, states[layer], false_firing, centered) for layer in layers]


_KEPT: WeakKeyDictionary[Backbone, dict[int, Tensor]] = WeakKeyDictionary()
"""States by layer: they depend on the frozen model alone, and are read once."""


def _kept_states(backbone: Backbone, layers: Sequence[int]) -> dict[int, Tensor]:
    kept = _KEPT.setdefault(backbone, {})
    missing = [layer for layer in layers if layer not in kept]
    if missing:
        kept |= _states(backbone, missing)
    return kept


@torch.no_grad()
def _states(backbone: Backbone, layers: Sequence[int]) -> dict[int, Tensor]:
    """(questions, d) by layer: what the FFN reads at the last token of the neutral and the everyday questions."""
    questions = [*separation_questions(), *map(Question, EVERYDAY_QUESTIONS)]
    found: dict[int, list[Tensor]] = {layer: [] for layer in layers}
    now: list[Tensor] = []  # The mask of the prompts of the batch that is read.

    def reader(layer: int) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def read(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            x, prompt = arguments[0], now[0]
            whole = x if x.ndim == 3 else x.unflatten(0, (len(prompt), -1))  # OPT reads all tokens in one row.
            found[layer].append(last_of_prompt(whole, prompt).float().cpu())

        return read

    entries = {layer: FeedForward.of(backbone.layers[layer]).entry for layer in layers}
    handles = [entry.register_forward_pre_hook(reader(layer)) for layer, entry in entries.items()]
    try:
        for start in range(0, len(questions), _READ_AT_ONCE):
            inputs = backbone.encode(questions[start : start + _READ_AT_ONCE])
            now[:] = [inputs.prompt_mask]
            backbone.hidden_states(inputs, max(layers))
    finally:
        for handle in handles:
            handle.remove()
    return {layer: torch.cat(parts) for layer, parts in found.items()}


def _separation(layer: int, states: Tensor, false_firing: float, centered: bool) -> Separation:
    neutral, everyday = states[: -len(EVERYDAY_QUESTIONS)], states[-len(EVERYDAY_QUESTIONS) :]
    return Separation.of(layer, neutral - everyday.mean(0) if centered else neutral, false_firing)
