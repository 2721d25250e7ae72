"""Features made comparable: centred, and scaled by how they vary."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Final, Self

import torch
from jaxtyping import Float
from torch import Tensor

_RIDGE: Final = 0.1
"""Added to every variance, in units of the mean variance: directions that hardly vary are not blown up."""


@dataclass(frozen=True)
class Whitening:
    """A linear map after which features vary alike in all directions.

    mean: of the features. basis: orthonormal directions in which they vary. scales: the factor along each of them.
    outside: the factor along all other directions.
    """

    mean: Float[Tensor, " width"]
    basis: Float[Tensor, "directions width"]
    scales: Float[Tensor, " directions"]
    outside: Float[Tensor, ""]

    @classmethod
    def of(cls, features: Float[Tensor, "samples width"]) -> Self:
        """The whitening by the statistics of these features, on the CPU."""
        samples = features.double().cpu()
        mean = samples.mean(0)
        _, lengths, basis = torch.linalg.svd(samples - mean, full_matrices=False)
        variances = lengths.square() / len(samples)
        ridge = (_RIDGE * variances.sum() / samples.shape[1]).clamp(min=1e-12)
        # Contiguous, as a saved one is read: matrix products of another layout may round otherwise.
        parts = (mean, basis.contiguous(), (variances + ridge).rsqrt(), ridge.rsqrt())
        return cls(*(part.float() for part in parts))

    def __call__(self, features: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch width"]:
        """Whitened features."""
        centred = features - self.mean
        along = (centred @ self.basis.T) * (self.scales - self.outside)
        return self.outside * centred + along @ self.basis

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The fields by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def to(self, device: torch.device) -> Self:
        """The same on another device."""
        return type(self)(**{name: part.to(device) for name, part in self.tensors.items()})
