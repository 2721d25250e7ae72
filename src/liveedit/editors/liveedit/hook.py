"""How experts reach a running model: one hook on the edit layer, routing decided once per sequence."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ...backbones import Backbone
from .modules import TokenStates
from .routing import Routing, expert_residual

Router = Callable[[TokenStates], Routing | None]


class RoutingHook:
    """Adds the routed experts' residual to the output of the edit layer.

    At the first pass over a sequence (prefill) the router sees picture and prompt, never the answer; its decision
    holds for every token that is generated from the KV cache. Nothing is added, to the bit, where no expert passed.
    Other people's hooks are neither cleared nor reordered.
    """

    def __init__(self, backbone: Backbone, layer: int, router: Router):
        self.backbone, self.router = backbone, router
        self.routing: Routing | None = None
        self.config: Any = None
        self._call: TokenStates | None = None
        self._paused = 0
        handles = []
        try:
            handles.append(backbone.model.register_forward_pre_hook(self._before_model, with_kwargs=True))
            handles.append(backbone.layers[layer].register_forward_hook(self._after_layer))
        except BaseException:
            for handle in handles:
                handle.remove()
            raise
        self._handles = handles

    def remove(self) -> None:
        """Take the hooks off; safe to call twice."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self.routing = self._call = None

    @contextmanager
    def paused(self) -> Iterator[None]:
        """The model runs unedited inside."""
        self._paused += 1
        try:
            yield
        finally:
            self._paused -= 1

    def _before_model(self, model: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        if self._paused:
            return
        cache = keywords.get("past_key_values")
        if cache is not None and cache.get_seq_length() > 0:
            self._call = None  # Decoding from the cache: the routing of the prefill holds.
            return
        self.routing = None
        self._call = self._kinds(arguments, keywords)

    def _kinds(self, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> TokenStates | None:
        current = self.backbone.current_inputs
        ids = arguments[0] if arguments else keywords.get("input_ids")
        if ids is None:
            return None
        if current is not None and _continues(current.input_ids, ids):
            # Without a KV cache, what was generated so far stands behind the question: it is answer, not prompt.
            grown = torch.ones_like(ids[:, current.input_ids.shape[1] :], dtype=torch.bool)
            image, prompt = (torch.cat([mask, ~grown], 1) for mask in (current.image_mask, current.prompt_mask))
            answer = torch.cat([current.answer_mask, grown], 1)
        else:  # Called from outside: everything that is not picture or padding is prompt.
            mask = keywords.get("attention_mask")
            present = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.bool()
            image = (ids == self.backbone.image_token_id) & present
            prompt, answer = present & ~image, torch.zeros_like(image)
        nothing = torch.empty(0, device=ids.device)
        return TokenStates(nothing, image, prompt, answer, nothing)

    def _after_layer(self, layer: nn.Module, arguments: tuple[Any, ...], output: Any) -> Any:
        if self._paused:
            return None
        states = output if isinstance(output, Tensor) else output[0]
        call = self._call
        if call is not None:
            kinds = TokenStates(states, call.image, call.prompt, call.answer, call.embeddings)
            self.routing = self.router(kinds)
        if self.routing is None:
            return None
        changed = self._add_residual(states, call)
        return changed if isinstance(output, Tensor) else (changed, *output[1:])

    def _add_residual(self, states: Tensor, call: TokenStates | None) -> Tensor:
        routing = self.routing
        assert routing is not None
        precise = states.to(routing.u.dtype)
        residual = expert_residual(precise, routing.u, routing.v, routing.weights, self.config)
        if call is not None:
            tokens = call.text if self.config.residual_tokens == "text" else call.text | call.image
            residual = residual * tokens[..., None]
        return states + residual.to(states.dtype)


def _continues(known: Tensor, ids: Tensor) -> bool:
    """Whether these are the known tokens, or those with further ones behind."""
    if ids.shape == known.shape:
        return True
    return len(ids) == len(known) and torch.equal(ids[:, : known.shape[1]], known)
