"""A split forward pass: the prefix runs the layers up to one, the suffix runs the layers after it.

Both work on any decoder whose layers are a `ModuleList` named `layers` and take the hidden states first.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from ..errors import BackboneError


class StoppedError(Exception):
    """Ends a forward pass early and carries the hidden states out of it."""

    def __init__(self, hidden_states: Tensor):
        super().__init__(
            "The forward pass was stopped after a decoder layer, to read its hidden states. Only `run_prefix` stops "
            "one, and catches this error itself."
        )
        self.hidden_states = hidden_states


_replacing: Final = threading.RLock()
"""Held while the layers of a decoder are replaced."""

_LOGIT_FACTORS: Final = {
    "cohere": ("logit_scale", 1),
    "granite": ("logits_scaling", -1),
    "hyperclovax": ("logits_scaling", 1),
    "falcon_h1": ("lm_head_multiplier", 1),
}
"""By the beginning of a model type: the setting that its logits are multiplied with (1) or divided by (-1)."""

_ORIGINALS: Final = "_liveedit_originals"
"""The attribute of a list of replaced layers that holds the list that it replaces."""


def run_prefix(layer: nn.Module, forward: Callable[[], object]) -> Tensor | None:
    """Run a forward pass up to a layer and return its output, (batch, tokens, width). Later layers do not run.

    None if the layer was not reached. Only the calling thread stops there: others may call the model meanwhile.
    """
    thread = threading.get_ident()

    def stop(layer: nn.Module, arguments: tuple[Any, ...], output: Tensor | tuple[Tensor, ...]) -> None:
        if threading.get_ident() == thread:
            raise StoppedError(first_output(output))

    return _stopped(layer.register_forward_hook(stop), forward)


def run_body(head: nn.Module, forward: Callable[[], object]) -> Tensor:
    """Run a forward pass up to the head and return what it would be given, (batch, tokens, width).

    Only the calling thread stops there.
    """
    thread = threading.get_ident()

    def stop(head: nn.Module, arguments: tuple[Any, ...]) -> None:
        if threading.get_ident() == thread:
            raise StoppedError(arguments[0])

    found = _stopped(head.register_forward_pre_hook(stop), forward)
    if found is None:
        raise BackboneError("The head of the model did not run. Give a model that generates text.")
    return found


def _stopped(handle: RemovableHandle, forward: Callable[[], object]) -> Tensor | None:
    """What a hook stopped this forward pass with; None if it did not."""
    try:
        forward()
    except StoppedError as stopped:
        return stopped.hidden_states
    finally:
        handle.remove()
    return None


def run_suffix(decoder: Any, layer: int, hidden_states: Tensor, arguments: Mapping[str, Any]) -> Tensor:
    """Final hidden states, (batch, tokens, width), from the hidden states at a layer: only later layers run.

    arguments: what the decoder takes besides embeddings. Layers are replaced for the calling thread only: others may
    call the model meanwhile. Two threads that run a suffix take turns.
    """
    with _replacing, _layers_replaced(decoder, layer, hidden_states):
        return decoder(inputs_embeds=hidden_states, use_cache=False, **arguments).last_hidden_state


def finished_logits(logits: Tensor, config: Any) -> Tensor:
    """The model's logits from the output of its head: Gemma 2 and others cap them, Cohere and Granite scale them."""
    text = config.get_text_config(decoder=True)
    for family, (name, sign) in _LOGIT_FACTORS.items():
        if text.model_type.startswith(family):
            logits = logits * getattr(text, name) ** sign
    cap = getattr(text, "final_logit_softcapping", None)
    return logits if cap is None else cap * torch.tanh(logits / cap)


@contextmanager
def _layers_replaced(decoder: Any, layer: int, hidden_states: Tensor) -> Iterator[None]:
    """Replaces the layers up to `layer`: they compute nothing, and the last of them returns the hidden states."""
    originals = layers_of(decoder)
    passed = [_ReplacedLayer(original, None) for original in originals[:layer]]
    last = _ReplacedLayer(originals[layer], hidden_states)
    replaced = nn.ModuleList([*passed, last, *originals[layer + 1 :]])
    object.__setattr__(replaced, _ORIGINALS, originals)
    decoder.layers = replaced
    try:
        yield
    finally:
        decoder.layers = originals


def layers_of(decoder: Any) -> nn.ModuleList:
    """The decoder's own layers, also while another thread has replaced them."""
    return getattr(decoder.layers, _ORIGINALS, decoder.layers)


class _ReplacedLayer(nn.Module):
    """Returns given hidden states, or those it receives, to the thread that made it; others run the original layer.

    Attributes are those of the original layer.
    """

    def __init__(self, original: nn.Module, hidden_states: Tensor | None):
        super().__init__()
        object.__setattr__(self, "_original", original)
        object.__setattr__(self, "_given", hidden_states)
        object.__setattr__(self, "_thread", threading.get_ident())

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(object.__getattribute__(self, "_original"), name)

    def forward(self, hidden_states: Tensor, *arguments: Any, **keywords: Any) -> Any:
        """The given hidden states, or the received ones unchanged; the original layer's output in other threads."""
        if threading.get_ident() != object.__getattribute__(self, "_thread"):
            return object.__getattribute__(self, "_original")(hidden_states, *arguments, **keywords)
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
