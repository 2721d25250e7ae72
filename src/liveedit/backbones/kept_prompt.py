"""Logits from the hidden states at a layer, over and over, where only the last tokens change between passes.

What later layers compute of the tokens before them is kept: keys and values.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Self

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from transformers.cache_utils import Cache

from .backbone import Backbone
from .split_forward import run_suffix
from .tokens import TokenBatch

_MASK_OF_PAIRS: Final = 4
"""Dimensions of a mask that says for each pair of tokens whether one attends to the other."""


class KeptPrompt:
    """The tokens of a batch before its first changed one, in the layers after a layer."""

    def __init__(self, backbone: Backbone, layer: int, arguments: Mapping[str, Any], kept: Keys):
        self._backbone, self._layer, self._kept = backbone, layer, kept
        self._arguments = {name: of_rest(name, value, kept.length) for name, value in arguments.items()}

    @classmethod
    @torch.no_grad()
    def of(
        cls,
        backbone: Backbone,
        tokens: TokenBatch,
        layer: int,
        hidden_states: Float[Tensor, "batch tokens width"],
        changed: Bool[Tensor, "batch tokens"],
    ) -> Self | None:
        """Run the layers after `layer` over the tokens before the first changed one.

        tokens: a right-padded batch. None if there is nothing to keep, or if the model's layers keep something else
        than keys and values.
        """
        length = int(changed.any(0).long().argmax())
        if not length or getattr(backbone.model, "_is_stateful", False):
            return None
        arguments = backbone.decoder_arguments(tokens, hidden_states)
        kept = Keys()
        before = {name: of_first(name, value, length) for name, value in arguments.items()}
        run_suffix(backbone.decoder, layer, hidden_states[:, :length], {**before, "past_key_values": kept})
        kept.length = length
        if set(kept.pairs) != set(range(layer + 1, len(backbone.layers))):
            return None
        return cls(backbone, layer, arguments, kept)

    def logits(
        self, hidden_states: Float[Tensor, "batch tokens width"], wanted: Bool[Tensor, "batch tokens"]
    ) -> Float[Tensor, "wanted vocabulary"]:
        """As `Backbone.logits_from`, for hidden states that differ from those of `of` in the changed tokens alone.

        Gradients flow into the hidden states of the tokens from the first changed one on.
        """
        rest, start = self._arguments | {"past_key_values": self._kept}, self._kept.length
        final = run_suffix(self._backbone.decoder, self._layer, hidden_states[:, start:], rest)
        return self._backbone.head(final[wanted[:, start:].to(final.device)])


class Keys(Cache):
    """Keys and values of each layer's first pass. In later passes they precede that pass's own, which are not kept."""

    def __init__(self) -> None:
        super().__init__(layers=[])
        self.length = 0
        self.pairs: dict[int, tuple[Tensor, Tensor]] = {}

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *further: Any, **named: Any
    ) -> tuple[Tensor, Tensor]:
        """Keys and values to attend to, (batch, heads, tokens, width)."""
        if not self.length:
            self.pairs[layer_idx] = key_states, value_states
            return key_states, value_states
        keys, values = self.pairs[layer_idx]
        return torch.cat([keys, key_states], -2), torch.cat([values, value_states], -2)

    def shared_by(self, rows: int, length: int) -> None:
        """What was kept of one row is that of all rows from now on; length: its tokens."""
        self.length = length
        self.pairs = {
            layer: (keys.expand(rows, -1, -1, -1), values.expand(rows, -1, -1, -1))
            for layer, (keys, values) in self.pairs.items()
        }

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """How many tokens are kept."""
        return self.length

    def get_query_offset(self, layer_idx: int = 0) -> int:
        """The place of a pass's first token."""
        return self.length

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """How many keys there are, and the place of the first one."""
        return self.length + query_length, 0


def of_first(name: str, value: Any, length: int) -> Any:
    """An argument of the decoder for the first tokens of a batch alone."""
    if isinstance(value, Mapping):
        return {kind: of_first(name, part, length) for kind, part in value.items()}
    if value is None:
        return None
    return value[..., :length, :length] if value.ndim == _MASK_OF_PAIRS else value[..., :length]


def of_rest(name: str, value: Any, length: int) -> Any:
    """The same for the other tokens. They attend to all tokens: a mask keeps its columns."""
    if isinstance(value, Mapping):
        return {kind: of_rest(name, part, length) for kind, part in value.items()}
    if value is None:
        return None
    if name == "position_ids":
        return value[..., length:]
    return value[..., length:, :] if value.ndim == _MASK_OF_PAIRS else value
