"""KV anchor routing: an anchor's value is compared with the experts' keys, in training as in answering."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from .config import LemoeConfig

_OUT = float("-inf")
_CROSSED_APART = 0.9
"""A crossed anchor of a higher cosine to a real one is no example of another question."""


@dataclass(frozen=True)
class Route:
    """Experts of a batch of questions: numbers, (batch, k), -1 for none, and weights, (batch, k).

    anchors: (batch, a), those of the questions, where a key found the experts.
    """

    experts: Tensor
    weights: Tensor
    anchors: Tensor | None = None

    @property
    def is_the_same_for_all(self) -> bool:
        """Whether all questions have the same experts at the same weights."""
        return all(bool((part == part[:1]).all()) for part in (self.experts, self.weights))


class Nearest(NamedTuple):
    """The edit of an expert whose anchor is nearest to a question's.

    place: its place among the expert's edits. margin: by how much the cosine is above the threshold; without a
    threshold, the cosine.
    """

    expert: int
    place: int
    weight: float
    margin: float


class KeyRouter:
    """`v = W_up silu(W_down e)`, `g(i | e) = top_k softmax_i(k_i . v / sqrt(d_v))`.

    keys: (experts, d_v), frozen once made. anchors: (edits, a), those of every edit so far, and owner: (edits,), the
    expert of each; they are few numbers beside an expert, and are what a new key learns to stay away from.

    Reconstructed: the division by sqrt(d_v); the anchors kept; the null expert. With `null_expert="threshold"` an
    expert may fire only if the question's anchor has a cosine of at least `threshold` to one of its own; with "key"
    there is a further expert with the key 0, which does nothing.
    """

    def __init__(self, config: LemoeConfig, anchor_width: int, device: torch.device, everyday: Tensor | None = None):
        """everyday: (questions, a) anchors of questions that are no edits, the examples of the null key."""
        self.config, self.device = config, device
        generator = torch.Generator().manual_seed(config.seed)
        down = torch.randn(config.projection_width, anchor_width, generator=generator) * config.projection_gain
        up = torch.randn(config.value_width, config.projection_width, generator=generator)
        self.down = down.to(device)
        self.up = (up / math.sqrt(config.projection_width)).to(device)
        self.keys = torch.empty(0, config.value_width, device=device)
        self.anchors = torch.empty(0, anchor_width, device=device)
        self.owner = torch.empty(0, dtype=torch.long, device=device)
        self._everyday = self.anchors if everyday is None else everyday.to(device)

    def __len__(self) -> int:
        return len(self.keys)

    # -- the computation ---------------------------------------------------------------------------------

    def values(self, anchors: Tensor) -> Tensor:
        """(batch, a) to (batch, d_v)."""
        return F.linear(F.silu(F.linear(anchors, self.down)), self.up)

    def scores(self, anchors: Tensor, keys: Tensor) -> Tensor:
        """(batch, experts)."""
        return self.values(anchors) @ keys.T / math.sqrt(self.config.value_width)

    def admitted(self, anchors: Tensor) -> Tensor:
        """(batch, experts) booleans: which experts may fire."""
        if self.config.null_expert != "threshold":
            return torch.ones(len(anchors), len(self), dtype=torch.bool, device=anchors.device)
        similarity = anchors @ self.anchors.T
        near = similarity >= self._least(anchors)[:, None]
        return torch.zeros(len(anchors), len(self), device=anchors.device).index_add_(1, self.owner, near.float()) > 0

    def _least(self, anchors: Tensor) -> Tensor:
        """(batch,): the threshold of each question, by whether it has an image part."""
        with_image, without = self.config.least_similarity
        if not self.config.with_image:
            return torch.full((len(anchors),), without, device=anchors.device)
        has_image = anchors[:, anchors.shape[1] // 2 :].abs().sum(1) > 0
        return torch.where(has_image, with_image, without)

    def route(self, anchors: Tensor, keys: Tensor | None = None) -> Route:
        """The experts of a batch of questions; gradients reach the keys through the weights."""
        keys = self.keys if keys is None else keys
        scores = self.scores(anchors, keys).masked_fill(~self.admitted(anchors), _OUT)
        if self.config.null_expert == "key":
            scores = torch.cat([scores, scores.new_zeros(len(scores), 1)], 1)
        shares = scores.softmax(1).nan_to_num(0.0)
        weights, experts = shares.topk(min(self.config.top_k, shares.shape[1]), 1)
        out = (experts >= len(keys)) | ~torch.isfinite(scores.gather(1, experts))
        return self._weighed(experts.masked_fill(out, -1), weights.masked_fill(out, 0.0), anchors)

    def nearest(self, route: Route) -> list[list[Nearest]]:
        """For each question, the edit with the nearest anchor of each expert of its route."""
        assert route.anchors is not None
        margins = route.anchors @ self.anchors.T
        if self.config.null_expert == "threshold":
            margins = margins - self._least(route.anchors)[:, None]
        found: list[list[Nearest]] = []
        for row, experts, weights in zip(margins, route.experts.tolist(), route.weights.tolist(), strict=True):
            chosen = [(expert, weight) for expert, weight in zip(experts, weights, strict=True) if expert >= 0]
            own = [row[self.owner == expert] for expert, _ in chosen]
            found.append(
                [
                    Nearest(expert, int(margin.argmax()), weight, float(margin.max()))
                    for (expert, weight), margin in zip(chosen, own, strict=True)
                ]
            )
        return found

    def forced(self, anchors: Tensor, keys: Tensor, expert: int) -> Route:
        """All questions to one expert."""
        experts = torch.full((len(anchors), 1), expert, device=anchors.device)
        return self._weighed(experts, self.scores(anchors, keys).softmax(1)[:, expert, None], anchors)

    def _weighed(self, experts: Tensor, weights: Tensor, anchors: Tensor) -> Route:
        if self.config.gate == "renormalized":
            weights = weights / weights.sum(1, keepdim=True).clamp(min=1e-12)
        return Route(experts, weights, anchors)

    # -- a new expert ------------------------------------------------------------------------------------

    def insert(self, anchors: Tensor) -> int:
        """Add an expert for edits with these anchors, (edits, a): its number. Its key is the mean of their values."""
        number = len(self)
        self.anchors = torch.cat([self.anchors, anchors])
        self.owner = torch.cat([self.owner, torch.full((len(anchors),), number, device=self.device)])
        key = F.normalize(self.values(anchors).mean(0, keepdim=True), dim=1)
        self.keys = torch.cat([self.keys, key])
        if self.config.routing_steps:
            self._learn(anchors)
        return number

    @property
    def trains_projection(self) -> bool:
        """Whether W_up and W_down train along with the newest expert."""
        first = len(self) == 1 and self.config.projection == "first_batch"
        return first or self.config.projection == "every_batch"

    def _learn(self, anchors: Tensor) -> None:
        """Train the newest key with cross-entropy: every anchor so far is to find its own expert."""
        key, generator = self.keys[-1:].clone().requires_grad_(True), self._generator()
        trained: list[dict[str, Any]] = [{"params": [key], "lr": self.config.routing_rate}]
        if self.trains_projection:
            projection = [self.down.requires_grad_(True), self.up.requires_grad_(True)]
            trained.append({"params": projection, "lr": 0.02 * self.config.routing_rate})
        optimizer = torch.optim.AdamW(trained, weight_decay=0.0)
        others = self._others(anchors, generator)
        frozen = None if self.trains_projection else self._scored(torch.arange(len(self.anchors)), others)
        try:
            for _ in range(self.config.routing_steps):
                values, earlier, wanted = frozen or self._scored(self._replayed(len(anchors), generator), others)
                own = values @ key.T / math.sqrt(self.config.value_width)
                scores = [earlier, own] if self.config.null_expert != "key" else [earlier, own, torch.zeros_like(own)]
                loss = F.cross_entropy(torch.cat(scores, 1), wanted)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        finally:
            self.down, self.up = self.down.detach(), self.up.detach()
        self.keys = torch.cat([self.keys[:-1], key.detach()])

    def _scored(self, chosen: Tensor, others: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Values, scores of the earlier keys, and the right expert, of some of the anchors and of other questions'."""
        values = self.values(torch.cat([self.anchors[chosen], others]))
        earlier = values @ self.keys[:-1].T / math.sqrt(self.config.value_width)
        null = torch.full((len(others),), len(self), device=self.device)
        return values, earlier, torch.cat([self.owner[chosen], null])

    def _replayed(self, new: int, generator: torch.Generator) -> Tensor:
        """All new anchors, and `replay` of the earlier ones at most."""
        before = len(self.anchors) - new
        drawn = torch.randperm(before, generator=generator)[: self.config.replay]
        return torch.cat([drawn, torch.arange(before, before + new)])

    def _others(self, anchors: Tensor, generator: torch.Generator) -> Tensor:
        """Anchors of no edit, for the null key: everyday questions, and texts with images of other edits."""
        if self.config.null_expert != "key":
            return anchors[:0]
        half = anchors.shape[1] // 2
        found = [self._everyday]
        if self.config.with_image:
            drawn = torch.randint(len(self.anchors), (4 * len(anchors),), generator=generator)
            texts = anchors.repeat(4, 1)
            crossed = torch.cat([texts[:, :half], self.anchors[drawn.to(self.device)][:, half:]], 1)
            crossed = F.normalize(crossed, dim=1)
            found.append(crossed[(crossed @ self.anchors.T).amax(1) < _CROSSED_APART])
        return torch.cat(found)

    def _generator(self) -> torch.Generator:
        """One for each expert: what is drawn does not depend on what was drawn before."""
        return torch.Generator().manual_seed(self.config.seed * 1_000_003 + len(self))

    # -- undo, saving -------------------------------------------------------------------------------------

    def remove(self, expert: int) -> None:
        """Remove an expert's key and anchors; the numbers of later experts fall by one."""
        kept = self.owner != expert
        self.anchors, owner = self.anchors[kept], self.owner[kept]
        self.owner = owner - (owner > expert).long()
        self.keys = torch.cat([self.keys[:expert], self.keys[expert + 1 :]])

    def state(self) -> dict[str, Tensor]:
        """Everything by name."""
        found = {"keys": self.keys, "anchors": self.anchors, "owner": self.owner}
        return found if self.config.projection == "fixed" else {**found, "down": self.down, "up": self.up}

    def load(self, state: dict[str, Tensor]) -> None:
        """Restore what `state` gave."""
        for name in self.state():
            setattr(self, name, state[name].to(self.device))


class TokenGate:
    """`g(i | x) = top_k softmax_i(w_i . x)`, x what the FFN reads for one token.

    rows: (experts, d), w_i by expert. All of them train with each batch, as the gate of a conventional MoE adaptor
    does (and, unless `conventional_trains` is "new", all experts as well): earlier edits are overwritten, and led to
    other experts, which is what module insertion and KV anchor routing are there to prevent.
    """

    def __init__(self, config: LemoeConfig, width: int, device: torch.device):
        self.config = config
        self.rows = torch.empty(0, width, device=device)

    def __len__(self) -> int:
        return len(self.rows)

    def insert(self) -> int:
        """Add a row for a new expert: its number."""
        number, width = len(self), self.rows.shape[1]
        generator = torch.Generator().manual_seed(self.config.seed * 1_000_003 + number)
        row = torch.randn(1, width, generator=generator) / width**0.5
        self.rows = torch.cat([self.rows, row.to(self.rows.device)])
        return number

    def shares(self, x: Tensor, rows: Tensor | None = None) -> Tensor:
        """(tokens, experts) softmax."""
        return (x @ (self.rows if rows is None else rows).T).softmax(-1)

    def route(self, x: Tensor, rows: Tensor | None = None) -> Route:
        """The experts of (tokens, d)."""
        shares = self.shares(x, rows)
        weights, experts = shares.topk(min(self.config.top_k, shares.shape[1]), 1)
        if self.config.gate == "renormalized" and self.config.top_k > 1:  # With one, the gate would learn nothing.
            weights = weights / weights.sum(1, keepdim=True)
        return Route(experts, weights)
