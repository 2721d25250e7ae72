"""An expert as bytes: safetensors, so that reading a file runs no code, and exact to the bit."""

from __future__ import annotations

import torch
from safetensors import SafetensorError
from safetensors.numpy import save
from safetensors.torch import load

from ..errors import InvalidInputError
from .expert import Expert

_PARTS = frozenset({"u", "v", "visual_feature", "prompt_feature"})


def expert_to_bytes(expert: Expert) -> bytes:
    """The four tensors as safetensors. Raises `InvalidInputError` unless all are finite float32."""
    for name, tensor in expert.tensors.items():
        if tensor.dtype != torch.float32:
            raise InvalidInputError(
                f"An expert's {name} is {tensor.dtype}; float32 is stored. Convert it before editing with it."
            )
        if not bool(torch.isfinite(tensor).all()):
            raise InvalidInputError(
                f"An expert's {name} holds NaN or infinity: it would spoil every answer it takes part in. "
                "Make the edit again, with fewer refine steps or a lower learning rate."
            )
    # By way of numpy, which costs a fifth of safetensors' way of torch and gives the same bytes.
    return save({name: tensor.detach().to("cpu").contiguous().numpy() for name, tensor in expert.tensors.items()})


def expert_from_bytes(data: bytes) -> Expert:
    """What `expert_to_bytes` wrote. Raises `ValueError` where it is anything else."""
    try:
        parts = load(data)
    except (SafetensorError, KeyError) as error:
        raise ValueError(f"not safetensors: {error}") from error
    if parts.keys() != _PARTS:
        raise ValueError(f"the parts are {sorted(parts)}, not {sorted(_PARTS)}")
    if any(tensor.dtype != torch.float32 for tensor in parts.values()):
        raise ValueError("a part is not float32")
    return Expert(**parts)
