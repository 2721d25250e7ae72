"""At which layer a language model's states say what a question is about, and how similar two wordings are there.

In a chat model the last token of a prompt belongs to the template. Up to some layer its state hardly depends on the
question; from there on it says what is asked, and two wordings of a question are nearer to each other than to the same
question about another subject. Both the layer and the distance differ from model to model, so they are measured.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...backbones import Backbone
from ...samples import Question
from ..shared.neutral_questions import NEUTRAL_QUESTIONS
from .anchors import EVERYDAY_QUESTIONS, last_of_prompt
from .experts import FeedForward

_SUBJECTS: Final = 4
_WORDINGS: Final = 2
"""Of each relation, the subjects that are asked about, and their wordings: those that are questions."""

_LEAST_RECALL: Final = 0.5
"""Share of rewordings that must pass the threshold. With fewer, a model does not know the language of the questions, as
the built-in ones, or its state at this layer does not say what is asked."""

_READ_AT_ONCE: Final = 36


@dataclass(frozen=True)
class Separation:
    """How well the states at one layer distinguish a reworded question from one about another subject.

    threshold: the cosine that a given share of the latter pairs reaches. recall: the share of rewordings that reach it.
    """

    layer: int
    threshold: float
    recall: float

    @property
    def useful(self) -> bool:
        """Whether most rewordings are distinguished from other subjects."""
        return self.recall >= _LEAST_RECALL


def best_separation(
    backbone: Backbone, layers: Sequence[int], false_firing: float, centered: bool
) -> Separation | None:
    """The layer that distinguishes most, the earliest of equals; None if no layer is useful."""
    found = separations(backbone, layers, false_firing, centered)
    best = max(found, key=lambda one: one.recall, default=None)
    return best if best is not None and best.useful else None


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
    texts = [text for relation in NEUTRAL_QUESTIONS for asked in relation[:_SUBJECTS] for text in asked[:_WORDINGS]]
    questions = [Question(text) for text in (*texts, *EVERYDAY_QUESTIONS)]
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
    unit = F.normalize(neutral - everyday.mean(0) if centered else neutral, dim=1)
    # (relations, subjects, wordings, d)
    grouped = unit.view(len(NEUTRAL_QUESTIONS), _SUBJECTS, _WORDINGS, -1)
    cosines = torch.einsum("rswd,rtvd->rsvwt", grouped, grouped)  # Subject, wording, wording, subject.
    same_subject = torch.eye(_SUBJECTS, dtype=torch.bool)[:, None, None, :].expand(cosines.shape[1:])
    same_wording = torch.eye(_WORDINGS, dtype=torch.bool)[None, :, :, None].expand(cosines.shape[1:])
    others = cosines[:, ~same_subject].flatten()
    reworded = cosines[:, same_subject & ~same_wording].flatten()
    threshold = round(float(others.quantile(1 - false_firing)), 2)
    return Separation(layer, threshold, float((reworded >= threshold).float().mean()))
