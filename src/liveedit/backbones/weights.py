"""The weights of a model, wherever they are kept, and a digest of them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel


def weights_of(model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """Name and value of every weight and buffer of a checkpoint. Offloaded ones are read where they are kept."""
    modules = dict(model.named_modules())
    for name, value in model.state_dict().items():
        if value.is_meta:
            module, _, part = name.rpartition(".")
            offloaded: Any = modules[module]._hf_hook
            value = offloaded.weights_map[part]
        yield name, value


def digest_of(configuration: str, weights: Iterable[tuple[str, Tensor]]) -> str:
    """SHA-256 of a configuration and of a sample of each weight."""
    digest = hashlib.sha256(configuration.encode())
    for name, weight in weights:
        sample = weight.detach().flatten()[:: max(1, weight.numel() // 64)].float().cpu()
        digest.update(name.encode() + sample.numpy().tobytes())
    return digest.hexdigest()
