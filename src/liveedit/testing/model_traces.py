"""What an editor may leave on a model: hooks, replaced layers, changed weights."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ..backbones import Backbone


def hooks_of(backbone: Backbone) -> list[str]:
    """Names of the modules that carry hooks, except the hooks of transformers itself."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return [
        f"{name}.{kind}"
        for name, module in backbone.model.named_modules()
        for kind in kinds
        for hook in getattr(module, kind).values()
        if not hook.__module__.startswith("transformers.")
    ]


def weight_bits(backbone: Backbone) -> int:
    """A 64-bit checksum of all weights: if any bit of a weight changes, so does this (almost certainly)."""
    return sum(
        (place + 1) * int(value.detach().view(torch.int32 if value.element_size() == 4 else torch.int16).sum())
        for place, value in enumerate(backbone.model.parameters())
    )


def left_unchanged(backbone: Backbone) -> Iterator[Backbone]:
    """Yield the backbone, then assert that its layers, hooks and weights are the same as before.

    For fixtures: `yield from left_unchanged(backbone)`.
    """
    layers, hooks, weights = backbone.decoder.layers, hooks_of(backbone), weight_bits(backbone)
    yield backbone
    assert backbone.decoder.layers is layers, "a test left other layers in the decoder"
    assert hooks_of(backbone) == hooks, "a test left hooks on the model"
    assert weight_bits(backbone) == weights, "a test left other weights in the model"
