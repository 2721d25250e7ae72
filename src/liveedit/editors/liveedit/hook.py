"""How experts reach a running model: one hook on the edit layer, routing decided once per sequence."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sized
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ...backbones import Backbone
from ...errors import InvalidInputError
from .config import LiveEditConfig
from .modules import TokenStates
from .routing import Routing, changed_tokens, expert_residual

Router = Callable[[TokenStates], Routing | None]

_not_compiled = torch.compiler.disable(
    reason="LiveEdit finds experts in plain Python: compile without fullgraph=True, and the layers around it compile."
)


class ForwardContext(threading.local):
    """Where a call of the model is at, thread by thread: several may ask the same model at once."""

    routing: Routing | None = None
    routing_seconds = 0.0
    call: Callable[[int, int], TokenStates] | None = None
    """From batch and length to the kinds of tokens, while the states at the edit layer are awaited."""
    ids: Tensor | None = None
    embedded_ids: Tensor | None = None
    mask: Any = None
    paused = 0


class RoutingHook:
    """Adds the routed experts' residual to the output of the edit layer.

    At the first pass over a sequence (prefill) the router sees image and prompt, never the answer; its decision
    holds for every token that is generated from the KV cache. Nothing is added, to the bit, where no expert passed.
    Other people's hooks are neither cleared nor reordered.

    Which tokens are what comes from `Backbone.current_inputs`, or, where a stranger calls the model or its generate(),
    from the token ids that pass the model's door or its word embeddings. `experts` tells whether any are in force.
    """

    def __init__(self, backbone: Backbone, config: LiveEditConfig, router: Router, experts: Sized):
        self.backbone, self.config, self.router, self._experts = backbone, config, router, experts
        self._now = ForwardContext()
        self._handles: list[Any] = []
        try:
            keep = self._handles.append
            keep(backbone.model.register_forward_pre_hook(self._at_the_door, with_kwargs=True))
            keep(backbone.word_embeddings.register_forward_pre_hook(self._at_the_embeddings))
            keep(backbone.decoder.register_forward_pre_hook(self._before_decoder, with_kwargs=True))
            keep(backbone.layers[config.layer].register_forward_hook(self._after_layer))
        except BaseException:
            self.remove()
            raise

    @property
    def routing(self) -> Routing | None:
        """What was decided for the last batch of this thread."""
        return self._now.routing

    @property
    def routing_seconds(self) -> float:
        """How long the last batch of this thread took to route."""
        return self._now.routing_seconds

    def remove(self) -> None:
        """Take the hooks off; safe to call twice."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._now = ForwardContext()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """The model runs unedited inside, for this thread."""
        self._now.paused += 1
        try:
            yield
        finally:
            self._now.paused -= 1

    # -- what is asked -----------------------------------------------------------------------------------

    @_not_compiled
    def _at_the_door(self, model: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        given = [value for value in arguments if isinstance(value, Tensor) and not value.is_floating_point()]
        self._now.ids = keywords.get("input_ids", given[0] if given else None)
        self._now.mask = keywords.get("attention_mask")

    @_not_compiled
    def _at_the_embeddings(self, embeddings: nn.Module, arguments: tuple[Any, ...]) -> None:
        self._now.embedded_ids = arguments[0] if arguments else None

    @_not_compiled
    def _before_decoder(self, decoder: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        own = arguments[0] if arguments else keywords.get("input_ids")  # Where the language model alone is called.
        ids = next((given for given in (own, self._now.ids, self._now.embedded_ids) if given is not None), None)
        mask = keywords.get("attention_mask") if self._now.mask is None else self._now.mask
        self._now.ids = self._now.embedded_ids = self._now.mask = None
        if self._now.paused:
            return
        cache = keywords.get("past_key_values")
        if cache is not None and cache.get_seq_length() > 0:
            self._now.call = None  # Decoding from the cache: the routing of the prefill holds.
            self._refuse_a_prompt_in_pieces(ids)
            return
        self._now.routing = self._now.call = None
        self._now.call = lambda batch, length: self._kinds(batch, length, ids, mask)

    def _refuse_a_prompt_in_pieces(self, ids: Tensor | None) -> None:
        # One token at a time is what the model said, be it an image token; an image comes with several.
        if ids is not None and ids.shape[1] > 1 and len(self._experts) and bool(self.backbone.is_image(ids).any()):
            raise InvalidInputError(
                "A prompt came in pieces (prefill_chunk_size, or a cache that was filled before), with its image "
                "behind the first: edits are found by the whole question. Give it at once."
            )

    def _kinds(self, batch: int, length: int, ids: Tensor | None, mask: Any) -> TokenStates:
        current = self.backbone.current_inputs
        if current is not None and batch % len(current) == 0 and length >= current.input_ids.shape[1]:
            # Beams and several sequences repeat each question. Without a KV cache, what was generated so far stands
            # behind the question: it is answer, not prompt.
            repeated = batch // len(current)
            image, prompt, answer = (
                part.repeat_interleave(repeated, 0)
                for part in (current.image_mask, current.prompt_mask, current.answer_mask)
            )
            grown = torch.ones(batch, length - image.shape[1], dtype=torch.bool, device=image.device)
            image, prompt = torch.cat([image, ~grown], 1), torch.cat([prompt, ~grown], 1)
            return _unread(image, prompt, torch.cat([answer, grown], 1))
        if ids is None or ids.shape[1] != length or batch % len(ids):
            raise InvalidInputError(
                "The model was called with inputs_embeds, in which image and prompt cannot be told apart, while "
                "edits are in force. Call it with input_ids, or ask through Backbone."
            )
        # Called from outside: everything that is not image or padding is prompt.
        ids = ids.repeat_interleave(batch // len(ids), 0)
        present = _present(mask, ids)
        image = self.backbone.is_image(ids) & present
        return _unread(image, present & ~image, torch.zeros_like(image))

    # -- what is answered --------------------------------------------------------------------------------

    @_not_compiled
    def _after_layer(self, layer: nn.Module, arguments: tuple[Any, ...], output: Any) -> Any:
        self._now.embedded_ids = (
            None  # A decoder that embeds ids itself has done so: they say nothing of the next call.
        )
        if self._now.paused:
            return None
        states = output if isinstance(output, Tensor) else output[0]
        call = None
        if self._now.call is not None and len(self._experts):
            kinds = self._now.call(*states.shape[:2])
            image, prompt, answer = (part.to(states.device) for part in (kinds.image, kinds.prompt, kinds.answer))
            call = TokenStates(states, image, prompt, answer, embeddings=states[:, :0])
            started = time.perf_counter()
            self._now.routing = self.router(call)
            self._now.routing_seconds = time.perf_counter() - started
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
            residual = residual * changed_tokens(call.image, call.text, self.config)[..., None]
        return states + residual.to(states.dtype)


def _unread(image: Tensor, prompt: Tensor, answer: Tensor) -> TokenStates:
    """Kinds of tokens whose states are not there yet."""
    nothing = torch.empty(0, device=image.device)
    return TokenStates(nothing, image, prompt, answer, nothing)


def _present(mask: Any, ids: Tensor) -> Tensor:
    """(batch, length) booleans, from whatever mask the family's generate() has made of the padding."""
    if isinstance(mask, Mapping):
        mask = next(iter(mask.values()))
    if not isinstance(mask, Tensor):
        return torch.ones_like(ids, dtype=torch.bool)
    if mask.ndim == 4:  # What the last query sees.
        mask = mask[:, 0, -1]
        mask = mask if mask.dtype == torch.bool else mask == 0
    return mask[:, : ids.shape[1]].bool().expand(len(ids), -1)
