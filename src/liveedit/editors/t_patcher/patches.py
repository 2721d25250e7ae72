"""Patches: neurons added to an FFN, what they are trained towards, and the hooks that add them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import BackboneError


@dataclass(frozen=True)
class Patches:
    """Neurons beside those of an FFN: FFN'(q) = FFN(q) + relu(q K_p + b_p) V_p.

    keys, values: (patches, d). biases: (patches,).
    """

    keys: Tensor
    biases: Tensor
    values: Tensor

    @classmethod
    def start(cls, queries: Tensor) -> Patches:
        """One patch for each of these queries, (patches, d), active on it with 1 and saying nothing yet.

        The key is q / |q|^2, as in the authors' code. The value is zero, where theirs is random: since the patch is
        active the value has a gradient, and the losses of activation and memory give the key one.
        """
        keys = queries / queries.square().sum(-1, keepdim=True)
        return cls(keys.clone(), torch.zeros_like(keys[:, 0]), torch.zeros_like(keys))

    @classmethod
    def join(cls, parts: Sequence[Patches], width: int) -> Patches:
        """All patches of these as one."""
        if not parts:
            return cls(torch.zeros(0, width), torch.zeros(0), torch.zeros(0, width))
        return cls(*(torch.cat(tensors) for tensors in zip(*(part.tensors for part in parts), strict=True)))

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """Keys, biases, values."""
        return self.keys, self.biases, self.values

    def scores(self, queries: Tensor) -> Tensor:
        """(..., d) to (..., patches): q . k_p + b_p, above 0 where a patch is active."""
        return queries @ self.keys.T + self.biases

    def output(self, queries: Tensor) -> Tensor:
        """(..., d) to (..., d): what the patches add."""
        return self.scores(queries).relu() @ self.values

    def __len__(self) -> int:
        return len(self.biases)


def activation_loss(own: Tensor) -> Tensor:
    """l_a = exp(-q_e . k_p - b_p), averaged over patches.

    own: (patches,) scores of each patch on the query that it is for.
    """
    return torch.exp(-own).mean()


def memory_loss(own: Tensor, memory: Tensor, bound: float, margin: float, largest: int) -> Tensor:
    """l_m = S(M k_p + b_p - beta) + S((M - q_e) k_p - gamma), S the mean of the largest exponentials.

    own: (patches,) scores on the edit's own queries; memory: (queries, patches) scores on the memory; bound: beta;
    margin: -gamma. The largest are taken patch by patch, where the authors take those of all patches together: no patch
    of a long answer is forgotten over the others.
    """
    # Of one patch, both exponents differ by a constant: the same queries are the largest in both.
    worst = memory.T.contiguous().topk(min(largest, len(memory)), dim=1, sorted=False).values
    return torch.exp(worst - bound).mean() + torch.exp(worst - own[:, None] + margin).mean()


def feed_forward(layer: nn.Module) -> tuple[nn.Module, nn.Module]:
    """The module that a layer's FFN is given its query by, and the one that gives its output; they may be the same.

    Raises `BackboneError` if none is known.
    """
    for name in ("mlp", "feed_forward", "ffn", "block_sparse_moe"):
        whole = getattr(layer, name, None)
        if isinstance(whole, nn.Module):
            return whole, whole
    first, last = getattr(layer, "fc1", None), getattr(layer, "fc2", None)
    if isinstance(first, nn.Module) and isinstance(last, nn.Module):  # OPT's FFN is no module of its own.
        return first, last
    raise BackboneError(
        f"{type(layer).__name__} has no FFN that T-Patcher knows: a module named mlp, feed_forward or ffn, or the pair "
        "fc1 and fc2. Use another editor."
    )


class PatchedFeedForward:
    """Adds the output of patches to that of a layer's FFN.

    It needs no routing: a patch sees the same query as the FFN's own neurons, token by token, in any batch and with
    any KV cache. Nothing runs while no patch is active. Hooks of others are neither cleared nor reordered.
    """

    def __init__(self, layer: nn.Module):
        first, last = feed_forward(layer)
        self.patches: Patches | None = None
        self._in_training: Patches | None = None
        self._query: Tensor | None = None
        self._kept: list[Tensor] | None = None
        self._paused = False
        self._handles = [first.register_forward_pre_hook(self._before), last.register_forward_hook(self._after)]

    def remove(self) -> None:
        """Take the hooks off; safe to call twice."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    @contextmanager
    def adding(self, patches: Patches) -> Iterator[None]:
        """These patches are active as well inside the block."""
        self._in_training = patches
        try:
            yield
        finally:
            self._in_training = None

    @contextmanager
    def paused(self) -> Iterator[None]:
        """No patch is active inside the block."""
        self._paused = True
        try:
            yield
        finally:
            self._paused = False

    @contextmanager
    def keeping(self) -> Iterator[list[Tensor]]:
        """Gives a list of what the FFN is given inside, one tensor for each pass."""
        self._kept = []
        try:
            yield self._kept
        finally:
            self._kept = None

    def _before(self, module: nn.Module, arguments: tuple[Any, ...]) -> None:
        self._query = arguments[0]
        if self._kept is not None:
            self._kept.append(arguments[0])

    def _after(self, module: nn.Module, arguments: tuple[Any, ...], output: Any) -> Any:
        query, self._query = self._query, None
        active = [] if self._paused else [part for part in (self.patches, self._in_training) if part is not None]
        if query is None or not active:
            return None
        found = output if isinstance(output, Tensor) else output[0]
        precise = query.float()
        added = torch.stack([part.output(precise) for part in active]).sum(0)
        changed = found + added.to(found.dtype)
        return changed if isinstance(output, Tensor) else (changed, *output[1:])
