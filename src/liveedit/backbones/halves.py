"""Running a decoder in two halves: up to a layer, and from its states on.

Both work on any decoder whose layers lie in a `ModuleList` named `layers` and take the hidden states first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


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
