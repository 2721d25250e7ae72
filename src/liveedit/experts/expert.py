"""One edit as parameters: a low-rank expert and the two features it is found by."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Expert:
    """`(U, V, phi_hat, psi_hat)` of the paper's section 4.1.

    u, v: (rank, width). visual_feature, prompt_feature: (k * d_m,). All float32 on the CPU or the model's
    device.
    """

    u: Tensor
    v: Tensor
    visual_feature: Tensor
    prompt_feature: Tensor

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The four parts by name."""
        return {
            "u": self.u,
            "v": self.v,
            "visual_feature": self.visual_feature,
            "prompt_feature": self.prompt_feature,
        }

    @property
    def store_bytes(self) -> int:
        """What one expert takes, in bytes."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors.values())

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the contents: the order in which experts are mixed, whatever order they came in."""
        digest = hashlib.sha256()
        for tensor in self.tensors.values():
            digest.update(tensor.detach().to("cpu", torch.float32).contiguous().numpy().tobytes())
        return digest.hexdigest()
