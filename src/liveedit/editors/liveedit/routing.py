"""From a query to a residual: equations 5 to 7 of the paper."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ...experts import ExpertRepository
from ..base import Fired
from .config import LiveEditConfig, Weighting
from .modules import LiveEditModules, QueryFeatures

_SCORED_AT_ONCE = 512
"""Experts scored in one go: few enough for the products to stay in the processor's cache."""

_SUM_STEP = 2.0**-40
"""Softmax totals are summed in whole multiples of this, so that no bit depends on the order of the experts."""


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


def soft_weights(scores: Tensor, weighting: Weighting = "both") -> Tensor:
    """`sigmoid(s) * softmax(s)` over the last dimension (equation 7); -inf marks experts that did not pass.

    With another weighting one factor alone, or the same weight for all that passed, whatever their scores.
    """
    finite = torch.isfinite(scores)
    if weighting == "equal":
        return finite / finite.sum(-1, keepdim=True).clamp(min=1)
    if weighting == "absolute":
        return torch.where(finite, scores.sigmoid(), 0.0)
    relative = torch.where(finite.any(-1, keepdim=True), scores, 0.0).softmax(-1)
    return torch.where(finite, relative if weighting == "relative" else scores.sigmoid() * relative, 0.0)


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


def changed_tokens(image: Tensor, text: Tensor, config: LiveEditConfig) -> Tensor:
    """Which tokens experts change, (batch, length) booleans: all, or the text behind the picture.

    Text before the picture (start token, "USER:") is left alone with "text", so that no state of the picture changes
    in any later layer.
    """
    if config.residual_tokens == "all":
        return image | text
    before_last_image_token = image.flip(1).cumsum(1).flip(1) > 0
    return text & ~before_last_image_token


@torch.no_grad()
def route(
    modules: LiveEditModules, query: QueryFeatures, reachable: Tensor, repository: ExpertRepository
) -> Routing | None:
    """Hard routing by what is seen, soft routing by what is asked; None where no expert passes for any query.

    reachable: (batch,) booleans, the queries that edits may reach at all.
    """
    if not len(repository):
        return None
    threshold, passed = hard_routed(modules, query, reachable, repository)
    if not bool(passed.any()):
        return None
    chosen = [_choose(modules, query, row, passed[row], threshold[row], repository) for row in range(len(passed))]
    return _assemble(chosen, repository)


def hard_routed(
    modules: LiveEditModules, query: QueryFeatures, reachable: Tensor, repository: ExpertRepository
) -> tuple[Tensor, Tensor]:
    """The sentinel's similarities, (batch,), and which experts exceed them, (batch, experts) booleans (equation 5)."""
    threshold = modules.visual_score(query.visual, query.sentinel)
    visual = (query.visual @ repository.visual_features.T) * modules.visual_scale
    return threshold, (visual > threshold[:, None]) & reachable[:, None]


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
    # Scores one by one, a total without rounding, experts mixed in the order of their digests: no bit depends on
    # the order in which edits came and went.
    weighting, dropped, top = modules.config.weighting, 0.0, modules.config.top_experts
    if weighting == "equal":  # Nothing but the margin of hard routing is left to choose the kept by.
        scores = modules.visual_score(query.visual[row], repository.visual_features[rows])
    else:
        scores = _prompt_scores(modules, query.prompt[row], rows, repository)
    weights = _order_free_weights(scores, weighting)
    if top is not None and len(rows) > top:
        kept = scores.topk(top).indices if weighting != "equal" else _first(scores, rows, repository, top)
        dropped = float(weights.sum() - weights[kept].sum())
        rows, weights = rows[kept], weights[kept]
    found = rows.tolist()
    order = sorted(
        range(len(found)),
        key=lambda place: (repository.digest_of(found[place]), repository.id_of(found[place])),
    )
    rows, weights = rows[order], weights[order]
    margins = modules.visual_score(query.visual[row], repository.visual_features[rows]) - threshold
    return rows.tolist(), weights, margins, max(0.0, dropped)


def _prompt_scores(modules: LiveEditModules, bar: Tensor, rows: Tensor, repository: ExpertRepository) -> Tensor:
    """s of these rows, (rows,)."""
    features = repository.prompt_features
    if 2 * len(rows) > len(features):  # Gathering so many rows would cost more than scoring the others too.
        scores = torch.cat([modules.prompt_score(bar, part) for part in features.split(_SCORED_AT_ONCE)])
        return scores if len(rows) == len(features) else scores[rows]
    return modules.prompt_score(bar, features[rows])


def _first(scores: Tensor, rows: Tensor, repository: ExpertRepository, count: int) -> Tensor:
    """Places of the highest scores; of equal ones (two questions about one picture) those of the first digests."""
    values, found = scores.tolist(), rows.tolist()
    order = sorted(range(len(values)), key=lambda place: (-values[place], repository.digest_of(found[place])))
    return torch.tensor(order[:count], device=scores.device)


def _order_free_weights(scores: Tensor, weighting: Weighting) -> Tensor:
    """`soft_weights` of one query's scores, (experts,), to the same bits whatever their order."""
    if weighting == "equal":
        return torch.full_like(scores, 1 / len(scores))
    # Not Tensor.sigmoid: its last bit depends on the place within a vector register.
    doubt = 1 + (-scores).exp()
    if weighting == "absolute":
        return 1 / doubt
    shares = (scores - scores.max()).exp()
    total = (shares.double() / _SUM_STEP).round().long().sum() * _SUM_STEP
    relative = shares / total.to(shares.dtype)
    return relative if weighting == "relative" else relative / doubt


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
            Fired(repository.id_of(row), weight, margin)
            for row, weight, margin in zip(rows, row_weights.tolist(), margins.tolist(), strict=True)
        )
        for rows, row_weights, margins, _ in chosen
    )
    dropped = tuple(dropped for *_, dropped in chosen)
    return Routing(repository.u[index], repository.v[index], weights, fired, dropped)
