"""Features made comparable: centred, and scaled by how they vary."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Final, Self

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

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
    def none(cls, width: int) -> Self:
        """The map that changes nothing."""
        return cls(torch.zeros(width), torch.zeros(0, width), torch.zeros(0), torch.tensor(1.0))

    @classmethod
    def of(cls, features: Float[Tensor, "samples width"]) -> Self:
        """The whitening by how these features differ from their mean, on the CPU."""
        samples = features.double().cpu()
        return cls._around(samples.mean(0), samples - samples.mean(0))

    @classmethod
    def of_wordings(cls, features: Float[Tensor, "*questions wordings width"]) -> Self:
        """The whitening by how features of the same question differ between its wordings, on the CPU.

        What a change of the wording changes most, counts least.
        """
        samples = features.double().cpu()
        return cls._around(samples.flatten(0, -2).mean(0), (samples - samples.mean(-2, keepdim=True)).flatten(0, -2))

    @classmethod
    def _around(cls, mean: Tensor, deviations: Tensor) -> Self:
        _, lengths, basis = torch.linalg.svd(deviations, full_matrices=False)
        variances = lengths.square() / len(deviations)
        ridge = (_RIDGE * variances.sum() / deviations.shape[1]).clamp(min=1e-12)
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


def content_of(whitened: Float[Tensor, "tokens width"]) -> Float[Tensor, " width"]:
    """The content of an image or a text: its whitened tokens, added up with the squares of their lengths as weights, of
    length 1.

    Tokens that are like those of many images or questions (a plain background; what, is, of) are short, those of
    things and names are long.
    """
    return F.normalize((whitened * whitened.square().sum(-1, keepdim=True)).sum(0), dim=-1)
