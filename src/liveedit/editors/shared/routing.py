"""From a query to a residual: equations 5 to 7 of the paper."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from torch.nn import functional as F

from ...answers import Fired
from ...backbones.tokens import TokenBatch
from ...experts import ExpertRepository

Weighting = Literal["both", "absolute", "relative", "equal"]
"""Weight of one of n experts that passed hard routing: sigmoid(s) softmax(s), sigmoid(s), softmax(s), or 1/n."""

_SCORED_AT_ONCE = 512
"""Experts scored at once: few enough that the products fit into the processor's cache."""

_PAIRS_AT_ONCE = 4096
"""Pairs of query and expert that are compared in double precision at once."""

_MATMUL_ROUNDING = {"highest": 2.0**-23, "high": 2.0**-10, "medium": 2.0**-7}
"""Twice the rounding error of one operation in a matrix product, by `torch.set_float32_matmul_precision`."""

_ASKED_THE_SAME: Final = 0.5
"""From this weight on, an expert's edit asks for what the query asks for."""

_SAME_DISTANCE: Final = 1e-11
"""Tolerance for squared distances between features: smaller differences come from rounding."""

_SUM_STEP = 2.0**-40
"""Softmax totals are summed in whole multiples of this, so that the order of the experts changes no bit."""


class Combining(BaseModel):
    """What becomes of several experts that pass hard routing, and of their weights.

    Not part of the trained modules: it can be changed whenever an editor is loaded.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    combine: Literal["sum", "nearest"] = Field(
        default="sum",
        description="The sum of all experts, by their soft weights (paper, equation 6), or the nearest one alone: "
        "answers of different edits are never added up. Of equally near ones the newest is taken.",
    )
    weight_threshold: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="A weight of at least this becomes 1, a smaller one 0: an expert changes an answer wholly or not "
        "at all. None keeps the weights (paper).",
    )


@dataclass(frozen=True)
class QueryFeatures:
    """Features of a batch of queries: phi_bar (visual), phi_bar of the sentinel, psi_bar (prompt).

    own: what is compared with `LowRankExpert.query_feature` to find the nearest of several experts; by default phi_bar.
    """

    visual: Float[Tensor, "batch feature_width"]
    sentinel: Float[Tensor, "batch feature_width"]
    prompt: Float[Tensor, "batch prompt_width"]
    own: Float[Tensor, "batch own_width"] | None = None

    @property
    def compared(self) -> Float[Tensor, "batch compared_width"]:
        """`own`, or phi_bar."""
        return self.visual if self.own is None else self.own

    @classmethod
    def joined(cls, parts: Sequence[QueryFeatures]) -> QueryFeatures:
        """Several batches as one."""
        own = [part.own for part in parts if part.own is not None]
        return cls(
            torch.cat([part.visual for part in parts]),
            torch.cat([part.sentinel for part in parts]),
            torch.cat([part.prompt for part in parts]),
            torch.cat(own) if own else None,
        )


@runtime_checkable
class ExpertForm(Protocol):
    """How an expert changes hidden states: settings that an editor's configuration has."""

    @property
    def rank(self) -> int:
        """Number of rows of U and V, for a short answer."""
        ...

    @property
    def expert_input(self) -> Literal["states", "normed"]:
        """What an expert reads: hidden states, or their LayerNorm."""
        ...

    @property
    def expert_scale(self) -> Literal["none", "fixed"]:
        """Factor on an expert's output: 1, or 1 / (5 sqrt(rank))."""
        ...

    @property
    def residual_tokens(self) -> Literal["all", "text", "answer"]:
        """Which tokens experts change: see `changed_tokens`."""
        ...


@runtime_checkable
class Similarities(Protocol):
    """How an editor compares the features of queries and edits."""

    @property
    def config(self) -> Any:
        """Settings with `weighting` and `top_experts`."""
        ...

    @property
    def visual_scale(self) -> Tensor | float:
        """Factor on dot products of visual features."""
        ...

    def visual_score(self, query: Tensor, edit: Tensor) -> Tensor:
        """Similarity of visual features, along the last dimension."""
        ...

    def prompt_score(self, query: Tensor, edit: Tensor) -> Tensor:
        """Similarity s of prompt features, along the last dimension."""
        ...


@dataclass(frozen=True)
class Routing:
    """The experts of a batch of queries, decided once and kept for the whole sequence.

    weights: 0 where a query has fewer experts than another.
    dropped_weight: for each query, the sum of the weights of experts that passed, but were left out by `top_experts`.
    """

    u: Float[Tensor, "batch experts r d"]
    v: Float[Tensor, "batch experts r d"]
    weights: Float[Tensor, "batch experts"]
    fired: tuple[tuple[Fired, ...], ...]
    dropped_weight: tuple[float, ...]

    def of_row(self, row: int) -> Routing | None:
        """The experts of one query, without those of weight 0 that fill it up; None if it has none."""
        if not (count := len(self.fired[row])):
            return None
        part = slice(row, row + 1)
        experts = (self.u[part, :count], self.v[part, :count], self.weights[part, :count])
        return Routing(*experts, self.fired[part], self.dropped_weight[part])


def soft_weights(
    scores: Float[Tensor, "*batch experts"], weighting: Weighting = "both"
) -> Float[Tensor, "*batch experts"]:
    """`sigmoid(s) * softmax(s)` over the last dimension (equation 7); -inf marks experts that did not pass.

    weighting: "both" factors; the "absolute" (sigmoid) or "relative" (softmax) one alone; or "equal" weights for all
    experts that passed.
    """
    finite = torch.isfinite(scores)
    if weighting == "equal":
        return finite / finite.sum(-1, keepdim=True).clamp(min=1)
    if weighting == "absolute":
        return torch.where(finite, scores.sigmoid(), 0.0)
    relative = torch.where(finite.any(-1, keepdim=True), scores, 0.0).softmax(-1)
    return torch.where(finite, relative if weighting == "relative" else scores.sigmoid() * relative, 0.0)


def expert_residual(
    hidden_states: Float[Tensor, "batch tokens d"],
    u: Float[Tensor, "*rows experts r d"],
    v: Float[Tensor, "*rows experts r d"],
    weights: Float[Tensor, "#batch experts"],
    form: ExpertForm,
) -> Float[Tensor, "batch tokens d"]:
    """`sum_e w_e relu(x U_e^T) V_e` (equation 6), with x the hidden states or their LayerNorm.

    u and v have no batch dimension if all rows share the experts.
    """
    normed = form.expert_input == "normed"
    x = F.layer_norm(hidden_states, hidden_states.shape[-1:]) if normed else hidden_states
    scale = output_scale(form)
    experts, rank = u.shape[-3:-1]
    active = F.relu(x @ u.flatten(-3, -2).transpose(-1, -2)).unflatten(-1, (experts, rank))
    return (active * (weights * scale)[:, None, :, None]).flatten(2) @ v.flatten(-3, -2)


def output_scale(form: ExpertForm) -> float:
    """The factor on an expert's output; it does not depend on the rank of a larger expert."""
    return 1 / (5 * math.sqrt(form.rank)) if form.expert_scale == "fixed" else 1.0


def changed_tokens(tokens: TokenBatch, form: ExpertForm) -> Bool[Tensor, "batch tokens"]:
    """Which tokens experts change.

    "all": image and text. "text": the text after the image; text before it (start token, "USER:") is not changed, so
    that no hidden state of the image changes in any later layer. "answer": the last token of the prompt and the answer,
    which are the tokens whose hidden states become the answer.
    """
    if form.residual_tokens == "all":
        return tokens.image_mask | tokens.text_mask
    if form.residual_tokens == "answer":
        last_of_prompt = tokens.prompt_mask & (tokens.prompt_mask.flip(1).cumsum(1).flip(1) == 1)
        return tokens.answer_mask | last_of_prompt
    before_last_image_token = tokens.image_mask.flip(1).cumsum(1).flip(1) > 0
    return tokens.text_mask & ~before_last_image_token


AS_PUBLISHED: Final = Combining()
"""The paper's combination: the sum of all experts that pass, by their soft weights."""


@torch.no_grad()
def route(
    similarities: Similarities,
    query: QueryFeatures,
    reachable: Bool[Tensor, " batch"],
    repository: ExpertRepository,
    combining: Combining = AS_PUBLISHED,
    factor: float = 1.0,
) -> Routing | None:
    """Hard routing by image (equation 5), then soft routing by prompt (equation 7).

    None if no expert passes for any query. reachable: the queries that are in the editor's scope. factor: a factor on
    every weight, applied before its threshold.
    """
    if not len(repository):
        return None
    passed = hard_routed(query, reachable, repository)
    if not bool(passed.any()):
        return None
    choose = _choose_nearest if combining.combine == "nearest" else _choose_all
    found = [choose(similarities, query, row, passed[row], repository) for row in range(len(passed))]
    chosen = [_weighted(one, factor, combining.weight_threshold) for one in found]
    return _assemble(chosen, repository) if any(rows for rows, *_ in chosen) else None


def hard_routed(
    query: QueryFeatures, reachable: Bool[Tensor, " batch"], repository: ExpertRepository
) -> Bool[Tensor, "batch experts"]:
    """Which experts are more similar to the query than the sentinel is (equation 5).

    How a matrix product rounds depends on its size, and products with 8-bit copies of features are estimates. An
    expert that is so near to the sentinel that this could decide is therefore compared alone, in double precision:
    which experts pass does not depend on their place in the repository, nor on where it keeps them. The scale of the
    similarities is left out: it is positive and does not change the order.
    """
    sentinel = torch.where(reachable, (query.visual * query.sentinel).sum(-1), torch.inf)[:, None]
    passing, doubtful = [], []
    # Not in the lower precision of a caller: fewer experts are in doubt.
    with torch.autocast(query.visual.device.type, enabled=False):
        for products, error in repository.products(query.visual):
            margin = _rounding(query, repository.longest_visual_feature, products.dtype)[:, None] + error
            passing.append(products > sentinel + margin)
            doubtful.append((products >= sentinel - margin) ^ passing[-1])
    passed, in_doubt = torch.cat(passing, 1), torch.cat(doubtful, 1).nonzero()
    for pairs in in_doubt.split(_PAIRS_AT_ONCE) if len(in_doubt) else ():
        row, expert = pairs.unbind(1)
        (edit,) = repository.gather(expert, "visual_feature")
        passed[row, expert] = _exact_gap(query.visual[row], edit, query.sentinel[row]) > 0
    return passed


def _rounding(query: QueryFeatures, longest: float, computed_in: torch.dtype) -> Tensor:
    """Bound, (batch,), on the rounding error of query . edit - query . sentinel: `n u |query| (|edit| + |sentinel|)`.

    n: the length of the features, with a small margin; u: the rounding error of one operation.
    """
    rounding = max(_MATMUL_ROUNDING[torch.get_float32_matmul_precision()], torch.finfo(computed_in).eps)
    count = query.visual.shape[-1] + 4
    return count * rounding * query.visual.norm(dim=-1) * (query.sentinel.norm(dim=-1) + longest)


def _exact_gap(query: Tensor, edit: Tensor, sentinel: Tensor) -> Tensor:
    """query . edit - query . sentinel in double precision along the last dimension: 0 if both are equal."""
    return (query.double() * (edit.double() - sentinel.double())).sum(-1)


_Chosen = tuple[list[int], Tensor, Tensor, float]
"""Rows of experts, their weights and margins, and the weight of experts that were left out."""

_NONE: Final[_Chosen] = ([], torch.empty(0), torch.empty(0), 0.0)


def _choose_all(
    similarities: Similarities, query: QueryFeatures, row: int, passed: Tensor, repository: ExpertRepository
) -> _Chosen:
    """One query's experts: their rows, weights and margins in the order of their digests, and the dropped weight."""
    rows = passed.nonzero().flatten()
    if not len(rows):
        return _NONE
    # Each score is computed alone, the total is summed without rounding, and experts are mixed in the order of their
    # digests: no bit depends on the order in which edits were added and undone.
    weighting, dropped, top = similarities.config.weighting, 0.0, similarities.config.top_experts
    scores = _soft_scores(similarities, query, row, rows, repository)
    weights = _order_free_weights(scores, weighting)
    if top is not None and len(rows) > top:
        kept = _first(scores, rows, repository, top)
        dropped = float(weights.sum() - weights[kept].sum())
        rows, weights = rows[kept], weights[kept]
    found = rows.tolist()
    order = sorted(
        range(len(found)),
        key=lambda place: (repository.digest_of(found[place]), repository.id_of(found[place])),
    )
    rows, weights = rows[order], weights[order]
    return rows.tolist(), weights, _margins(similarities, query, row, rows, repository), max(0.0, dropped)


def _choose_nearest(
    similarities: Similarities, query: QueryFeatures, row: int, passed: Tensor, repository: ExpertRepository
) -> _Chosen:
    """The one expert whose edit's own question is most similar to the query, as if it had passed alone.

    Only experts count that would have a weight of a half or more if they were alone, if there are any. An edit's own
    question is nearest to itself: its features are the same. Equally near are edits of the same question, of which the
    newest counts.
    """
    rows = passed.nonzero().flatten()
    if not len(rows):
        return _NONE
    alone = _weights_alone(_soft_scores(similarities, query, row, rows, repository), similarities.config.weighting)
    if bool((alone >= _ASKED_THE_SAME).any()):
        rows, alone = rows[alone >= _ASKED_THE_SAME], alone[alone >= _ASKED_THE_SAME]
    (own,) = repository.gather(rows, "query_feature")
    distance = (own.double() - query.compared[row].double()).square().sum(-1)
    near = (distance <= distance.min() + _SAME_DISTANCE).nonzero().flatten().tolist()
    best = max(near, key=lambda place: repository.age_of(int(rows[place])))
    rows = rows[[best]]
    return rows.tolist(), alone[[best]], _margins(similarities, query, row, rows, repository), 0.0


def _weighted(chosen: _Chosen, factor: float, threshold: float | None) -> _Chosen:
    """The weights times a factor, then 0 or 1 by the threshold, if there is one. Experts of weight 0 are left out."""
    rows, weights, margins, dropped = chosen
    if factor == 1.0 and threshold is None:
        return chosen
    weights = weights * factor
    if threshold is None:
        return rows, weights, margins, dropped
    kept = (weights >= threshold).nonzero().flatten()
    return [rows[place] for place in kept.tolist()], torch.ones_like(weights[kept]), margins[kept], 0.0


def _soft_scores(
    similarities: Similarities, query: QueryFeatures, row: int, rows: Tensor, repository: ExpertRepository
) -> Tensor:
    """s of these experts, (rows,). With equal weights only the margin of hard routing can decide between them."""
    if similarities.config.weighting == "equal":
        return similarities.visual_score(query.visual[row], *repository.gather(rows, "visual_feature"))
    return _prompt_scores(similarities, query.prompt[row], rows, repository)


def _weights_alone(scores: Tensor, weighting: Weighting) -> Tensor:
    """The weight that each expert would have if no other had passed: sigmoid(s) or 1, (experts,)."""
    return 1 / (1 + (-scores).exp()) if weighting in ("both", "absolute") else torch.ones_like(scores)


def _margins(
    similarities: Similarities, query: QueryFeatures, row: int, rows: Tensor, repository: ExpertRepository
) -> Tensor:
    return _gaps(query, row, rows, repository).float() * similarities.visual_scale


def _gaps(query: QueryFeatures, row: int, rows: Tensor, repository: ExpertRepository) -> Tensor:
    """query . edit - query . sentinel of one query and these experts, (rows,)."""
    parts = (repository.gather(some, "visual_feature")[0] for some in rows.split(_SCORED_AT_ONCE))
    return torch.cat([_exact_gap(query.visual[row], edit, query.sentinel[row]) for edit in parts])


def _prompt_scores(similarities: Similarities, query: Tensor, rows: Tensor, repository: ExpertRepository) -> Tensor:
    """s of these rows, (rows,)."""
    # On a CPU, gathering more than half of the rows costs more than scoring all. On other devices, the rounding of a
    # sum may depend on the size of the product, so exactly the experts that passed are scored.
    if repository.device.type == "cpu" and 2 * len(rows) > len(repository):
        parts = repository.parts("prompt_feature", _SCORED_AT_ONCE)
        scores = torch.cat([similarities.prompt_score(query, part) for part in parts])
        return scores if len(rows) == len(repository) else scores[rows]
    return similarities.prompt_score(query, *repository.gather(rows, "prompt_feature"))


def _first(scores: Tensor, rows: Tensor, repository: ExpertRepository, count: int) -> Tensor:
    """Places of the highest scores. Among equal ones (two edits with the same question) the first digests win."""
    lowest = scores.topk(count).values[-1]
    above, equal = (scores > lowest).nonzero().flatten(), (scores == lowest).nonzero().flatten()
    wanted = count - len(above)
    if len(equal) > wanted:
        found = rows[equal].tolist()
        order = sorted(
            range(len(found)), key=lambda place: (repository.digest_of(found[place]), repository.id_of(found[place]))
        )
        equal = equal[order[:wanted]]
    return torch.cat([above, equal])


def _order_free_weights(scores: Tensor, weighting: Weighting) -> Tensor:
    """`soft_weights` of one query's scores, (experts,). The order of the scores changes no bit."""
    if weighting == "equal":
        return torch.full_like(scores, 1 / len(scores))
    # Not Tensor.sigmoid: its last bit depends on the place of the number within a vector register.
    doubt = 1 + (-scores).exp()
    if weighting == "absolute":
        return 1 / doubt
    shares = (scores - scores.max()).exp()
    total = (shares.double() / _SUM_STEP).round().long().sum() * _SUM_STEP
    relative = shares / total.to(shares.dtype)
    return relative if weighting == "relative" else relative / doubt


def _assemble(chosen: list[_Chosen], repository: ExpertRepository) -> Routing:
    width = max(len(rows) for rows, *_ in chosen)
    # Shorter rows are filled up with the first row, at weight 0.
    wanted = torch.tensor([rows + [0] * (width - len(rows)) for rows, *_ in chosen])
    weights = torch.zeros(len(chosen), width, device=repository.device)
    for place, (rows, row_weights, _, _) in enumerate(chosen):
        if rows:
            weights[place, : len(rows)] = row_weights
    fired = tuple(
        tuple(
            Fired(repository.id_of(row), weight, margin)
            for row, weight, margin in zip(rows, row_weights.tolist(), margins.tolist(), strict=True)
        )
        for rows, row_weights, margins, _ in chosen
    )
    dropped = tuple(dropped for *_, dropped in chosen)
    u, v = repository.gather_matrices(wanted)
    return Routing(u, v, weights, fired, dropped)
