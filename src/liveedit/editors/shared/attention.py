"""Attention over tokens of a backbone: several sources, masks, and tokens packed to the front."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

Source = tuple[Tensor, Tensor]
"""Tokens (batch, length, width) and which of them count, (batch, length) booleans."""


class CrossAttention(nn.Module):
    """`CA(x, y) = softmax(x Wq (y Wk)^T / sqrt(d_k)) y Wv` (equation 2).

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

    def forward(self, x: Tensor, sources: Sequence[Source]) -> Tensor:
        """x: (batch, queries, query width) -> (batch, queries, value width)."""
        normed = self._normed(sources)
        weights = self._weights(x, normed, [counts for _, counts in sources])
        value = self._split(_joined([layer(tokens) for layer, tokens in zip(self.values, normed, strict=True)]))
        return self.output((weights @ value).transpose(1, 2).flatten(2))

    def weights(self, x: Tensor, sources: Sequence[Source]) -> Tensor:
        """softmax(x Wq (y Wk)^T / sqrt(d_k)): how much is read of each token, (batch, heads, queries, all tokens).

        Sums to 1 over the tokens that count; 0 for all others, and throughout where none counts.
        """
        return self._weights(x, self._normed(sources), [counts for _, counts in sources])

    def _normed(self, sources: Sequence[Source]) -> list[Tensor]:
        return [norm(tokens) for norm, (tokens, _) in zip(self.source_norms, sources, strict=True)]

    def _weights(self, x: Tensor, normed: list[Tensor], counts: list[Tensor]) -> Tensor:
        query = self._split(self.query(self.query_norm(x)))
        key = self._split(_joined([layer(tokens) for layer, tokens in zip(self.keys, normed, strict=True)]))
        mask = _joined(counts)[:, None, None, :]
        scores = query @ key.transpose(-1, -2) / math.sqrt(key.shape[-1])
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
        # A row whose sources are all masked (no answer, no image) reads nothing rather than everything.
        return scores.softmax(-1) * mask

    def _split(self, tokens: Tensor) -> Tensor:
        return tokens.unflatten(-1, (self.heads, -1)).transpose(1, 2)


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


def left_pack(tokens: Tensor, counts: Tensor) -> Source:
    """The tokens that count, moved to the front in their order, as long as the longest row needs.

    Attention reads the same from them as from all tokens, without keys and values for those that do not count.
    """
    longest = max(1, int(counts.sum(1).max()))
    if longest == counts.shape[1]:
        return tokens, counts
    order = torch.argsort(counts.int(), dim=1, descending=True, stable=True)[:, :longest]
    return tokens.gather(1, order[..., None].expand(-1, -1, tokens.shape[-1])), counts.gather(1, order)
