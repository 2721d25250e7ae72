"""How experts change a running model: beside one FFN, by a route that is decided once per sequence, at prefill."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sized
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from ...backbones import Backbone
from ...backbones.prefill import PrefillHook, not_compiled
from .anchors import QueryEmbedding
from .experts import FeedForward
from .routing import Route

Router = Callable[[QueryEmbedding], Route]
Mixer = Callable[[Route | None, Tensor, Tensor | None], Tensor]
"""From the route of the sequence (None if each token is routed), the input of the FFN, (batch, tokens, width), and at
prefill which tokens are image or prompt, (batch, tokens): what is added to the output of the FFN."""


class ExpertHook(PrefillHook):
    """Adds the routed experts' output to that of an FFN.

    `router` is called at prefill and sees image and prompt, never the answer. Without a router, each token is routed
    separately. `by_state`: the router is called when the FFN reads the sequence, instead of before the decoder does.
    Inside `recording()` the model runs unedited, and `query_embedding` holds each question's pooled embedding.
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
        self._router, self._mixer, self._by_state = router, mixer, by_state
        self.route: Route | None = None
        self.query_embedding: QueryEmbedding | None = None
        self._pending: tuple[QueryEmbedding, Tensor] | None = None
        """What is known of the questions while their states are yet to be read, and which tokens are the prompt's."""
        self._question: Tensor | None = None
        self._recording = False
        self._rows = 0
        super().__init__(backbone, layer, experts)
        try:
            self._handles += place.hook(self._beside)
        except BaseException:
            self.remove()
            raise

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Inside, the model runs unedited, and `query_embedding` is set by each call."""
        self._recording = True
        try:
            yield
        finally:
            self._recording = False
            self.query_embedding = self._pending = None

    @property
    def _decision(self) -> tuple[Route | None, int]:
        """The route of the questions, and how many they are."""
        return self.route, self._rows

    @_decision.setter
    def _decision(self, decision: tuple[Route | None, int] | None) -> None:
        self.route, self._rows = decision or (None, self._rows)

    def _prefill_starts(self, ids: Tensor | None, keywords: Mapping[str, Any]) -> None:
        tokens_of, self._now.tokens_of = self._now.tokens_of, None
        self.route = self._question = self.query_embedding = self._pending = None
        if tokens_of is None or not (self._recording or len(self._experts)):
            return
        embeddings = keywords.get("inputs_embeds")
        if embeddings is None:
            embeddings = self.backbone.word_embeddings(ids)
            self._now.embedded_ids = None  # The hook on the embeddings saw this call, which is not the model's.
        tokens = tokens_of(*embeddings.shape[:2])
        self._rows = len(embeddings)
        self._question = tokens.image_mask | tokens.prompt_mask
        query_embedding = QueryEmbedding.of(
            embeddings, tokens.image_mask.to(embeddings.device), tokens.prompt_mask.to(embeddings.device)
        )
        if self._by_state:
            self._pending = query_embedding, tokens.prompt_mask
        else:
            self._decide(query_embedding)

    def _decide(self, query_embedding: QueryEmbedding) -> None:
        if self._recording:
            self.query_embedding = query_embedding
        elif self._router is not None:
            self.route = self._router(query_embedding)

    @not_compiled
    def _after_layer(self, layer: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
        super()._after_layer(layer, arguments, output)
        self._question = None  # Later tokens are decoded from the cache.

    @not_compiled
    def _beside(self, x: Tensor) -> Tensor | None:
        if self._now.paused or not self._rows or not (self._recording or len(self._experts)):
            return None
        whole = x if x.ndim == 3 else x.unflatten(0, (self._rows, -1))  # OPT reads all tokens in one row.
        if self._pending is not None:
            (query_embedding, prompt), self._pending = self._pending, None
            self._decide(query_embedding.with_states(whole, prompt))
        if self._recording:
            return None
        if self._router is not None and (self.route is None or not bool((self.route.experts >= 0).any())):
            return None
        return self._mixer(self.route, whole, self._question).reshape(x.shape)
