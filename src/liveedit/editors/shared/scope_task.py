"""How a retriever learns which questions an edit reaches: kept states, pairs in and out of scope, a loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ...backbones import Backbone, HiddenTokens
from ...backbones.hidden_states import HiddenStateBatch, HiddenStateCache, Item
from ...samples import LOCALITY, EditCase, ProbeName
from ...training.distributed import ALONE, Processes

IN_SCOPE: tuple[ProbeName, ...] = ("reliability", "text_generality", "modal_generality")
"""What an edit must reach: itself, its rephrasings, its redrawn images."""


@dataclass(frozen=True)
class ScopeRows:
    """Some inputs of a batch of cases with their kept states.

    items: question and answer of each row; the answer is the edit's where the row is in scope, and else the label.
    case: (rows,) integers, the place of each row's case in the batch. scope: (rows, 2) integers, what is asked about
    and what is asked of it; rows of equal scope must get the same answer.
    """

    batch: HiddenStateBatch
    tokens: HiddenTokens
    items: tuple[Item, ...]
    case: Tensor
    scope: Tensor

    def __len__(self) -> int:
        return len(self.items)

    def reached_by(self, edits: ScopeRows) -> Tensor:
        """(rows, edits) booleans: which of these rows are in the scope of which of those."""
        return (self.scope[:, None] == edits.scope[None]).all(-1)


@dataclass(frozen=True)
class ScopePairs:
    """Edits and queries of a batch of cases; own: (queries, edits) booleans, true where the edit reaches the query.

    Queries: some in scope of each case, and its locality inputs. Every pair that is not own is a negative: another
    case's edit, the same image with another question, the same question of another image, a near duplicate.
    """

    edits: ScopeRows
    queries: ScopeRows
    own: Tensor


class ScopeTask:
    """Cases with the states of all their inputs at a layer: what the training of a retrieving editor starts from.

    A subclass gives `loss` and `validate` of `liveedit.training.Task`. Under several processes each has all states.
    """

    def __init__(
        self,
        backbone: Backbone,
        layer: int,
        cases: Sequence[EditCase],
        store: HiddenStateCache | None = None,
        processes: Processes = ALONE,
    ):
        self.backbone, self.layer, self.processes = backbone, layer, processes
        self.store = store or HiddenStateCache(backbone, layer)
        self.device = backbone.layer_device(layer)
        self.cases = tuple(cases)
        self.items: list[Item] = []
        self.places: list[dict[str, int]] = []
        """Of each case, where its inputs stand in `items`, by their names."""
        self._scopes: list[tuple[int, int]] = []
        self._lay_out()

    def _lay_out(self) -> None:
        numbers: dict[str, dict[str, int]] = {"subject": {}, "relation": {}}
        for case in self.cases:
            place: dict[str, int] = {}
            for probe in (case.reliability, *case.probes):
                inside = probe.name in IN_SCOPE
                answer = case.edit.answer if inside else probe.answer
                if not (inside or probe.name in LOCALITY) or not answer or not answer.strip():
                    continue
                subject, relation = case.edit.scope if inside else probe.question.scope
                place[probe.name] = len(self.items)
                self.items.append((probe.question, answer))
                self._scopes.append(
                    (
                        numbers["subject"].setdefault(subject, len(numbers["subject"])),
                        numbers["relation"].setdefault(relation, len(numbers["relation"])),
                    )
                )
            self.places.append(place)

    def prepare(self, progress: Callable[[int, int], None] = lambda done, total: None) -> None:
        """Compute the states of every input, once."""
        self.store.fill(self.items, progress=progress)

    # -- picking rows ------------------------------------------------------------------------------------

    def rows(self, cases: Sequence[int], names: Sequence[Sequence[str]]) -> ScopeRows:
        """These inputs of these cases, by their names."""
        places = [self.places[case][name] for case, wanted in zip(cases, names, strict=True) for name in wanted]
        numbers = [number for number, wanted in enumerate(names) for _ in wanted]
        batch, items = self.store.batch(places), tuple(self.items[place] for place in places)
        scope = torch.tensor([self._scopes[place] for place in places], device=self.device)
        return ScopeRows(batch, self._tokens(batch, items), items, torch.tensor(numbers, device=self.device), scope)

    def pairs(self, cases: Sequence[int], rng: np.random.Generator, inside: int = 2, outside: int = 2) -> ScopePairs:
        """Each case's edit, `inside` random inputs in its scope, and `outside` of its locality inputs.

        The near duplicate, which is hardest to tell apart, is among the latter wherever there is one.
        """
        edits = self.rows(cases, [["reliability"]] * len(cases))
        chosen = [[*self._some_inside(case, inside, rng), *self._some_outside(case, outside, rng)] for case in cases]
        queries = self.rows(cases, chosen)
        return ScopePairs(edits, queries, queries.reached_by(edits))

    def in_scope_names(self, case: int) -> list[str]:
        """Names of the case's inputs that the edit must reach."""
        return [name for name in IN_SCOPE if name in self.places[case]]

    def locality_names(self, case: int) -> list[str]:
        """Names of the case's inputs that the edit must not reach."""
        return [name for name in LOCALITY if name in self.places[case]]

    def shares(self, *sizes: int) -> list[float]:
        """Factors that make the mean over processes of a mean over `size` things the mean over those of all."""
        totals = self.processes.total(*sizes)
        return [self.processes.count * size / max(1, total) for size, total in zip(sizes, totals, strict=True)]

    def _some_inside(self, case: int, count: int, rng: np.random.Generator) -> list[str]:
        names = self.in_scope_names(case)
        return [names[index] for index in rng.integers(len(names), size=count)]

    def _some_outside(self, case: int, count: int, rng: np.random.Generator) -> list[str]:
        names = self.locality_names(case)
        near = [name for name in names if name == "near_duplicate_locality"][:count]
        easier = [name for name in names if name not in near]
        drawn = rng.permutation(len(easier))[: count - len(near)]
        return near + [easier[index] for index in drawn]

    def _tokens(self, batch: HiddenStateBatch, items: Sequence[Item]) -> HiddenTokens:
        ids = batch.input_ids.masked_fill(
            batch.image_mask, self.backbone.pad_token_id
        )  # Some families have no embedding of it.
        embeddings = self.backbone.word_embeddings(ids.to(self.backbone.device)).float().to(self.device)
        prompts = tuple(question.prompt for question, _ in items)
        return HiddenTokens.of(batch, batch.hidden_states, embeddings, prompts)


def scope_loss(scores: Tensor, own: Tensor, margin: float = 2.0, negative_weight: float = 2.0) -> Tensor:
    """Asks what retrieval will ask, in nats: own edits above 0, all others below, each by a margin, and own ones first.

    scores: (queries, edits), s > 0 meaning "in scope"; own: (queries, edits) booleans. The sum is of
    `log(1 + exp(m - s_own))`, `log(1 + sum_others exp(s + m))`, which bounds the worst of the others, and InfoNCE over
    the edits for queries that have an own one; each is averaged over its queries.
    """
    scores = scores.float()
    others = (scores + margin).masked_fill(own, float("-inf"))
    negative = torch.cat([others, torch.zeros_like(scores[:, :1])], 1).logsumexp(1).mean()
    if not bool(own.any()):
        return negative_weight * negative
    positive = F.softplus(margin - scores)[own].mean()
    inside = own.any(1)
    share = own[inside].float() / own[inside].sum(1, keepdim=True)
    ranking = -(scores[inside].log_softmax(1) * share).sum(1).mean()
    return positive + ranking + negative_weight * negative
