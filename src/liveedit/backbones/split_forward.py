"""A split forward pass: the prefix runs the layers up to one, the suffix runs the layers after it.

Both work on any decoder whose layers are a `ModuleList` named `layers` and take the hidden states first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..errors import BackboneError


class StoppedError(Exception):
    """Ends a forward pass early and carries the hidden states out of it."""

    def __init__(self, hidden_states: Tensor):
        super().__init__()
        self.hidden_states = hidden_states


def run_prefix(layer: nn.Module, forward: Callable[[], object]) -> Tensor | None:
    """Run a forward pass up to a layer and return its output, (batch, tokens, width). Later layers do not run.

    None if the layer was not reached.
    """
    handle = layer.register_forward_hook(_stop)
    try:
        forward()
    except StoppedError as stop:
        return stop.hidden_states
    finally:
        handle.remove()
    return None


def _stop(layer: nn.Module, arguments: tuple, output: Tensor | tuple[Tensor, ...]) -> None:
    raise StoppedError(first_output(output))


def run_suffix(decoder: Any, layer: int, hidden_states: Tensor, arguments: Mapping[str, Any]) -> Tensor:
    """Final hidden states, (batch, tokens, width), from the hidden states at a layer: only later layers run.

    arguments: what the decoder takes besides embeddings. Not for two threads at once: the decoder's list of layers is
    replaced during the call.
    """
    with _layers_replaced(decoder, layer, hidden_states):
        return decoder(inputs_embeds=hidden_states, use_cache=False, **arguments).last_hidden_state


@contextmanager
def _layers_replaced(decoder: Any, layer: int, hidden_states: Tensor) -> Iterator[None]:
    """Replaces the layers up to `layer`: they compute nothing, and the last of them returns the hidden states."""
    originals = decoder.layers
    passed = [_ReplacedLayer(original, None) for original in originals[:layer]]
    last = _ReplacedLayer(originals[layer], hidden_states)
    decoder.layers = nn.ModuleList([*passed, last, *originals[layer + 1 :]])
    try:
        yield
    finally:
        decoder.layers = originals


class _ReplacedLayer(nn.Module):
    """Returns given hidden states, or those it receives. Attributes are those of the original layer."""

    def __init__(self, original: nn.Module, hidden_states: Tensor | None):
        super().__init__()
        object.__setattr__(self, "_original", original)
        object.__setattr__(self, "_given", hidden_states)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(object.__getattribute__(self, "_original"), name)

    def forward(self, hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
        """The given hidden states, or the received ones unchanged."""
        given = object.__getattribute__(self, "_given")
        return hidden_states if given is None else given


def first_output(output: Tensor | tuple[Tensor, ...]) -> Tensor:
    """The hidden states among a decoder layer's outputs."""
    return output if isinstance(output, Tensor) else output[0]


def execution_device(module: nn.Module) -> torch.device:
    """Where a module is computed. Offloaded weights are kept elsewhere and moved there for each call."""
    hook = getattr(module, "_hf_hook", None)
    device = getattr(hook, "execution_device", None)
    if device is not None:
        return torch.device(device)
    return next(module.parameters()).device


def decoder_of(model: PreTrainedModel) -> nn.Module:
    """The module that holds the list of decoder layers. Raises `BackboneError` if there is none."""
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
