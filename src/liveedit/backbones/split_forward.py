"""Running a decoder in two halves: up to a layer, and from its states on.

Both work on any decoder whose layers lie in a `ModuleList` named `layers` and take the hidden states first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..errors import BackboneError


class StoppedError(Exception):
    """Carries the states out of a forward pass that is not to go on."""

    def __init__(self, states: Tensor):
        super().__init__()
        self.states = states


def states_after(layer: nn.Module, run: Callable[[], object]) -> Tensor | None:
    """The output of a layer, (batch, length, width); nothing behind it runs. None where the layer did not run."""
    handle = layer.register_forward_hook(_stop)
    try:
        run()
    except StoppedError as stop:
        return stop.states
    finally:
        handle.remove()
    return None


def _stop(layer: nn.Module, arguments: tuple, output: Tensor | tuple[Tensor, ...]) -> None:
    raise StoppedError(output if isinstance(output, Tensor) else output[0])


@contextmanager
def resumed_at(decoder: Any, layer: int, states: Tensor) -> Iterator[None]:
    """Stand-ins for the layers up to `layer`: the last of them gives the stored states. Not for two threads at once."""
    originals = decoder.layers
    passed = [_StandIn(original, None) for original in originals[:layer]]
    decoder.layers = nn.ModuleList([*passed, _StandIn(originals[layer], states), *originals[layer + 1 :]])
    try:
        yield
    finally:
        decoder.layers = originals


class _StandIn(nn.Module):
    """Takes the place of a decoder layer: gives stored states, or what it receives. Looks like the original."""

    def __init__(self, original: nn.Module, states: Tensor | None):
        super().__init__()
        object.__setattr__(self, "_original", original)
        object.__setattr__(self, "_states", states)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(object.__getattribute__(self, "_original"), name)

    def forward(self, hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
        """The stored states, or the hidden states unchanged."""
        states = object.__getattribute__(self, "_states")
        return hidden_states if states is None else states


def execution_device(module: nn.Module) -> torch.device:
    """Where a module is computed; offloaded weights lie elsewhere, and are moved there for the time of a call."""
    hook = getattr(module, "_hf_hook", None)
    device = getattr(hook, "execution_device", None)
    if device is not None:
        return torch.device(device)
    return next(module.parameters()).device


def decoder_of(model: PreTrainedModel) -> nn.Module:
    """The module around the list of decoder layers. Raises `BackboneError` where there is none."""
    decoder: Any = model
    for _ in range(4):
        if isinstance(getattr(decoder, "layers", None), nn.ModuleList):
            return decoder
        find = getattr(decoder, "get_decoder", None)
        decoder = find() if find is not None else None
    raise BackboneError(
        f"{type(model).__name__} has no list of decoder layers that LiveEdit can find: its get_decoder() leads to no "
        "module with a ModuleList named `layers`. Subclass liveedit.backbones.Backbone for it."
    )
