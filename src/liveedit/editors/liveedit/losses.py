"""The losses of section 4.3, in the paper's form and in the form that the built-in editor is trained with.

Those in the paper's form are given for each query: the task adds them up (equation 12) or averages them, as
`LiveEditLosses.reduction` says. The others are means. All losses are in nats.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
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
) -> Float[Tensor, " queries"]:
    """Equation 13 of each query: InfoNCE over the batch's edits and the sentinel.

    visual, sentinel: similarities of the queries to edits and to the sentinel. The target of a query is its own edit,
    or the sentinel if it has none. Several own edits of a query share the target.
    """
    scores = torch.cat([visual, sentinel[:, None]], 1).log_softmax(1)
    outside = ~own.any(1, keepdim=True)
    wanted = torch.cat([own, outside], 1).float()
    return -(scores * wanted / wanted.sum(1, keepdim=True)).sum(1)


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


def drawn_others(own: Bool[Tensor, "queries candidates"], generator: torch.Generator) -> Int[Tensor, " queries"]:
    """For each query one random candidate that is not its own, all with the same probability (equation 15).

    generator: of the CPU, so that the draws are the same on every device.
    """
    return torch.multinomial((~own).float().cpu(), 1, generator=generator)[:, 0].to(own.device)


def soft_routing_paper(
    prompt: Float[Tensor, "queries candidates"],
    own: Bool[Tensor, "queries candidates"],
    others: Int[Tensor, " queries"],
    terms: SoftTerms = "both",
) -> Float[Tensor, " queries"]:
    """Equations 15 and 16 of each query: sigmoid loss on its own edit and on another candidate, InfoNCE over all.

    prompt: similarities s of in-scope queries to the candidates, which are the edits and the locality inputs of the
    batch, all with edit-side features. own: the edits of a query; it has at least one. others: the other candidate of
    equation 15, from `drawn_others`. terms: both, or equation 15 ("absolute") or 16 ("relative") alone.
    """
    count = own.sum(1)
    absolute = relative = prompt.new_zeros(len(prompt))
    if terms != "relative":
        own_score, other_score = (prompt * own).sum(1) / count, prompt.gather(1, others[:, None])[:, 0]
        absolute = -F.logsigmoid(own_score) - F.logsigmoid(-other_score)
    if terms != "absolute":
        relative = -(prompt.log_softmax(1) * own).sum(1) / count
    return absolute + relative


def soft_routing_masked(
    prompt: Float[Tensor, "queries edits"], kinds: PairKinds, negative_weight: float, terms: SoftTerms = "both"
) -> Float[Tensor, ""]:
    """As `soft_routing_paper`, but edits that ask the same question are no negatives, all negatives count, and the
    mean over the queries is returned.

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
