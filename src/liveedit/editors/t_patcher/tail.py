"""The model after the last FFN, run repeatedly for the few tokens that predict an answer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...backbones import Backbone, TokenBatch, TokenRole
from .patches import PatchedFeedForward, Patches


@dataclass(frozen=True)
class Passage:
    """One question with its answer, read with the active patches.

    before, after: the states before the last layer, (1, length, d), and after it, (answer tokens, d). queries: (answer
    tokens, d) float32, what the last FFN is given before each token of the answer. targets: (answer tokens,) token ids.
    """

    inputs: TokenBatch
    before: Tensor
    after: Tensor
    queries: Tensor
    targets: Tensor


class Tail:
    """The end of a model, from the last FFN on.

    In most families the FFN's output is the last thing that a layer adds to the states: then the output of patches is
    added to the states after the layer, and nothing but the final norm and the head runs, for the answer's tokens.
    If more follows the FFN (a norm in Gemma and OPT-350m), which a trial shows, the last layer runs as a whole.
    """

    def __init__(self, backbone: Backbone, feed_forward: PatchedFeedForward):
        self.backbone, self.feed_forward = backbone, feed_forward
        self.last = len(backbone.layers) - 1
        self.device = backbone.layer_device(self.last)
        self._adds: bool | None = None

    @torch.no_grad()
    def read(self, inputs: TokenBatch) -> Passage:
        """One pass of the model."""
        before: list[Tensor] = []
        handle = self.backbone.layers[self.last - 1].register_forward_hook(
            lambda layer, arguments, output: before.append(output if isinstance(output, Tensor) else output[0])
        )
        try:
            with self.feed_forward.keeping() as kept:
                after = self.backbone.hidden_states(inputs, self.last)
        finally:
            handle.remove()
        predicting = inputs.predicting.to(after.device)
        queries = kept[0].reshape(after.shape)[predicting].float()
        targets = inputs.input_ids[inputs.answer_mask].to(self.device)
        passage = Passage(inputs, before[0], after[predicting], queries, targets)
        if self._adds is None:
            self._adds = self._try_adding(passage)
        return passage

    def logits(self, passage: Passage, patches: Patches) -> Tensor:
        """(answer tokens, vocabulary) float32 that predict the answer, with these patches besides the active ones."""
        return self._by_adding(passage, patches) if self._adds else self._by_the_whole_layer(passage, patches)

    def _try_adding(self, passage: Passage) -> bool:
        """Whether adding to the states after the layer gives what the layer gives, for patches of large output."""
        width = passage.after.shape[-1]
        loud = torch.linspace(-1, 1, width, device=self.device) * passage.after.float().std()
        trial = Patches(torch.zeros_like(loud)[None], torch.ones_like(loud[:1]), loud[None])
        unmoved = self._by_adding(passage, Patches.start(passage.queries[:0]))
        added, whole = self._by_adding(passage, trial), self._by_the_whole_layer(passage, trial)
        return bool((added - whole).norm() < 0.05 * (whole - unmoved).norm())

    def _by_adding(self, passage: Passage, patches: Patches) -> Tensor:
        after = passage.after + patches.output(passage.queries).to(passage.after.dtype)
        # No layer reads these tokens: only the final norm and the head follow.
        ids = passage.targets[None]
        tokens = TokenBatch(torch.full_like(ids, TokenRole.ANSWER), ids)
        return self.backbone.logits_from(after[None], tokens, self.last, tokens.answer_mask).float().to(self.device)

    def _by_the_whole_layer(self, passage: Passage, patches: Patches) -> Tensor:
        inputs = passage.inputs
        with self.feed_forward.adding(patches):
            logits = self.backbone.logits_from(passage.before, inputs, self.last - 1, inputs.predicting)
        return logits.float().to(self.device)
