"""Hidden states and logits of a batch whose rows begin alike: what they share is computed once.

Rows share the beginning of the chat template, and rows that ask about one image share the image.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final, Self

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from transformers import DynamicCache

from .backbone import Backbone
from .families.text_only import TextBackbone
from .kept_prompt import Keys, of_first, of_rest
from .split_forward import first_output, run_body, run_suffix
from .tokens import TokenBatch

_FEWEST: Final = 8
"""Shared tokens that are worth a forward pass of their own."""

_PLAIN: Final = (Backbone, TextBackbone)
"""Classes whose models take token ids and pixels alone."""


def read_states(backbone: Backbone, inputs: TokenBatch, layer: int) -> tuple[Tensor, Tensor]:
    """Hidden states at a layer, and those that the head would be given; (batch, tokens, width) both.

    inputs: a right-padded batch. The head does not run: where the vocabulary is large, it takes as long as several
    layers.
    """
    if not (length := _shared_tokens(backbone, inputs)):
        return _passed(backbone, layer, lambda: backbone.logits(inputs))
    cache, rows = DynamicCache(config=backbone.decoder.config), len(inputs)
    first = replace(
        inputs,
        roles=inputs.roles[:1, :length],
        input_ids=inputs.input_ids[:1, :length],
        extras={name: value[:1] for name, value in inputs.extras.items()},
    )
    rest = {"input_ids": inputs.input_ids[:, length:], "attention_mask": inputs.attention_mask}
    model: Any = backbone.model
    before = _passed(backbone, layer, lambda: model(**first.model_inputs(), past_key_values=cache, use_cache=True))
    cache.batch_repeat_interleave(rows)
    after = _passed(backbone, layer, lambda: model(**rest, past_key_values=cache, use_cache=True))
    states, final = (
        torch.cat([shared.expand(rows, -1, -1), own], 1) for shared, own in zip(before, after, strict=True)
    )
    return states, final


class SharedBeginning:
    """Logits from the hidden states at a layer, over and over, of a batch whose rows begin alike.

    rows: how many rows the pass has that runs now: one for the tokens that all share, and then all, for their others.
    """

    def __init__(self, backbone: Backbone, inputs: TokenBatch, layer: int, length: int):
        self._backbone, self._inputs, self._layer, self._length = backbone, inputs, layer, length
        self.rows = len(inputs)

    @classmethod
    def of(cls, backbone: Backbone, inputs: TokenBatch, layer: int) -> Self | None:
        """None if the rows share too little, or if the model cannot go on from keys and values."""
        length = _shared_tokens(backbone, inputs)
        return cls(backbone, inputs, layer, length) if length else None

    def logits(
        self, hidden_states: Float[Tensor, "batch tokens width"], wanted: Bool[Tensor, "batch tokens"]
    ) -> Float[Tensor, "wanted vocabulary"]:
        """As `Backbone.logits_from`, if the later layers treat all rows alike in the tokens that they share.

        wanted: none of the shared tokens. Gradients flow through both passes.
        """
        backbone, length, rows = self._backbone, self._length, len(self._inputs)
        arguments, kept = backbone.decoder_arguments(self._inputs, hidden_states), Keys()
        # The first dimension of every argument is that of the rows: `_PLAIN` leaves out families with others.
        before = {name: of_first(name, value[:1], length) for name, value in arguments.items()}
        after = {name: of_rest(name, value, length) for name, value in arguments.items()}
        self.rows = 1
        try:
            shared = hidden_states[:1, :length]
            run_suffix(backbone.decoder, self._layer, shared, {**before, "past_key_values": kept})
        finally:
            self.rows = rows
        if set(kept.pairs) != set(range(self._layer + 1, len(backbone.layers))):  # Some layers keep something else.
            return backbone.logits_from(hidden_states, self._inputs, self._layer, wanted)
        kept.shared_by(rows, length)
        own = hidden_states[:, length:]
        final = run_suffix(backbone.decoder, self._layer, own, {**after, "past_key_values": kept})
        return backbone.head(final[wanted[:, length:].to(final.device)])


def _passed(backbone: Backbone, layer: int, forward: Callable[[], object]) -> tuple[Tensor, Tensor]:
    """The hidden states at the layer and before the head, of one forward pass."""
    kept: list[Tensor] = []
    handle = backbone.layers[layer].register_forward_hook(
        lambda module, arguments, output: kept.append(first_output(output))
    )
    try:
        final = run_body(backbone.output_embeddings, forward)
    finally:
        handle.remove()
    (states,) = kept
    return states, final


def _shared_tokens(backbone: Backbone, inputs: TokenBatch) -> int:
    """How many tokens all rows begin with, images included; each row keeps the last token of its prompt to itself.

    0 if they are few, if an image would be divided, or if the model cannot go on from what is kept.
    """
    plain = type(backbone) in _PLAIN and not inputs.prepared and not getattr(backbone.model, "_is_stateful", False)
    if not plain or len(inputs) == 1 or not _images_are_equal(inputs):
        return 0
    alike = int((inputs.input_ids == inputs.input_ids[:1]).all(0).long().cumprod(0).sum())
    last_of_prompt = inputs.roles.shape[1] - 1 - inputs.prompt_mask.flip(1).long().argmax(1)
    length = min(alike, int(last_of_prompt.min()))
    return 0 if length < _FEWEST or bool(inputs.image_mask[:, length:].any()) else length


def _images_are_equal(inputs: TokenBatch) -> bool:
    """Whether no row has an image, or all have the same one."""
    if not inputs.extras:
        return True
    pixels = inputs.pixel_values
    if pixels is None or len(inputs.extras) > 1 or len(pixels) != len(inputs):
        return False
    return bool((pixels == pixels[:1]).all())
