"""Prefill, the first pass over a sequence: which token is image, prompt or answer, whoever calls the model."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sized
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InvalidInputError
from .backbone import Backbone
from .external_call import WHERE_IS_THE_ANSWER, ExternalCall
from .filled_caches import Filled, how_filled, next_number, note_filled
from .tokens import TokenBatch, TokenRole

TokensOf = Callable[[int, int], TokenBatch]
"""From batch size and length of what the decoder reads to its tokens with their roles."""

not_compiled = torch.compiler.disable(
    reason="Editors find experts in plain Python: compile without fullgraph=True, and the layers around it compile."
)
"""Decorates hooks that torch.compile leaves as they are."""


class ForwardContext(threading.local):
    """What is known of the call of the model that this thread makes. Several threads may call the model at once.

    call: what the model was given. embedded_ids: the token ids that its word embeddings were given. tokens_of: at
    prefill, from the decoder's start until the edit layer; None while tokens are decoded from the KV cache.
    fills_cache: whether the decoder reads a sequence for the first time. paused: how many `paused()` blocks the thread
    is in.
    """

    call = ExternalCall()
    embedded_ids: Tensor | None = None
    tokens_of: TokensOf | None = None
    fills_cache = False
    paused = 0


class PrefillHook:
    """Hooks on a model, its word embeddings, its decoder and its edit layer, for editors that route at prefill.

    The roles of tokens come from `Backbone.current_inputs`. If others call the model or its generate(), they come from
    what the model or its word embeddings receive (`ExternalCall`). If that does not say where an answer begins, a
    warning is given, and all text counts as the prompt. `experts` is empty while nothing is edited. Hooks of others are
    neither removed nor reordered.

    What is decided at prefill holds for the KV cache that it fills. An editor calls `edits_changed` after each change:
    caches that were filled before are refused then.

    A subclass overrides `_prefill_starts`, `_after_layer` and `_decision`.
    """

    def __init__(self, backbone: Backbone, layer: int, experts: Sized):
        self.backbone, self._experts = backbone, experts
        self._now = ForwardContext()
        self._number = next_number()
        self._handles: list[Any] = []
        self.edits_changed()
        try:
            keep = self._handles.append
            keep(backbone.model.register_forward_pre_hook(self._before_model, with_kwargs=True))
            keep(backbone.word_embeddings.register_forward_pre_hook(self._before_embeddings))
            keep(backbone.decoder.register_forward_pre_hook(self._before_decoder, with_kwargs=True))
            keep(backbone.decoder.register_forward_hook(self._after_decoder, with_kwargs=True))
            keep(backbone.layers[layer].register_forward_hook(self._after_layer))
        except BaseException:
            self.remove()
            raise

    def remove(self) -> None:
        """Remove the hooks. Safe to call twice."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._now = ForwardContext()

    def edits_changed(self) -> None:
        """From now on, KV caches that were filled before are refused: they hold what other edits computed."""
        self._edits = next_number()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Inside, the model runs unedited, for this thread."""
        self._now.paused += 1
        try:
            yield
        finally:
            self._now.paused -= 1

    # -- for subclasses ----------------------------------------------------------------------------------

    def _prefill_starts(self, ids: Tensor | None, keywords: Mapping[str, Any]) -> None:
        """Called before the decoder reads a sequence for the first time, unless paused.

        ids: the token ids, None if they are not known. keywords: what the decoder was given. `self._now.tokens_of`
        holds until the edit layer has run or a subclass clears it.
        """

    @not_compiled
    def _after_layer(self, layer: nn.Module, arguments: tuple[Any, ...], output: Any) -> Any:
        """Called after the edit layer, also while paused. What it returns replaces the output, unless it is None."""
        # A decoder that embeds token ids itself has done so by now: they do not belong to the next call.
        self._now.embedded_ids = None

    @property
    def _decision(self) -> Any:
        """What was decided at the last prefill of this thread. Set to that of the cache when tokens are decoded."""
        raise NotImplementedError

    @_decision.setter
    def _decision(self, decision: Any) -> None:
        raise NotImplementedError

    # -- the hooks ---------------------------------------------------------------------------------------

    @not_compiled
    def _before_model(self, model: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        self._now.call = ExternalCall.of(arguments, keywords)

    @not_compiled
    def _before_embeddings(self, embeddings: nn.Module, arguments: tuple[Any, ...]) -> None:
        self._now.embedded_ids = arguments[0] if arguments else None

    @not_compiled
    def _before_decoder(self, decoder: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        own = arguments[0] if arguments else keywords.get("input_ids")  # If the language model alone is called.
        known = (own, self._now.call.ids, self._now.embedded_ids)
        ids = next((given for given in known if given is not None), None)
        call = self._now.call.reaching(ids, keywords)
        self._now.call, self._now.embedded_ids = ExternalCall(), None
        cache = keywords.get("past_key_values")
        self._now.fills_cache = cache is None or not cache.get_seq_length() > 0
        if not self._now.fills_cache:
            self._now.tokens_of = None
            if keywords.get("use_cache") is not False:  # A split forward reads what it keeps itself.
                self._continue(cache, call)
            return
        if self._now.paused:
            return
        self._now.tokens_of = lambda batch, length: self._tokens(batch, length, call)
        self._prefill_starts(ids, keywords)

    @not_compiled
    def _after_decoder(
        self, decoder: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any], output: Any
    ) -> None:
        cache = keywords.get("past_key_values")
        if cache is None:
            cache = getattr(output, "past_key_values", None)
        if self._now.fills_cache and cache is not None:
            edits = self._active_edits
            note_filled(cache, self._number, Filled(edits, self._decision) if edits else Filled())

    @property
    def _active_edits(self) -> int:
        """The number of the edits that this thread's call of the model sees; 0 for none."""
        return self._edits if len(self._experts) and not self._now.paused else 0

    def _continue(self, cache: Any, call: ExternalCall) -> None:
        """Go on with what was decided when this cache was filled."""
        filled = how_filled(cache, self._number)
        if filled.edits != self._active_edits:
            raise InvalidInputError(
                "The KV cache that was given was filled while other edits were active, and holds what they computed. "
                "Give the whole prompt, without the cache."
            )
        if filled.edits and not call.continues_answer():
            raise InvalidInputError(
                "A prompt came in pieces (a second turn onto a filled cache, or prefill_chunk_size). Edits are found "
                "by the whole question: give the prompt at once."
            )
        if not self._now.paused:
            self._decision = filled.decision

    def _tokens(self, batch: int, length: int, call: ExternalCall) -> TokenBatch:
        current = self.backbone.current_inputs
        if current is not None and batch % len(current) == 0 and length >= current.roles.shape[1]:
            # Beams and several sequences repeat each question. Without a KV cache, the generated text so far follows
            # the question: it is answer, not prompt.
            return current.continued(batch // len(current), length)
        ids = call.ids
        if ids is None or ids.shape[1] != length or batch % len(ids):
            raise InvalidInputError(
                "The model was called with inputs_embeds, in which image and prompt cannot be distinguished, while "
                "edits are active. Call it with input_ids, or ask through Backbone."
            )
        ids = ids.repeat_interleave(batch // len(ids), 0)
        present = _present(call.mask, ids)
        answer = call.answer_mask(present)
        if answer is None:
            warnings.warn(WHERE_IS_THE_ANSWER, stacklevel=2)
        # Everything that is not image, answer or padding is prompt.
        roles = torch.where(self.backbone.is_image(ids), TokenRole.IMAGE, TokenRole.PROMPT)
        roles = roles if answer is None else roles.masked_fill(answer, TokenRole.ANSWER)
        return TokenBatch(roles.masked_fill(~present, TokenRole.PADDING), ids)


def _present(mask: Any, ids: Tensor) -> Tensor:
    """(batch, tokens) booleans, false at padding, from any form of mask that a family's generate() makes."""
    if isinstance(mask, Mapping):
        mask = next(iter(mask.values()))
    if not isinstance(mask, Tensor):
        return torch.ones_like(ids, dtype=torch.bool)
    if mask.ndim == 4:  # What the last query attends to.
        mask = mask[:, 0, -1]
        mask = mask if mask.dtype == torch.bool else mask == 0
    return mask[:, : ids.shape[1]].bool().expand(len(ids), -1)
