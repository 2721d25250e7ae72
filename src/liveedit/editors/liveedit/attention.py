"""Where in the image a visual feature is read from: the attention of a feature extractor, as a heat map."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ...backbones import Backbone, HiddenTokens, TokenBatch
from ...samples import Question
from ..heat_map import HeatMap, rows_of
from .modules import FeatureExtractor, left_pack


@torch.no_grad()
def attention_map(
    backbone: Backbone,
    extractor: FeatureExtractor,
    read: Callable[[TokenBatch], HiddenTokens],
    question: Question,
) -> HeatMap:
    """Where phi comes from: the attention of CA_phi2 over the image's tokens at the edit layer.

    softmax(x Wq (y Wk)^T) of equation 2, averaged over heads and feature vectors; x is what the prompt asks for, y the
    hidden states of the image tokens. If each token is a patch, this is a map of the image. The tokens of a Q-Former
    are its queries: its cross-attention, averaged over layers and heads, distributes their shares over the patches.
    The share of the class token, which has no place in the image, is left out. If neither is known, the map is over
    tokens.

    A hidden state has read more than its own patch, because the vision tower and earlier layers mix them. A share thus
    says where the extractor read, not what went into it; `occlusion.change_map` measures that.
    """
    inputs = backbone.encode([question], padding="left")
    with _cross_attention(backbone) as seen:
        tokens = read(inputs)
    asked = extractor.asked(left_pack(tokens.hidden_states, tokens.prompt_mask))
    shares = extractor.attribution(asked, left_pack(tokens.hidden_states, tokens.image_mask))[0].cpu()
    if seen:
        return _through_queries(shares, torch.stack(seen).mean(0))
    side_length = math.isqrt(len(shares))
    if side_length**2 == len(shares) and _one_square_image(inputs):
        return HeatMap("attention", "cells", rows_of(shares.view(side_length, -1)), "attention over the patches")
    note = "attention over image tokens, which have no place in the image"
    return HeatMap("attention", "tokens", rows_of(shares[None]), note)


def _one_square_image(inputs: TokenBatch) -> bool:
    """Whether the model received the image as one square: not in tiles, and not as a list of patches."""
    pixels = inputs.pixel_values
    return pixels is not None and pixels.ndim == 4 and len(pixels) == 1 and pixels.shape[-1] == pixels.shape[-2]


def _through_queries(shares: Tensor, cross: Tensor) -> HeatMap:
    """shares: (queries,); cross: (queries, vision tokens), each row summing to 1."""
    patches = shares @ cross
    count = len(patches)
    if math.isqrt(count) ** 2 != count and math.isqrt(count - 1) ** 2 == count - 1:
        patches = patches[1:]
    side = math.isqrt(len(patches))
    if side**2 != len(patches):
        return HeatMap("attention", "tokens", rows_of(shares[None]), "attention over the Q-Former's queries")
    note = "attention over the Q-Former's queries, distributed over the patches by its cross-attention"
    return HeatMap("attention", "cells", rows_of((patches / patches.sum()).view(side, side)), note)


@contextmanager
def _cross_attention(backbone: Backbone) -> Iterator[list[Tensor]]:
    """Collects inside the cross-attention of a Q-Former, (queries, vision tokens) for each layer.

    Nothing is collected for models without a Q-Former. Its attention is computed by the eager implementation inside:
    the others do not return weights.
    """
    found: list[Tensor] = []
    qformer: Any = getattr(backbone.model, "qformer", None)
    if qformer is None:
        yield found
        return

    def ask(
        module: Any, arguments: tuple[Any, ...], keywords: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return arguments, {**keywords, "output_attentions": True}

    def keep(module: Any, arguments: tuple[Any, ...], output: Any) -> None:
        layers = getattr(output, "cross_attentions", None) or ()
        found.extend(weights[0].float().mean(0).cpu() for weights in layers if weights is not None)

    before = qformer.config._attn_implementation
    handles = [qformer.register_forward_pre_hook(ask, with_kwargs=True), qformer.register_forward_hook(keep)]
    qformer.config._attn_implementation = "eager"
    try:
        yield found
    finally:
        qformer.config._attn_implementation = before
        for handle in handles:
            handle.remove()
