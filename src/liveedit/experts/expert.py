"""One edit as parameters: named tensors, in memory and as bytes."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields
from functools import cached_property
from typing import TypeVar

import torch
from safetensors import SafetensorError
from safetensors.numpy import save
from safetensors.torch import load
from torch import Tensor

from ..errors import InvalidInputError


class Expert:
    """The parameters of one edit.

    A subclass is a frozen dataclass with `eq=False` whose fields are float32 tensors, on the CPU or on the model's
    device.
    """

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The fields by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]

    @property
    def store_bytes(self) -> int:
        """Size of the tensors in bytes."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors.values())

    @property
    def rank(self) -> int | None:
        """The rank of its matrices, which grows with the answer; None for experts without a rank."""
        return None

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the contents. Experts are mixed in the order of their digests, so their order of arrival is
        irrelevant."""
        digest = hashlib.sha256()
        for tensor in self.tensors.values():
            digest.update(tensor.detach().to("cpu", torch.float32).contiguous().numpy().tobytes())
        return digest.hexdigest()


AnyExpert = TypeVar("AnyExpert", bound=Expert)


@dataclass(frozen=True, eq=False)
class LowRankExpert(Expert):
    """`(U, V, phi_hat, psi_hat)` of section 4.1 of the LiveEdit paper.

    u, v: (rank, width). visual_feature, prompt_feature: (k * d_m,). query_feature: phi_bar of the edit's own question,
    (k * d_m,), not part of the paper: by it the nearest of several experts is found.
    """

    u: Tensor
    v: Tensor
    visual_feature: Tensor
    prompt_feature: Tensor
    query_feature: Tensor

    @property
    def rank(self) -> int:
        """Rows of u and v."""
        return len(self.u)


def expert_to_bytes(expert: Expert) -> bytes:
    """The tensors as safetensors, exact to the bit. Raises `InvalidInputError` unless all are finite float32."""
    for name, tensor in expert.tensors.items():
        if tensor.dtype != torch.float32:
            raise InvalidInputError(
                f"An expert's {name} is {tensor.dtype}; only float32 can be stored. Convert it before editing with it."
            )
        if not bool(torch.isfinite(tensor).all()):
            raise InvalidInputError(
                f"An expert's {name} holds NaN or infinity and would corrupt every answer it takes part in. "
                "Make the edit again with fewer refine steps or a lower learning rate."
            )
    # safetensors.numpy takes a fifth of the time of safetensors.torch and writes the same bytes.
    return save({name: tensor.detach().to("cpu").contiguous().numpy() for name, tensor in expert.tensors.items()})


def expert_from_bytes(data: bytes, kind: type[AnyExpert]) -> AnyExpert:
    """Read what `expert_to_bytes` wrote. Raises `ValueError` if it is not an expert of this kind."""
    try:
        parts = load(data)
    except (SafetensorError, KeyError) as error:
        raise ValueError(f"not safetensors: {error}") from error
    wanted = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    if parts.keys() != wanted:
        raise ValueError(f"the parts are {sorted(parts)}, not {sorted(wanted)}")
    if any(tensor.dtype != torch.float32 for tensor in parts.values()):
        raise ValueError("a part is not float32")
    return kind(**parts)
