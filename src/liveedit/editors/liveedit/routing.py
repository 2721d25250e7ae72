"""From a query to a residual: equations 5 to 7 of the paper."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ...experts import ExpertRepository
from ..base import Fired
from .config import LiveEditConfig
from .modules import LiveEditModules, QueryFeatures

_EXACT_ROWS = 256
"""Up to this many experts that pass, scores are taken one by one, so that no bit depends on their order."""


@dataclass(frozen=True)
class Routing:
    """The experts of a batch of queries, decided once and kept for the whole sequence.

    u, v: (batch, experts, r, d); weights: (batch, experts), 0 where a query has fewer experts than another.
    dropped_weight: per query, the summed weight of experts that passed but were left out (bounded mode).
    """

    u: Tensor
    v: Tensor
    weights: Tensor
    fired: tuple[tuple[Fired, ...], ...]
    dropped_weight: tuple[float, ...]


def soft_weights(scores: Tensor) -> Tensor:
    """`sigmoid(s) * softmax(s)` over the last dimension (equation 7); -inf marks experts that did not pass."""
    finite = torch.isfinite(scores)
    relative = torch.where(finite.any(-1, keepdim=True), scores, 0.0).softmax(-1)
    return torch.where(finite, scores.sigmoid() * relative, 0.0)


def expert_residual(states: Tensor, u: Tensor, v: Tensor, weights: Tensor, config: LiveEditConfig) -> Tensor:
    """`sum_e w_e relu(x U_e^T) V_e` (equation 6), with x the states or their LayerNorm.

    states: (batch, length, d); u, v: (batch, experts, r, d), or (experts, r, d) where all rows share them; weights:
    (batch, experts). Returns the shape of states.
    """
    x = F.layer_norm(states, states.shape[-1:]) if config.expert_input == "normed" else states
    scale = 1 / (5 * math.sqrt(config.rank)) if config.expert_scale == "fixed" else 1.0
    experts, rank = u.shape[-3:-1]
    active = F.relu(x @ u.flatten(-3, -2).transpose(-1, -2)).unflatten(-1, (experts, rank))
    return (active * (weights * scale)[:, None, :, None]).flatten(2) @ v.flatten(-3, -2)


@torch.no_grad()
def route(
    modules: LiveEditModules, query: QueryFeatures, reachable: Tensor, repository: ExpertRepository
) -> Routing | None:
    """Hard routing by what is seen, soft routing by what is asked; None where no expert passes for any query.

    reachable: (batch,) booleans, the queries that edits may reach at all.
    """
    if not len(repository):
        return None
    threshold = modules.visual_score(query.visual, query.sentinel)
    visual = (query.visual @ repository.visual_features.T) * modules.visual_scale
    passed = (visual > threshold[:, None]) & reachable[:, None]
    if not bool(passed.any()):
        return None
    chosen = [_choose(modules, query, row, passed[row], threshold[row], repository) for row in range(len(passed))]
    return _assemble(chosen, repository)


_Chosen = tuple[list[int], Tensor, Tensor, float]


def _choose(
    modules: LiveEditModules,
    query: QueryFeatures,
    row: int,
    passed: Tensor,
    threshold: Tensor,
    repository: ExpertRepository,
) -> _Chosen:
    """One query's experts: their rows, weights and margins in the order of their digests, and the dropped weight."""
    rows = passed.nonzero().flatten()
    if not len(rows):
        return [], torch.empty(0), torch.empty(0), 0.0
    bar = query.prompt[row]
    if len(rows) <= _EXACT_ROWS:
        rows = torch.tensor(sorted(rows.tolist(), key=repository.digest_of), device=passed.device)
        scores = modules.prompt_score(bar, repository.prompt_features[rows])
    else:
        scores = (repository.prompt_features[rows] @ bar) * modules.prompt_scale - modules.prompt_offset
    weights = soft_weights(scores)
    dropped = 0.0
    top = modules.config.top_experts
    if top is not None and len(rows) > top:
        kept = weights.topk(top).indices.sort().values
        dropped = float(weights.sum() - weights[kept].sum())
        rows, weights = rows[kept], weights[kept]
    margins = modules.visual_score(query.visual[row], repository.visual_features[rows]) - threshold
    return rows.tolist(), weights, margins, max(0.0, dropped)


def _assemble(chosen: list[_Chosen], repository: ExpertRepository) -> Routing:
    width = max(len(rows) for rows, *_ in chosen)
    device = repository.device
    index = torch.zeros(len(chosen), width, dtype=torch.long, device=device)
    weights = torch.zeros(len(chosen), width, device=device)
    for place, (rows, row_weights, _, _) in enumerate(chosen):
        if rows:
            index[place, : len(rows)] = torch.tensor(rows, device=device)
            weights[place, : len(rows)] = row_weights
    fired = tuple(
        tuple(
            Fired(repository.id_of(row), float(weight), float(margin))
            for row, weight, margin in zip(rows, row_weights, margins, strict=True)
        )
        for rows, row_weights, margins, _ in chosen
    )
    dropped = tuple(dropped for *_, dropped in chosen)
    return Routing(repository.u[index], repository.v[index], weights, fired, dropped)
