"""The place in the model where edits are: an operation after decoder layers that torch.compile leaves whole."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import torch
from torch import Tensor, nn

from ..errors import BackboneError
from .worker import EditingWorker

OPERATION: Final = "liveedit::after_layer"

_NUMBER: Final = "_liveedit_layer"
_PATCHED: Final = "_liveedit_patched"

_worker: EditingWorker | None = None
"""The worker of this process: an operation of torch takes tensors and numbers alone."""


@torch.library.custom_op(OPERATION, mutates_args=("hidden_states",))
def after_layer(hidden_states: Tensor, residual: Tensor | None, layer: int) -> None:
    """Read and change the output of a decoder layer, (tokens, width), in place."""
    if _worker is not None:
        _worker.after_layer(hidden_states, residual, layer)


@after_layer.register_fake
def _(hidden_states: Tensor, residual: Tensor | None, layer: int) -> None:
    return None


def attach(model: nn.Module, depth: int, layers: Sequence[int], worker: EditingWorker) -> None:
    """Call the operation after these layers of vLLM's model. depth: number of its decoder layers."""
    global _worker
    found = decoder_layers(model, depth)
    for number in layers:
        setattr(found[number], _NUMBER, number)
        _patch(type(found[number]))
    _worker = worker


def decoder_layers(model: nn.Module, depth: int) -> nn.ModuleList:
    """The decoder layers of the language model. Raises `BackboneError` if they are not found."""
    part_of: Any = getattr(model, "get_language_model", None)
    language: nn.Module = model if part_of is None else part_of()
    for name, part in language.named_modules():
        if isinstance(part, nn.ModuleList) and len(part) == depth and name.split(".")[-1] == "layers":
            return part
    raise BackboneError(
        f"No list of {depth} decoder layers was found in vLLM's {type(model).__name__}. Serve it without edits."
    )


def _patch(kind: type[nn.Module]) -> None:
    """Wrap the forward of a class of layers, once: torch.compile traces classes, not hooks."""
    if _PATCHED in vars(kind):
        return
    forward = kind.forward

    def patched(self: nn.Module, *arguments: Any, **keywords: Any) -> Any:
        output = forward(self, *arguments, **keywords)
        number = getattr(self, _NUMBER, None)
        if number is not None:
            states, residual = output if isinstance(output, tuple) else (output, None)
            torch.ops.liveedit.after_layer(states, residual, number)
        return output

    kind.forward = patched  # type: ignore[method-assign]
    setattr(kind, _PATCHED, True)
