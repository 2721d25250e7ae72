"""Conventional routing: a gate over the experts for every token, trained along with each expert."""

from __future__ import annotations

import torch
from torch import Tensor

from .config import LemoeConfig
from .routing import Route


class TokenGate:
    """`g(i | x) = top_k softmax_i(w_i . x)`, x what the FFN reads for one token.

    rows: (experts, d), w_i by expert. All of them train with each batch, as the gate of a conventional MoE adaptor
    does (and, unless `conventional_trains` is "new", all experts as well): earlier edits are overwritten, and led to
    other experts, which is what module insertion and KV anchor routing are there to prevent.
    """

    def __init__(self, config: LemoeConfig, width: int, device: torch.device):
        self.config = config
        self.rows = torch.empty(0, width, device=device)

    def __len__(self) -> int:
        return len(self.rows)

    def insert(self) -> int:
        """Add a row for a new expert: its number."""
        number, width = len(self), self.rows.shape[1]
        generator = torch.Generator().manual_seed(self.config.seed * 1_000_003 + number)
        row = torch.randn(1, width, generator=generator) / width**0.5
        self.rows = torch.cat([self.rows, row.to(self.rows.device)])
        return number

    def shares(self, x: Tensor, rows: Tensor | None = None) -> Tensor:
        """(tokens, experts) softmax."""
        return (x @ (self.rows if rows is None else rows).T).softmax(-1)

    def route(self, x: Tensor, rows: Tensor | None = None) -> Route:
        """The experts of (tokens, d)."""
        shares = self.shares(x, rows)
        weights, experts = shares.topk(min(self.config.top_k, shares.shape[1]), 1)
        if self.config.gate == "renormalized" and self.config.top_k > 1:  # With one, the gate would learn nothing.
            weights = weights / weights.sum(1, keepdim=True)
        return Route(experts, weights)
