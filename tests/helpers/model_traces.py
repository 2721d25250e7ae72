"""What an editor may have left behind on a model."""

from __future__ import annotations

import torch

from liveedit.backbones import Backbone


def hooks_of(backbone: Backbone) -> list[str]:
    """Names of the modules that carry hooks, apart from those that transformers itself keeps there."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return [
        f"{name}.{kind}"
        for name, module in backbone.model.named_modules()
        for kind in kinds
        for hook in getattr(module, kind).values()
        if not hook.__module__.startswith("transformers.")
    ]


def weight_bits(backbone: Backbone) -> int:
    """A number that changes when any bit of any weight does (with the odds of a 64-bit sum)."""
    return sum(
        (place + 1) * int(value.detach().view(torch.int32 if value.element_size() == 4 else torch.int16).sum())
        for place, value in enumerate(backbone.model.parameters())
    )
