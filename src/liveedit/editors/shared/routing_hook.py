"""How experts change a running model: one hook on the edit layer. Routing is decided once per sequence."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sized
from typing import Any

from torch import Tensor, nn

from ...backbones import Backbone, HiddenTokens
from ...backbones.prefill import PrefillHook, not_compiled
from ...backbones.split_forward import first_output
from .routing import ExpertForm, Routing, changed_tokens, expert_residual

Router = Callable[[HiddenTokens], Routing | None]


class _LastBatch(threading.local):
    """Routing of the last batch of this thread, and how long it took."""

    routing: Routing | None = None
    seconds = 0.0


class RoutingHook(PrefillHook):
    """Adds the routed experts' residual to the output of the edit layer.

    At prefill the router sees image and prompt, never the answer. Its decision holds for every token that is generated
    from the KV cache. If no expert passes, the output is unchanged, bit for bit.
    """

    def __init__(self, backbone: Backbone, layer: int, form: ExpertForm, router: Router, experts: Sized):
        self.form, self.router = form, router
        self._last = _LastBatch()
        super().__init__(backbone, layer, experts)

    @property
    def routing(self) -> Routing | None:
        """The decision for the last batch of this thread; None if no expert passed."""
        return self._last.routing

    @property
    def routing_seconds(self) -> float:
        """How long the last batch of this thread took to route."""
        return self._last.seconds

    def remove(self) -> None:
        """Remove the hooks and forget the last decision. Safe to call twice."""
        super().remove()
        self._last = _LastBatch()

    @property
    def _decision(self) -> Routing | None:
        """The routing of the prompts."""
        return self._last.routing

    @_decision.setter
    def _decision(self, decision: Routing | None) -> None:
        self._last.routing = decision

    def _prefill_starts(self, ids: Tensor | None, keywords: Mapping[str, Any]) -> None:
        self._last.routing = None

    @not_compiled
    def _after_layer(self, layer: nn.Module, arguments: tuple[Any, ...], output: Any) -> Any:
        super()._after_layer(layer, arguments, output)
        if self._now.paused:
            return None
        hidden_states = first_output(output)
        tokens = None
        if self._now.tokens_of is not None and len(self._experts):
            tokens = HiddenTokens.of(self._now.tokens_of(*hidden_states.shape[:2]), hidden_states)
            started = time.perf_counter()
            self._last.routing = self.router(tokens)
            self._last.seconds = time.perf_counter() - started
        if self.routing is None:
            return None
        changed = self._add_residual(self.routing, hidden_states, tokens)
        return changed if isinstance(output, Tensor) else (changed, *output[1:])

    def _add_residual(self, routing: Routing, hidden_states: Tensor, tokens: HiddenTokens | None) -> Tensor:
        precise = hidden_states.to(routing.u.dtype)
        residual = expert_residual(precise, routing.u, routing.v, routing.weights, self.form)
        if tokens is not None:
            residual = residual * changed_tokens(tokens, self.form)[..., None]
        return hidden_states + residual.to(hidden_states.dtype)
