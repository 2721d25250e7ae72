"""Mixed precision, where it pays: matrix products in bfloat16, sums in float32."""

from __future__ import annotations

from functools import cache

import torch


@cache
def multiplies_bfloat16(device_type: str) -> bool:
    """Whether a kind of device multiplies matrices in bfloat16 at least as fast as in float32.

    Processors without AVX-512 compute such products one number at a time, and far more slowly.
    """
    if device_type == "cpu":
        return torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return device_type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)


def mixed_precision(device_type: str, wanted: bool = True) -> torch.autocast:
    """Matrix products in bfloat16 if `wanted`, unless the device computes them slowly: then in float32."""
    return torch.autocast(device_type, torch.bfloat16, enabled=wanted and multiplies_bfloat16(device_type))
