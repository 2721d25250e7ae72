"""The losses of section 4.3, in the paper's form and in the form that the built-in editor is trained with.

Relative to the paper, sums over edits, pairs and answer tokens are means, as in the released code, so that the balance
of the terms does not depend on the batch size. All losses are in nats.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from ..shared.losses import answer_nll as answer_nll
from ..shared.losses import locality_kl as locality_kl

SoftTerms = Literal["both", "absolute", "relative"]
"""Terms of the soft-routing loss: equation 15 is the absolute one, equation 16 the relative one."""


@dataclass(frozen=True)
class PairKinds:
    """How the queries and edits of a batch are related.

    own: whether the query is in the edit's scope. asks_same: whether both ask the same question, of whatever image.
    """

    own: Bool[Tensor, "queries edits"]
    asks_same: Bool[Tensor, "queries edits"]


def hard_routing_paper(
    visual: Float[Tensor, "queries edits"], sentinel: Float[Tensor, " queries"], own: Bool[Tensor, "queries edits"]
) -> Float[Tensor, ""]:
    """Equation 13: InfoNCE over the batch's edits and the sentinel.

    visual, sentinel: similarities of the queries to edits and to the sentinel. The target of a query is its own edit,
    or the sentinel if it has none. Several own edits of a query share the target.
    """
    scores = torch.cat([visual, sentinel[:, None]], 1).log_softmax(1)
    outside = ~own.any(1, keepdim=True)
    wanted = torch.cat([own, outside], 1).float()
    return -(scores * wanted / wanted.sum(1, keepdim=True)).sum(1).mean()


def hard_routing_margin(
    visual: Float[Tensor, "queries edits"],
    sentinel: Float[Tensor, " queries"],
    own: Bool[Tensor, "queries edits"],
    ignored: Bool[Tensor, "queries edits"],
    margin: float,
    negative_weight: float,
) -> Float[Tensor, ""]:
    """The condition of hard routing as a loss: own edits above the sentinel, all others below it, each by a margin.

    `log(1 + sum_j exp(s_j - s_sentinel + m))` over the other edits j is an upper bound for the worst of them, which
    decides whether any expert fires wrongly. InfoNCE over the batch does not determine the order of the sentinel and
    the others. Relative to the paper this replaces equation 13. ignored: pairs that are no negatives.
    """
    gap = visual - sentinel[:, None]
    positive = F.softplus(margin - gap)[own].mean()
    others = (gap + margin).masked_fill(own | ignored, float("-inf"))
    nothing = torch.zeros_like(sentinel)[:, None]
    negative = torch.cat([others, nothing], 1).logsumexp(1).mean()
    return positive + negative_weight * negative


def soft_routing_paper(
    prompt: Float[Tensor, "queries edits"],
    own: Bool[Tensor, "queries edits"],
    generator: torch.Generator,
    terms: SoftTerms = "both",
) -> Float[Tensor, ""]:
    """Equations 15 and 16: sigmoid loss on the own edit and one random other, InfoNCE over the batch.

    prompt: similarities s. Queries without an own edit do not count. generator: of the CPU, where the other edit is
    drawn, so that it is the same on every device. terms: both, or equation 15 ("absolute") or 16 ("relative") alone.
    """
    inside = own.any(1)
    scores, wanted = prompt[inside], own[inside].float()
    absolute = relative = scores.new_zeros(len(scores))
    if terms != "relative":
        drawn = torch.multinomial(1 - wanted.cpu(), 1, generator=generator).to(wanted.device)
        own_score, other_score = (scores * wanted).sum(1) / wanted.sum(1), scores.gather(1, drawn)[:, 0]
        absolute = -F.logsigmoid(own_score) - F.logsigmoid(-other_score)
    if terms != "absolute":
        relative = -(scores.log_softmax(1) * wanted).sum(1) / wanted.sum(1)
    return (absolute + relative).mean()


def soft_routing_masked(
    prompt: Float[Tensor, "queries edits"], kinds: PairKinds, negative_weight: float, terms: SoftTerms = "both"
) -> Float[Tensor, ""]:
    """As `soft_routing_paper`, but edits that ask the same question are no negatives, and all negatives count.

    Two edits that ask the same question of different images have the same prompt feature by definition; the paper's
    form would train to separate them by it. terms:

    - "both": -log sigmoid(s) of own edits, and log(1 + sum_j exp s_j) over the others, which compares all of them with
      0 at once. It is not the sum of the other two.
    - "absolute": -log sigmoid(s) of own edits, and the mean of -log(1 - sigmoid(s_j)) over the others (equation 15
      draws one of them).
    - "relative": InfoNCE of each own edit among the others (equation 16).
    """
    same = kinds.asks_same | kinds.own
    others = prompt.masked_fill(same, float("-inf"))
    if terms == "relative":
        joint = torch.logaddexp(prompt, others.logsumexp(1, keepdim=True)) - prompt
        return joint[kinds.own].mean() if bool(kinds.own.any()) else prompt.sum() * 0
    positive = F.softplus(-prompt)[kinds.own].mean() if bool(kinds.own.any()) else prompt.sum() * 0
    if terms == "absolute":
        each = F.softplus(prompt).masked_fill(same, 0.0).sum(1) / (~same).sum(1).clamp(min=1)
        return positive + negative_weight * each.mean()
    nothing = torch.zeros_like(prompt[:, :1])
    negative = torch.cat([others, nothing], 1).logsumexp(1).mean()
    return positive + negative_weight * negative
