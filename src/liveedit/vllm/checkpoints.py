"""Checkpoints that transformers 5 writes and vLLM 0.32 does not read: the vision tower's names have changed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor

_OLD, _NEW = "vision_tower.vision_model.", "vision_tower."


def load_llava_weights(original: Any, model: Any, weights: Iterable[tuple[str, Tensor]]) -> Any:
    """vLLM's `load_weights` of LLaVA, for checkpoints with names of either transformers version."""
    has_inner = hasattr(getattr(model, "vision_tower", None), "vision_model")
    return original(model, _renamed(weights) if has_inner else weights)


def _renamed(weights: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in weights:
        yield name if _OLD in name else name.replace(_NEW, _OLD), tensor
