"""The tuned weights: how they are made from the backbone's own, activated, and removed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn

from ...backbones import Backbone
from ...errors import BackboneError
from .config import LearningToEditConfig


def linear_layers(backbone: Backbone) -> dict[str, nn.Linear]:
    """The linear layers of the decoder, by their names in it. Raises `BackboneError` if none can be tuned."""
    found = {name: part for name, part in backbone.layers.named_modules() if isinstance(part, nn.Linear)}
    unfit = [name for name, part in found.items() if part.weight.is_meta or not part.weight.is_floating_point()]
    if unfit or not found:
        why = f"{unfit[0]} is quantized or offloaded" if unfit else "its decoder has no linear layers"
        raise BackboneError(
            f"LTE cannot tune {backbone.name}: {why}. Load the model whole, in a floating-point precision."
        )
    return found


def tuned_layers(backbone: Backbone, config: LearningToEditConfig) -> dict[str, nn.Module]:
    """The parts of the decoder whose weights are tuned, by name: linear layers, and learned positions with all of them.

    A query after an edit has late positions, of which a model with learned ones (OPT) may have seen few.
    """
    found: dict[str, nn.Module] = dict(linear_layers(backbone))
    if config.tuning == "all":
        words = backbone.word_embeddings
        parts = backbone.decoder.named_children()
        found |= {name: part for name, part in parts if isinstance(part, nn.Embedding) and part is not words}
    return found


class Tuning(nn.Module):
    """A trained change of weights: `W' = W + (alpha / rank) B A`, or `W' = W + D`; both begin as W itself."""

    def __init__(self, backbone: Backbone, config: LearningToEditConfig):
        super().__init__()
        self.scale = config.alpha / config.rank
        self.config = config
        self.changes = nn.ModuleDict()
        for name, layer in tuned_layers(backbone, config).items():
            rows, columns = _weight(layer).shape
            parts = nn.ParameterDict()
            if config.tuning == "all":
                parts["whole"] = nn.Parameter(torch.zeros(rows, columns))
            else:
                parts["down"] = nn.Parameter(torch.randn(config.rank, columns) / columns**0.5)
                parts["up"] = nn.Parameter(torch.zeros(rows, config.rank))
            self.changes[_key(name)] = parts

    def tuned(self, name: str, weight: Tensor) -> Tensor:
        """W' of a layer, in W's precision; gradients flow into the change."""
        parts = cast(nn.ParameterDict, self.changes[_key(name)])
        change = parts["whole"] if "whole" in parts else self.scale * (parts["up"] @ parts["down"])
        return (weight.float() + change.to(weight.device)).to(weight.dtype)


class TunedWeights:
    """Tuned weights in place of a backbone's own, which are kept: undoing is exact."""

    def __init__(self, backbone: Backbone, tuning: Tuning):
        self.layers = tuned_layers(backbone, tuning.config)
        self.tuning = tuning
        self._own: dict[str, nn.Parameter] = {}
        self._made: dict[str, nn.Parameter] = {}

    @property
    def active(self) -> bool:
        """Whether the model answers with tuned weights."""
        return bool(self._own)

    @torch.no_grad()
    def activate(self) -> None:
        """Put the tuned weights into the model; they are computed the first time."""
        if self.active:
            return
        if not self._made:
            self._made = {
                name: nn.Parameter(self.tuning.tuned(name, _weight(layer)), requires_grad=False)
                for name, layer in self.layers.items()
            }
        self._own = {name: _weight(layer) for name, layer in self.layers.items()}
        _place(self.layers, self._made)

    def deactivate(self) -> None:
        """Put the backbone's own weights back."""
        own, self._own = self._own, {}
        _place({name: self.layers[name] for name in own}, own)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """The model has its own weights inside the block."""
        was_active = self.active
        self.deactivate()
        try:
            yield
        finally:
            if was_active:
                self.activate()

    @contextmanager
    def training(self) -> Iterator[None]:
        """The model has tuned weights inside the block as functions of the change, so that gradients reach it."""
        own = {name: _weight(layer) for name, layer in self.layers.items()}
        try:
            _place(self.layers, {name: self.tuning.tuned(name, weight) for name, weight in own.items()})
            yield
        finally:
            _place(self.layers, own)


def _weight(layer: nn.Module) -> nn.Parameter:
    return layer.weight  # type: ignore[return-value]


def _place(layers: Mapping[str, nn.Module], weights: Mapping[str, Tensor]) -> None:
    for name, layer in layers.items():
        # By assignment torch would refuse a tensor with a history, and change the order of the state.
        layer._parameters["weight"] = weights[name]  # type: ignore[assignment]


def _key(name: str) -> str:
    """A layer's name as torch allows it for a part."""
    return name.replace(".", "/")
