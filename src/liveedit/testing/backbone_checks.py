"""Measurements of a backbone's contract on a model itself. Needs no pytest: `liveedit doctor` uses it too."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..backbones import Backbone
from ..samples import Question

ANSWERS = ("red", "the deep well", "four")

Pair = tuple[Tensor, Tensor]
"""What was found and what it should be."""


@dataclass(frozen=True)
class BackboneChecks:
    """Runs three short questions, answered by `ANSWERS`, through a backbone that is split at a layer.

    layer: the edit layer; the prefix ends with its output. questions: two with images if the model reads them.
    """

    backbone: Backbone
    layer: int
    questions: Sequence[Question]

    def image_token_counts(self) -> list[int]:
        """The number of image tokens of each question."""
        return self.backbone.encode(self.questions, ANSWERS).image_mask.sum(1).tolist()

    @torch.no_grad()
    def split_logits(self) -> Pair:
        """Logits of the answer tokens by prefix and suffix, and by the whole forward."""
        inputs = self.backbone.encode(self.questions, ANSWERS)
        whole = self.backbone.logits(inputs)[inputs.answer_mask]
        states = self.backbone.hidden_states(inputs, self.layer)
        return self.backbone.logits_from(states, inputs, self.layer, inputs.answer_mask), whole

    def split_gradients(self, rows: int | None = None) -> Pair:
        """Gradients with respect to the hidden states of the layer, by the suffix and by the whole forward.

        rows: only the first questions, to save memory. Both: (rows, tokens, width).
        """
        inputs = self.backbone.encode(self.questions[:rows], ANSWERS[:rows])
        with torch.no_grad():
            states = self.backbone.hidden_states(inputs, self.layer)
        change = torch.zeros_like(states, requires_grad=True)
        handle = self.backbone.layers[self.layer].register_forward_hook(lambda _, __, output: _plus(output, change))
        try:
            whole = self.backbone.logits(inputs)[inputs.answer_mask]
            (expected,) = torch.autograd.grad(whole.float().logsumexp(-1).sum(), change)
        finally:
            handle.remove()
        states.requires_grad_()
        # 1 * states: a split forward may write into its argument, and a leaf cannot be changed in place.
        parts = self.backbone.logits_from(1 * states, inputs, self.layer, inputs.answer_mask)
        (found,) = torch.autograd.grad(parts.float().logsumexp(-1).sum(), states)
        return found, expected

    @torch.no_grad()
    def rows_alone(self) -> list[Tensor]:
        """Logits of each question and answer by itself."""
        pairs = zip(self.questions, ANSWERS, strict=True)
        return [self.backbone.logits(self.backbone.encode([question], [answer]))[0] for question, answer in pairs]

    @torch.no_grad()
    def rows_of_a_batch(self, padding: str, alone: Sequence[Tensor] | None = None) -> list[Pair]:
        """Logits of each question and answer in a padded batch, and by itself.

        alone: the result of `rows_alone`, if it is there already.
        """
        inputs = self.backbone.encode(self.questions, ANSWERS, padding)
        together = self.backbone.logits(inputs)
        present = inputs.attention_mask.bool().to(together.device)
        expected = self.rows_alone() if alone is None else alone
        return [(logits[mask], row) for logits, mask, row in zip(together, present, expected, strict=True)]

    def generations(self, max_new_tokens: int = 6) -> tuple[list[str], list[str]]:
        """Answers with the key-value cache and without."""
        inputs = self.backbone.encode(self.questions, padding="left")
        cached = self.backbone.generate(inputs, max_new_tokens)
        return cached, self.backbone.generate(inputs, max_new_tokens, use_cache=False)


def _plus(output: Any, change: Tensor) -> Any:
    return output + change if isinstance(output, Tensor) else (output[0] + change, *output[1:])
