"""How experts reach a running model: beside one FFN, by a route that is decided once per sequence, at prefill."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sized
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from ...backbones import Backbone
from ..liveedit.hook import RoutingHook
from .anchors import QueryEmbedding
from .config import LemoeConfig
from .experts import FeedForward
from .routing import Route

Router = Callable[[QueryEmbedding], Route]
Mixer = Callable[[Route | None, Tensor, Tensor | None], Tensor]
"""From the route of the sequence (None where tokens are routed), what the FFN reads, (batch, length, d), and at
prefill which tokens are image and prompt, (batch, length): what is added."""

_not_compiled = torch.compiler.disable(
    reason="LEMoE finds experts in plain Python: compile without fullgraph=True, and the layers around it compile."
)


class ExpertHook(RoutingHook):
    """LiveEdit's hook (which tokens are image, prompt and answer, whoever calls), with experts beside an FFN.

    `router` is asked at the first pass over a sequence and sees image and prompt, never the answer; without one,
    each token is routed by itself. `by_state`: whether it is asked when the FFN reads the sequence, or before the
    decoder does. While `listening`, the model runs unedited and `gist` tells what an anchor of each question would be
    made of.
    """

    def __init__(
        self,
        backbone: Backbone,
        layer: int,
        place: FeedForward,
        router: Router | None,
        mixer: Mixer,
        experts: Sized,
        by_state: bool,
    ):
        self._key_router, self._mixer, self._by_state = router, mixer, by_state
        self.route: Route | None = None
        self.gist: QueryEmbedding | None = None
        self._unread: tuple[QueryEmbedding, Tensor] | None = None
        """What is known of the questions while their states are yet to be read, and which tokens are the prompt's."""
        self._question: Tensor | None = None
        self._listening = False
        self._rows = 0
        config = cast(Any, LemoeConfig(layer=layer))  # Of its configuration, the hook above reads `layer` alone.
        super().__init__(backbone, config, cast(Any, None), experts)
        try:
            self._handles += place.hook(self._beside)
        except BaseException:
            self.remove()
            raise

    @contextmanager
    def listening(self) -> Iterator[None]:
        """The model runs unedited inside, and `gist` is there after each call."""
        self._listening = True
        try:
            yield
        finally:
            self._listening = False
            self.gist = self._unread = None

    @_not_compiled
    def _before_decoder(self, decoder: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        own = arguments[0] if arguments else keywords.get("input_ids")
        ids = next((given for given in (own, self._now.ids, self._now.embedded_ids) if given is not None), None)
        super()._before_decoder(decoder, arguments, keywords)
        if self._now.paused or self._now.call is None:
            return
        call, self._now.call = self._now.call, None
        self.route = self._question = self.gist = self._unread = None
        if not (self._listening or len(self._experts)):
            return
        embeddings = keywords.get("inputs_embeds")
        if embeddings is None:
            embeddings = self.backbone.word_embeddings(ids)
            self._now.embedded_ids = None  # That was ours, and says nothing of the next call.
        kinds = call(*embeddings.shape[:2])
        self._rows = len(embeddings)
        self._question = kinds.image | kinds.prompt
        gist = QueryEmbedding.of(embeddings, kinds.image.to(embeddings.device), kinds.prompt.to(embeddings.device))
        if self._by_state:
            self._unread = gist, kinds.prompt
        else:
            self._hear(gist)

    def _hear(self, gist: QueryEmbedding) -> None:
        if self._listening:
            self.gist = gist
        elif self._key_router is not None:
            self.route = self._key_router(gist)

    @_not_compiled
    def _after_layer(self, layer: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
        self._now.embedded_ids = None
        self._question = None  # What follows is decoded from the cache.

    @_not_compiled
    def _beside(self, x: Tensor) -> Tensor | None:
        if self._now.paused or not self._rows or not (self._listening or len(self._experts)):
            return None
        whole = x if x.ndim == 3 else x.unflatten(0, (self._rows, -1))  # OPT reads all tokens in one row.
        if self._unread is not None:
            (gist, prompt), self._unread = self._unread, None
            self._hear(gist.with_states(whole, prompt))
        if self._listening:
            return None
        if self._key_router is not None and (self.route is None or not bool((self.route.experts >= 0).any())):
            return None
        return self._mixer(self.route, whole, self._question).reshape(x.shape)
