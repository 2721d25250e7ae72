"""Low-rank adapters: small trained additions to the linear layers of a frozen model, merged into them afterwards."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle


class Adapters(nn.Module):
    """Adds `x A^T B^T` to the output of each linear layer with one of the given names (Hu et al., LoRA, ICLR 2022).

    Before training B is 0, and the model is unchanged. Its parameters are those of this module alone.
    """

    def __init__(self, model: nn.Module, names: Sequence[str], rank: int, seed: int = 0):
        super().__init__()
        layers = {path: layer for path, layer in model.named_modules() if path.rpartition(".")[2] in names}
        generator = torch.Generator().manual_seed(seed)
        self.a, self.b = nn.ParameterDict(), nn.ParameterDict()
        self._handles: list[RemovableHandle] = []
        for path, layer in layers.items():
            given, taken = layer.weight.shape  # pyright: ignore[reportGeneralTypeIssues]
            key = path.replace(".", "/")  # A ParameterDict takes no dots.
            self.a[key] = nn.Parameter(torch.randn(rank, int(taken), generator=generator) / math.sqrt(int(taken)))
            self.b[key] = nn.Parameter(torch.zeros(int(given), rank))
            self._handles.append(layer.register_forward_hook(self._adding(key)))

    def _adding(self, key: str) -> Any:
        def add(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            return output + F.linear(F.linear(inputs[0], self.a[key]), self.b[key])

        return add

    def remove(self) -> None:
        """Remove the adapters from the model they were made for. Safe to call twice."""
        for handle in self._handles:
            handle.remove()

    @torch.no_grad()
    def merge_into(self, model: nn.Module) -> None:
        """Add the products B A to the weights of a model of the same shape."""
        for key in self.a:
            weight: Any = model.get_submodule(key.replace("/", ".")).weight
            weight += (self.b[key] @ self.a[key]).to(weight.dtype)
