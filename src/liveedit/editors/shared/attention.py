"""Attention over tokens of a backbone: several sources, masks, and tokens packed to the front."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

Source = tuple[Float[Tensor, "batch _ _"], Bool[Tensor, "batch _"]]
"""Tokens (batch, length, width) and the mask of those that are read, (batch, length); others are padding."""


class CrossAttention(nn.Module):
    """`CA(x, y) = softmax(x Wq (y Wk)^T / sqrt(d_k)) y Wv` (LiveEdit, equation 2).

    Several heads, LayerNorm on queries and sources, biases and an output projection are switched on by `heads`
    and `norm`. Each source has key and value matrices of its own; attention runs over all sources together.
    """

    def __init__(
        self,
        query_width: int,
        source_widths: Sequence[int],
        key_width: int,
        value_width: int,
        heads: int,
        norm: bool,
    ):
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(query_width, key_width, bias=norm)
        self.keys = nn.ModuleList(nn.Linear(width, key_width, bias=norm) for width in source_widths)
        self.values = nn.ModuleList(nn.Linear(width, value_width, bias=norm) for width in source_widths)
        self.query_norm = nn.LayerNorm(query_width) if norm else nn.Identity()
        self.source_norms = nn.ModuleList(nn.LayerNorm(width) if norm else nn.Identity() for width in source_widths)
        self.output = nn.Linear(value_width, value_width) if norm else nn.Identity()

    def forward(
        self, x: Float[Tensor, "batch queries query_width"], sources: Sequence[Source]
    ) -> Float[Tensor, "batch queries value_width"]:
        """What each query reads from all sources together."""
        normed = self._normed(sources)
        weights = self._weights(x, normed, [mask for _, mask in sources])
        value = self._split(_joined([layer(tokens) for layer, tokens in zip(self.values, normed, strict=True)]))
        return self.output((weights @ value).transpose(1, 2).flatten(2))

    def weights(
        self, x: Float[Tensor, "batch queries query_width"], sources: Sequence[Source]
    ) -> Float[Tensor, "batch heads queries tokens"]:
        """softmax(x Wq (y Wk)^T / sqrt(d_k)): the share of each token of all sources in what a query reads.

        Sums to 1 over the tokens of the masks; 0 for all others, and throughout if the masks hold none.
        """
        return self._weights(x, self._normed(sources), [mask for _, mask in sources])

    def _normed(self, sources: Sequence[Source]) -> list[Tensor]:
        return [norm(tokens) for norm, (tokens, _) in zip(self.source_norms, sources, strict=True)]

    def _weights(self, x: Tensor, normed: list[Tensor], masks: list[Tensor]) -> Tensor:
        query = self._split(self.query(self.query_norm(x)))
        key = self._split(_joined([layer(tokens) for layer, tokens in zip(self.keys, normed, strict=True)]))
        mask = _joined(masks)[:, None, None, :]
        scores = query @ key.transpose(-1, -2) / math.sqrt(key.shape[-1])
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
        # A row whose sources are all masked (no answer, no image) reads nothing rather than everything.
        return scores.softmax(-1) * mask

    def _split(self, tokens: Tensor) -> Tensor:
        return tokens.unflatten(-1, (self.heads, -1)).transpose(1, 2)


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


def left_pack(tokens: Float[Tensor, "batch length width"], mask: Bool[Tensor, "batch length"]) -> Source:
    """The tokens of the mask, moved to the front in their order, as long as the longest row needs.

    Attention reads the same from them as from all tokens, and computes no keys and values for the others.
    """
    longest = max(1, int(mask.sum(1).max()))
    if longest == mask.shape[1]:
        return tokens, mask
    order = torch.argsort(mask.int(), dim=1, descending=True, stable=True)[:, :longest]
    return tokens.gather(1, order[..., None].expand(-1, -1, tokens.shape[-1])), mask.gather(1, order)
