"""Active edits that a new one may interfere with, estimated from the keys of both alone."""

from __future__ import annotations

import torch
from torch import Tensor

from ...answers import FIRING_THRESHOLD
from ...experts import ExpertRepository, LowRankExpert
from ...experts.repository import Feature
from ..base import Neighbour
from ..shared.routing import soft_weights
from .modules import LiveEditModules


@torch.no_grad()
def neighbours(
    modules: LiveEditModules, expert: LowRankExpert, repository: ExpertRepository, most: int
) -> list[Neighbour]:
    """Up to `most` active edits whose keys are most similar to those of an expert, most similar first."""
    if not len(repository) or most < 1:
        return []
    visual = _products(repository, "visual_feature", expert.visual_feature) * modules.visual_scale
    prompt = _products(repository, "prompt_feature", expert.prompt_feature) * modules.prompt_scale
    found = (visual + prompt).topk(min(most, len(repository)))
    pairs = zip(found.indices.tolist(), found.values.tolist(), strict=True)
    return [Neighbour(repository.id_of(row), nearness) for row, nearness in pairs]


@torch.no_grad()
def estimated_weights(
    modules: LiveEditModules, expert: LowRankExpert, margin: float, repository: ExpertRepository
) -> dict[str, float]:
    """Estimated weight of an expert in the answer to the question of each active edit, by its id.

    The estimate uses the keys of an edit in place of its question's features, which they were trained to resemble. It
    takes the sentinel's similarity from the expert's own question, which exceeds it by `margin`, and assumes that no
    third edit takes part. Only weights of at least `FIRING_THRESHOLD` are returned. If the expert itself is in the
    repository, what is returned for it means nothing.
    """
    if not len(repository):
        return {}
    own_visual, own_prompt = (part.to(repository.device) for part in (expert.visual_feature, expert.prompt_feature))
    threshold = modules.visual_score(own_visual, own_visual) - margin
    visual = _products(repository, "visual_feature", own_visual) * modules.visual_scale
    passing = (visual > threshold).nonzero().flatten().tolist()
    if not passing:
        return {}
    (prompts,) = repository.gather(passing, "prompt_feature")
    scores = torch.stack([modules.prompt_score(prompts, prompts), modules.prompt_score(prompts, own_prompt)], -1)
    shares = soft_weights(scores, modules.config.weighting)[:, 1].tolist()
    found = zip(passing, shares, strict=True)
    return {repository.id_of(row): share for row, share in found if share >= FIRING_THRESHOLD}


def _products(repository: ExpertRepository, name: Feature, feature: Tensor) -> Tensor:
    """(edits,) dot products of a feature with the same feature of every edit, without copying keys."""
    on_device = feature.to(repository.device)
    return torch.cat([part @ on_device for part in repository.parts(name)])
