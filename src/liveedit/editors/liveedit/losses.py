"""The losses of section 4.3, in the paper's form and in the form that the built-in editor is trained with.

All of them are averaged over what they sum over in the paper (edits, pairs, answer tokens): the released code does
so as well, and the balance of the terms then does not depend on the batch size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from ..shared.losses import answer_nll as answer_nll
from ..shared.losses import locality_kl as locality_kl

SoftTerms = Literal["both", "absolute", "relative"]
"""Terms of the soft-routing loss: equation 15 is the absolute one, equation 16 the relative one."""


@dataclass(frozen=True)
class PairKinds:
    """How queries and edits of a batch belong together.

    own: (queries, edits) booleans, true where the query is in the edit's scope.
    asks_same: (queries, edits) booleans, true where both ask the same of whatever they show.
    """

    own: Tensor
    asks_same: Tensor


def hard_routing_paper(visual: Tensor, sentinel: Tensor, own: Tensor) -> Tensor:
    """Equation 13: InfoNCE over the batch's edits and the sentinel.

    visual: (queries, edits) similarities; sentinel: (queries,). A query with an own edit is to find it, one without
    is to find the sentinel. Where a query has several own edits they share the target.
    """
    scores = torch.cat([visual, sentinel[:, None]], 1).log_softmax(1)
    outside = ~own.any(1, keepdim=True)
    wanted = torch.cat([own, outside], 1).float()
    return -(scores * wanted / wanted.sum(1, keepdim=True)).sum(1).mean()


def hard_routing_margin(
    visual: Tensor, sentinel: Tensor, own: Tensor, ignored: Tensor, margin: float, negative_weight: float
) -> Tensor:
    """Asks what routing will ask: own edits above the sentinel, all others below it, each by a margin.

    `log(1 + sum exp(s_j - s_sentinel + m))` over other edits bounds the worst of them, which decides whether any
    expert fires wrongly; InfoNCE over the batch leaves the order of sentinel and others open.
    """
    gap = visual - sentinel[:, None]
    positive = F.softplus(margin - gap)[own].mean()
    others = (gap + margin).masked_fill(own | ignored, float("-inf"))
    nothing = torch.zeros_like(sentinel)[:, None]
    negative = torch.cat([others, nothing], 1).logsumexp(1).mean()
    return positive + negative_weight * negative


def soft_routing_paper(prompt: Tensor, own: Tensor, generator: torch.Generator, terms: SoftTerms = "both") -> Tensor:
    """Equations 15 and 16: sigmoid loss on the own edit and one random other, InfoNCE over the batch.

    prompt: (queries, edits) similarities s of queries that have an own edit; own: which edit it is. The other edit is
    drawn on the CPU, with a generator of the CPU: the same one wherever the rest runs. terms: both, or equation 15
    ("absolute") or 16 ("relative") alone.
    """
    inside = own.any(1)
    scores, own = prompt[inside], own[inside].float()
    absolute = relative = scores.new_zeros(len(scores))
    if terms != "relative":
        drawn = torch.multinomial(1 - own.cpu(), 1, generator=generator).to(own.device)
        absolute = -F.logsigmoid((scores * own).sum(1) / own.sum(1)) - F.logsigmoid(-scores.gather(1, drawn)[:, 0])
    if terms != "absolute":
        relative = -(scores.log_softmax(1) * own).sum(1) / own.sum(1)
    return (absolute + relative).mean()


def soft_routing_masked(prompt: Tensor, kinds: PairKinds, negative_weight: float, terms: SoftTerms = "both") -> Tensor:
    """As `soft_routing_paper`, but an edit that asks the same is no negative, and all negatives count.

    Two edits that ask the same of different images have the same prompt feature by definition; the paper's form
    asks to tell them apart by it.

    `both`: -log sigmoid(s) of own edits, and log(1 + sum exp s_j) over the others, which compares all of them with 0
    at once. It is no sum of two terms; alone, each is what the paper's is when same askers are masked out. `absolute`:
    -log sigmoid(s) of own edits and -log(1 - sigmoid(s_j)) of the others, averaged over them (equation 15 draws one).
    `relative`: InfoNCE of each own edit among the others (equation 16), for queries that have one.
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
