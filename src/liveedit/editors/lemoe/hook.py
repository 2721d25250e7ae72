"""How experts change a running model: beside one FFN, by a route that is decided once per sequence, at prefill."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sized
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from ...backbones import Backbone
from ...backbones.prefill import PrefillHook, not_compiled
from .anchors import Gist
from .experts import FeedForward
from .routing import Route

Router = Callable[[Gist], Route]
Mixer = Callable[[Route | None, Tensor, Tensor | None], Tensor]
"""From the route of the sequence (None if each token is routed), the input of the FFN, (batch, tokens, width), and at
prefill which tokens are image or prompt, (batch, tokens): what is added to the output of the FFN."""


class ExpertHook(PrefillHook):
    """Adds the routed experts' output to that of an FFN.

    `router` is called at prefill and sees image and prompt, never the answer. Without a router, each token is routed
    separately. `by_state`: the router is called when the FFN reads the sequence, instead of before the decoder does.
    Inside `listening()` the model runs unedited, and `gist` holds the pooled query embedding of each question.
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
        self.gist: Gist | None = None
        self._pending: tuple[Gist, Tensor] | None = None
        """The pooled query embeddings until the FFN reads the questions, and which tokens belong to the prompts."""
        self._question: Tensor | None = None
        self._listening = False
        self._rows = 0
        super().__init__(backbone, layer, experts)
        try:
            self._handles += place.hook(self._beside)
        except BaseException:
            self.remove()
            raise

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Inside, the model runs unedited, and `gist` is set by each call."""
        self._listening = True
        try:
            yield
        finally:
            self._listening = False
            self.gist = self._pending = None

    def _prefill_starts(self, ids: Tensor | None, keywords: Mapping[str, Any]) -> None:
        tokens_of, self._now.tokens_of = self._now.tokens_of, None
        self.route = self._question = self.gist = self._pending = None
        if tokens_of is None or not (self._listening or len(self._experts)):
            return
        embeddings = keywords.get("inputs_embeds")
        if embeddings is None:
            embeddings = self.backbone.word_embeddings(ids)
            self._now.embedded_ids = None  # The hook on the embeddings saw this call, which is not the model's.
        tokens = tokens_of(*embeddings.shape[:2])
        self._rows = len(embeddings)
        image, prompt = tokens.image_mask, tokens.prompt_mask
        self._question = image | prompt
        gist = Gist.of(embeddings, image.to(embeddings.device), prompt.to(embeddings.device))
        if self._by_state:
            self._pending = gist, prompt
        else:
            self._decide(gist)

    def _decide(self, gist: Gist) -> None:
        if self._listening:
            self.gist = gist
        elif self._router is not None:
            self.route = self._router(gist)

    @not_compiled
    def _after_layer(self, layer: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
        super()._after_layer(layer, arguments, output)
        self._question = None  # Later tokens are decoded from the cache.

    @not_compiled
    def _beside(self, x: Tensor) -> Tensor | None:
        if self._now.paused or not self._rows or not (self._listening or len(self._experts)):
            return None
        whole = x if x.ndim == 3 else x.unflatten(0, (self._rows, -1))  # OPT reads all tokens in one row.
        if self._pending is not None:
            (gist, prompt), self._pending = self._pending, None
            self._decide(gist.with_states(whole, prompt))
        if self._listening:
            return None
        if self._router is not None and (self.route is None or not bool((self.route.experts >= 0).any())):
            return None
        return self._mixer(self.route, whole, self._question).reshape(x.shape)
