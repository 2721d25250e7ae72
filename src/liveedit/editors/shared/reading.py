"""What editors read of a question: hidden states of some layers, its own tokens among those of the chat template."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ...backbones import Backbone, TokenBatch
from ...backbones.prefill import not_compiled
from ...backbones.split_forward import first_output
from ...samples import Question

_PROBES: Final = (Question("Why?"), Question("go on"))
"""Two questions without a common token: what their prompts have in common is the chat template."""


class _Kept(threading.local):
    states: Tensor | None = None


class KeptLayer:
    """Keeps the output of one layer during a forward pass, for the thread that runs it."""

    def __init__(self, backbone: Backbone, layer: int):
        self._kept = _Kept()
        self._handle = backbone.layers[layer].register_forward_hook(self._keep)

    @not_compiled
    def _keep(self, layer: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
        self._kept.states = first_output(output).detach()

    @property
    def states(self) -> Tensor:
        """The output in this thread's last forward pass, (batch, tokens, width)."""
        assert self._kept.states is not None, "no forward pass has reached the layer"
        return self._kept.states

    def remove(self) -> None:
        """Remove the hook. Safe to call twice."""
        self._handle.remove()
        self._kept = _Kept()


@dataclass(frozen=True)
class Template:
    """How many tokens of a prompt belong to the chat template, before and after the question."""

    before: int
    after: int

    @classmethod
    def of(cls, backbone: Backbone) -> Template:
        """The template of a backbone."""
        first, second = (backbone.encode([question]).input_ids[0].tolist() for question in _PROBES)
        return cls(_common(first, second), _common(first[::-1], second[::-1]))

    def content_mask(self, tokens: TokenBatch) -> Bool[Tensor, "batch tokens"]:
        """The tokens that say what a question is about: those of its image, or of a question without one its own."""
        return torch.where(tokens.has_image[:, None], tokens.image_mask, self.question_mask(tokens))

    def question_mask(self, tokens: TokenBatch) -> Bool[Tensor, "batch tokens"]:
        """The prompt tokens of the question itself. A prompt that is no longer than the template is taken whole."""
        prompt = tokens.prompt_mask
        place, count = prompt.cumsum(1) - 1, prompt.sum(1, keepdim=True)
        inside = prompt & (place >= self.before) & (place < count - self.after)
        return torch.where(inside.any(1, keepdim=True), inside, prompt)


def last_of_prompt(
    states: Float[Tensor, "batch tokens width"], prompt: Bool[Tensor, "batch tokens"]
) -> Float[Tensor, "batch width"]:
    """Of the states of all tokens, that of the last token of each prompt. prompt: `TokenBatch.prompt_mask`."""
    prompt = prompt.to(states.device)
    places = torch.arange(prompt.shape[1], device=prompt.device).expand_as(prompt)
    last = places.masked_fill(~prompt, -1).amax(1)
    return states[torch.arange(len(last), device=last.device), last]


def _common(first: Sequence[int], second: Sequence[int]) -> int:
    """Length of the common start of two sequences."""
    pairs = zip(first, second, strict=False)
    return next((place for place, (one, other) in enumerate(pairs) if one != other), min(len(first), len(second)))
