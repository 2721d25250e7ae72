"""Experts beside a layer's FFN: where the FFN is, what an expert computes, and its first weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...errors import BackboneError
from .config import LemoeConfig

Weights = dict[str, Tensor]
"""One expert: `read` (h, d), `gate` (h, d) and `read_bias` (h,) if the FFN has them, `write` (d, h)."""

Beside = Callable[[Tensor], Tensor]
"""What is added to an FFN's output, from what the FFN reads; both (tokens, d)."""

_GATED = ("gate_proj", "up_proj")
_PLAIN = ("fc1", "dense_h_to_4h", "c_fc", "up_proj")


@dataclass(frozen=True)
class FeedForward:
    """The FFN of a decoder layer.

    It reads what `entry` receives and gives what `exit` returns; `readers` are the linear maps of what it reads, the
    gate first if there are two.
    """

    entry: nn.Module
    exit: nn.Module
    readers: tuple[nn.Module, ...]
    activation: Callable[[Tensor], Tensor]

    @classmethod
    def of(cls, layer: nn.Module) -> FeedForward:
        """Find the FFN of a layer. Raises `BackboneError` if its form is unknown."""
        whole: Any = getattr(layer, "mlp", None)
        home = layer if whole is None else whole
        activation = getattr(home, "act_fn", None) or getattr(home, "activation_fn", None) or getattr(home, "act", None)
        if whole is not None and all(hasattr(whole, name) for name in _GATED):
            return cls(whole, whole, tuple(getattr(whole, name) for name in _GATED), activation or F.silu)
        for name in _PLAIN:
            reader = getattr(home, name, None)
            if isinstance(reader, nn.Module):
                entry, exit = (whole, whole) if whole is not None else (reader, getattr(home, "fc2", None))
                if exit is not None:
                    return cls(entry, exit, (reader,), activation or F.gelu)
        raise BackboneError(
            f"{type(layer).__name__} has no FFN that is known: neither mlp with gate_proj and up_proj, nor one of "
            f"{', '.join(_PLAIN)}. LEMoE puts its experts beside such an FFN."
        )

    @contextmanager
    def beside(self, add: Beside) -> Iterator[None]:
        """Inside, `add` of what the FFN reads is added to what it gives."""
        handles = self.hook(add)
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def hook(self, add: Callable[[Tensor], Tensor | None]) -> list[Any]:
        """Register that for good; returns the handles. If `add` gives None, nothing changes, to the bit."""
        read: list[Tensor] = []

        def enter(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            read[:] = arguments[:1]

        def leave(module: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
            if not read:
                return None
            added = add(read.pop())
            return None if added is None else output + added.to(output.dtype)

        return [self.entry.register_forward_pre_hook(enter), self.exit.register_forward_hook(leave)]


def new_expert(
    place: FeedForward, width: int, config: LemoeConfig, generator: torch.Generator, device: torch.device
) -> Weights:
    """An expert that gives exactly 0, in float32."""
    if config.expert == "low_rank":
        read = torch.randn(config.rank, width, generator=generator) / width**0.5
        return {"read": read.to(device), "write": torch.zeros(width, config.rank, device=device)}
    own: Any = place.readers[-1]
    hidden = config.hidden or int(getattr(own, "out_features", 0) or own.weight.shape[-1])
    names = ("gate", "read") if len(place.readers) == 2 else ("read",)
    made: Weights = {}
    for name, reader in zip(names, place.readers, strict=True):
        made[name] = _first_weights(reader, hidden, width, config, generator).to(device)
    if len(place.readers) == 1:
        made["read_bias"] = _first_bias(own, hidden, config).to(device)
    made["write"] = torch.zeros(width, hidden, device=device)
    return made


def _first_weights(reader: Any, hidden: int, width: int, config: LemoeConfig, generator: torch.Generator) -> Tensor:
    if config.start == "copy" and _can_be_copied(reader, hidden, width):
        return reader.weight.detach()[:hidden].float().clone()
    return torch.randn(hidden, width, generator=generator) / width**0.5


def _first_bias(reader: Any, hidden: int, config: LemoeConfig) -> Tensor:
    bias = getattr(reader, "bias", None)
    if config.start == "random" or bias is None or bias.is_meta or len(bias) < hidden:
        return torch.zeros(hidden)
    return bias.detach()[:hidden].float().clone()


def _can_be_copied(reader: Any, hidden: int, width: int) -> bool:
    """False for quantized or offloaded weights, and for an expert wider than the layer's FFN."""
    if not isinstance(reader, nn.Linear) or reader.weight.is_meta or not reader.weight.is_floating_point():
        return False
    return reader.weight.shape[1] == width and len(reader.weight) >= hidden


def expert_output(weights: Mapping[str, Tensor], x: Tensor, activation: Callable[[Tensor], Tensor]) -> Tensor:
    """f(x), of any leading shape: write(act(gate x) * read x), write(act(read x + bias)), or write(read x)."""
    read = F.linear(x, weights["read"], weights.get("read_bias"))
    if "gate" in weights:
        read = activation(F.linear(x, weights["gate"])) * read
    elif "read_bias" in weights:
        read = activation(read)
    return F.linear(read, weights["write"])


def mixed_output(
    experts: list[Weights], chosen: Tensor, weights: Tensor, x: Tensor, activation: Callable[[Tensor], Tensor]
) -> Tensor:
    """`sum_i g_i f_i(x)`, row by row, where each row has its own experts.

    chosen: (rows, k) numbers of experts, -1 for none; weights: (rows, k); x: (rows, ..., d). Each expert runs once,
    over the rows that chose it.
    """
    total = torch.zeros_like(x)
    for number in chosen.unique().tolist():
        if number < 0:
            continue
        rows, place = (chosen == number).nonzero(as_tuple=True)
        share = weights[rows, place].reshape(-1, *[1] * (x.ndim - 1))
        total = total.index_add(0, rows, share * expert_output(experts[number], x[rows], activation))
    return total


def store_bytes(weights: Mapping[str, Tensor]) -> int:
    """Bytes of an expert."""
    return sum(value.numel() * value.element_size() for value in weights.values())
