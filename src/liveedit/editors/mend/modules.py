"""MEND's networks: they turn the gradient of one edit into the change that makes it, token by token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from .config import MendConfig
from .factors import Factors

_RATE_GAIN = 10.0
"""How much faster the logarithm of an edit rate moves than other weights (paper: its rate is 100 times theirs)."""


class MendModules(nn.Module):
    """Networks, statistics and edit learning rates for a list of matrices.

    For a matrix with gradient sum_t delta_t u_t^T, z_t = norm([u_t; delta_t]) goes through the network g of its shape
    (equation 4) and [u'_t; delta'_t] = g(z_t) gives the change -alpha sum_t delta'_t u'_t^T, alpha trained, one per
    matrix. As in the authors' code, u' and delta' stay in normalised units. The change is a sum over tokens, never
    divided by how many there are.

    Departures: statistics are kept per matrix (theirs: per shape), are taken once before the first step (theirs: run
    along), so that the networks' inputs do not drift; alpha is exp of what is trained, so that it stays positive.
    """

    def __init__(self, config: MendConfig, shapes: Sequence[tuple[str, int, int]]):
        super().__init__()
        self.config, self.shapes = config, tuple(shapes)
        sizes = [(inputs, outputs) for _, inputs, outputs in self.shapes]
        self.networks = nn.ModuleDict(
            {_named(size): FactorNetwork(sum(size), config.rank, sizes.count(size)) for size in dict.fromkeys(sizes)}
        )
        self.statistics = nn.ModuleList(Statistics(sum(size)) for size in sizes)
        self.rates = nn.Parameter(torch.zeros(len(sizes)))
        self._places = [(_named(size), sizes[:index].count(size)) for index, size in enumerate(sizes)]

    def forward(self, gradients: Sequence[Factors]) -> list[Factors]:
        """Changes of the matrices, from the gradients of the edit losses in them."""
        rates = self.config.edit_rate * (_RATE_GAIN * self.rates).exp()
        statistics, changes = self._statistics(), []
        for index, gradient in enumerate(gradients):
            network, place = self._places[index]
            z = statistics[index](self._joined(gradient))
            z = self.networks[network](z, place).float()
            inputs, outputs = z.split([gradient.inputs.shape[-1], gradient.outputs.shape[-1]], -1)
            changes.append(Factors(inputs, -rates[index] * outputs, gradient.kept.to(outputs.device)))
        return changes

    @property
    def has_statistics(self) -> bool:
        """Whether gradients were accumulated. Until then, normalisation changes nothing."""
        return all(bool(part.count > 0) for part in self._statistics())

    def gather(self, gradients: Sequence[Factors]) -> None:
        """Take more gradients into the statistics."""
        for statistics, gradient in zip(self._statistics(), gradients, strict=True):
            statistics.gather(self._joined(gradient)[gradient.kept.to(self.rates.device)])

    def _joined(self, gradient: Factors) -> Tensor:
        """[u; delta] of every token, here: the layers of a model may be spread over devices."""
        return torch.cat([gradient.inputs, gradient.outputs], -1).to(self.rates.device)

    def _statistics(self) -> list[Statistics]:
        return cast("list[Statistics]", list(self.statistics))


class FactorNetwork(nn.Module):
    """g of equation 4, shared by `matrices` matrices of one shape, each with a scale s and a shift o of its own.

    h = z + relu(s1 * (U1 V1 z + b) + o1); g(z) = h + relu(s2 * U2 V2 h + o2). U starts at zero, so that g starts as
    the identity.
    """

    def __init__(self, size: int, rank: int, matrices: int):
        super().__init__()
        self.down = nn.ParameterList(nn.init.xavier_uniform_(torch.empty(rank, size)) for _ in range(2))
        self.up = nn.ParameterList(torch.zeros(size, rank) for _ in range(2))
        self.bias = nn.Parameter(torch.zeros(size))
        self.scale = nn.Parameter(torch.ones(matrices, 2, size))
        self.shift = nn.Parameter(torch.zeros(matrices, 2, size))

    def forward(self, z: Tensor, matrix: int) -> Tensor:
        """z: (..., size); matrix: which of those that share this network."""
        for step, (down, up) in enumerate(zip(self.down, self.up, strict=True)):
            inner = z @ down.T @ up.T
            inner = inner + self.bias if step == 0 else inner
            # Not relu: all starts at exactly 0, where relu passes no gradient and clamp does.
            z = z + (self.scale[matrix, step] * inner + self.shift[matrix, step]).clamp(min=0)
        return z


class Statistics(nn.Module):
    """Normalise by mean and standard deviation of the accumulated values. Without any, inputs are unchanged."""

    count: Tensor
    mean: Tensor
    squares: Tensor

    def __init__(self, size: int):
        super().__init__()
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("squares", torch.zeros(size))  # Sum of squared distances from the mean.

    def gather(self, values: Tensor) -> None:
        """Merge (values, size) into the statistics."""
        added = len(values)
        if not added:
            return
        values, total = values.double(), self.count.double() + added
        mean = values.mean(0)
        gap = mean - self.mean
        squares = (values - mean).square().sum(0) + gap.square() * (self.count.double() * added / total)
        self.squares += squares.float()
        self.mean += (gap * (added / total)).float()
        self.count += added

    def forward(self, values: Tensor) -> Tensor:
        """(..., size), normalised; a coordinate that never varied is only centred."""
        if self.count < 2:
            return values
        deviation = (self.squares / (self.count - 1)).sqrt()
        return (values - self.mean) / torch.where(deviation > 0, deviation, 1.0)


def _named(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
