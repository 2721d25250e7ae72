"""Linear layers for processors on which PyTorch's usual library for matrix products is slow."""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn

_CPU_INFO = Path("/proc/cpuinfo")

_FEW_ROWS, _ROW_STEP, _MOST_ROWS = 64, 32, 1024
"""Up to 64 rows are multiplied unpadded. More rows are padded to a multiple of 32, at most 1024 at once."""


class OneDnnLinear(nn.Linear):
    """A linear layer whose float32 products come from oneDNN instead of MKL if no gradient is needed.

    On AMD's processors MKL uses AVX2 only. oneDNN uses AVX-512 and computes about twice as many products per second in
    the same precision (benchmarks/linear_layers.py). It sums in another order: results differ from MKL's by rounding.
    oneDNN compiles code for every number of rows and caches it, which takes longer than the product itself. Large
    batches are therefore padded with rows of zeros to one of few sizes.
    """

    def forward(self, input: Tensor) -> Tensor:
        """x W^T + b, (..., in) to (..., out)."""
        wanted = torch.is_grad_enabled() and (input.requires_grad or self.weight.requires_grad)
        fits = input.dtype == self.weight.dtype == torch.float32 and input.device.type == "cpu"
        if wanted or not fits or torch.is_autocast_enabled("cpu") or torch.compiler.is_compiling():
            return super().forward(input)
        if input.numel() <= _FEW_ROWS * self.in_features:
            return self._product(input)
        rows = input.reshape(-1, self.in_features).split(_MOST_ROWS)
        products = [self._product(filled_up(part))[: len(part)] for part in rows]
        return (products[0] if len(products) == 1 else torch.cat(products)).view(*input.shape[:-1], self.out_features)

    def _product(self, rows: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(rows, self.weight, self.bias, "none", [], "")


def filled_up(rows: Tensor) -> Tensor:
    """(rows, width), padded with rows of zeros to a multiple of `_ROW_STEP`."""
    count = len(rows)
    if count % _ROW_STEP == 0:
        return rows
    filled = rows.new_empty(math.ceil(count / _ROW_STEP) * _ROW_STEP, rows.shape[1])
    filled[:count] = rows
    filled[count:] = 0
    return filled


def speed_up_linear_layers(model: nn.Module) -> None:
    """Make plain linear layers `OneDnnLinear` if that is faster. Weights and their names do not change."""
    if not is_worthwhile():
        return
    for module in model.modules():
        if type(module) is nn.Linear and module.weight.dtype == torch.float32 and module.weight.device.type == "cpu":
            module.__class__ = OneDnnLinear


@cache
def is_worthwhile() -> bool:
    """Whether this is an AMD processor with AVX-512. Decided by name, not by timing, so that results do not vary."""
    return (
        torch.backends.mkl.is_available()
        and torch.backends.mkldnn.is_available()
        and torch.backends.cpu.get_cpu_capability() == "AVX512"
        and _CPU_INFO.is_file()
        and "AuthenticAMD" in _CPU_INFO.read_text(encoding="utf-8")
    )
