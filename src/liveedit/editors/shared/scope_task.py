"""How an editor that finds edits by questions is trained: kept states, pairs in and out of scope, a loss."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from ...backbones import Backbone, HiddenTokens
from ...backbones.hidden_states import HiddenStateBatch, HiddenStateCache, Item
from ...progress import Progress, no_progress
from ...samples import LOCALITY, EditCase, ProbeName, Question
from ...training.distributed import ALONE, Processes
from .random_answers import words_of

IN_SCOPE: tuple[ProbeName, ...] = ("reliability", "text_generality", "modal_generality")
"""What an edit must reach: itself, its rephrasings, its redrawn images."""

AT_ONCE = 128
"""Questions that are validated at a time."""


@dataclass(frozen=True)
class CaseInputs:
    """The inputs of cases in one list, in the order in which a `HiddenStateCache` keeps their states.

    items: question and answer of each input; the answer is the edit's if the input is in scope, and else the label.
    places: for each case, the index of each of its inputs in `items`, by probe name.
    scopes_of: for each input, the question whose scope it has: the edit's if it is in scope, and else its own.
    """

    items: list[Item]
    places: list[dict[str, int]]
    scopes_of: list[Question]

    @classmethod
    def of(cls, cases: Sequence[EditCase], wanted: Callable[[int, EditCase], Collection[str]]) -> CaseInputs:
        """The inputs of these cases that have an answer; `wanted` gives the probe names of a case by its number."""
        inputs = cls([], [], [])
        for number, case in enumerate(cases):
            names = wanted(number, case)
            place: dict[str, int] = {}
            for probe in (case.reliability, *case.probes):
                inside = probe.name in IN_SCOPE
                answer = case.edit.answer if inside else probe.answer
                if probe.name not in names or not answer or not answer.strip():
                    continue
                place[probe.name] = len(inputs.items)
                inputs.items.append((probe.question, answer))
                inputs.scopes_of.append(case.edit.question if inside else probe.question)
            inputs.places.append(place)
        return inputs

    def scopes(self) -> list[tuple[int, int]]:
        """What each input is about and what is asked of it, as numbers: equal scopes must get the same answer."""
        subjects: dict[str, int] = {}
        relations: dict[str, int] = {}
        return [
            (subjects.setdefault(subject, len(subjects)), relations.setdefault(relation, len(relations)))
            for subject, relation in (question.scope for question in self.scopes_of)
        ]


@dataclass(frozen=True)
class ScopeRows:
    """Some inputs of a batch of cases with their kept states.

    items: question and answer of each row; the answer is the edit's if the row is in scope, and else the label.
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
    """Edits and queries of a batch of cases; own: (queries, edits) booleans, true if the edit reaches the query.

    Queries: some in scope of each case, and its locality inputs. Every pair that is not own is a negative: another
    case's edit, the same image with another question, the same question of another image, a near duplicate.
    """

    edits: ScopeRows
    queries: ScopeRows
    own: Tensor


class ScopeTask:
    """Cases with the states of all their inputs at a layer: what the training of a retrieving editor starts from.

    A subclass gives `loss` and `validate` of `liveedit.training.trainer.Task`. Under several processes each has all
    states.
    """

    def __init__(
        self,
        backbone: Backbone,
        config: Any,
        cases: Sequence[EditCase],
        store: HiddenStateCache | None = None,
        processes: Processes = ALONE,
    ):
        """config: the editor's, whose `layer` is the one that states are kept of."""
        self.backbone, self.config, self.layer, self.processes = backbone, config, config.layer, processes
        self.store = store or HiddenStateCache(backbone, self.layer)
        self.device = backbone.layer_device(self.layer)
        self.cases = tuple(cases)
        inputs = CaseInputs.of(self.cases, lambda number, case: (*IN_SCOPE, *LOCALITY))
        self.items, self.places = inputs.items, inputs.places
        self._scopes = inputs.scopes()

    def prepare(self, progress: Progress = no_progress) -> None:
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

    def edit_rows(self, cases: Sequence[int]) -> ScopeRows:
        """The edits of these cases themselves."""
        return self.rows(cases, [["reliability"]] * len(cases))

    def pairs(self, cases: Sequence[int], rng: np.random.Generator, inside: int = 2, outside: int = 2) -> ScopePairs:
        """Each case's edit, `inside` random inputs in its scope, and `outside` of its locality inputs.

        The near duplicate, which is hardest to distinguish, is among the latter if there is one.
        """
        edits = self.edit_rows(cases)
        chosen = [[*self._some_inside(case, inside, rng), *self._some_outside(case, outside, rng)] for case in cases]
        queries = self.rows(cases, chosen)
        return ScopePairs(edits, queries, queries.reached_by(edits))

    def in_scope_names(self, case: int) -> list[str]:
        """Names of the case's inputs that the edit must reach."""
        return [name for name in IN_SCOPE if name in self.places[case]]

    def locality_names(self, case: int) -> list[str]:
        """Names of the case's inputs that the edit must not reach."""
        return [name for name in LOCALITY if name in self.places[case]]

    def one_inside(self, case: int, rng: np.random.Generator) -> str:
        """The name of a random input that the edit must reach."""
        names = self.in_scope_names(case)
        return names[rng.integers(len(names))]

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

    # -- the unedited model ------------------------------------------------------------------------------

    def full_precision(self) -> torch.autocast:
        """Similarities are compared with each other inside: bfloat16 products would blur them."""
        return torch.autocast(self.device.type, enabled=False)

    def base_logits(self, final: Tensor) -> Tensor:
        """Logits of the unedited model, (tokens, vocabulary), from its last hidden states, (tokens, width)."""
        return self.backbone.head(final.to(self.backbone.dtype)).to(self.device)


Figures = dict[str, float]
StageLoss = Callable[[Any, Sequence[int], np.random.Generator], tuple[Tensor, Figures]]
"""From modules, cases and random numbers: the loss of a stage, and figures."""
StageFigures = Callable[[Any, Sequence[int]], Figures]
"""From modules and cases: the validation figures of a stage, in percent."""


class StagedScopeTask(ScopeTask):
    """A task with a loss and figures per stage; each process takes its share of the cases of a step.

    A subclass gives `stages`. `words` are the words that random answers are made of.
    """

    def __init__(
        self,
        backbone: Backbone,
        config: Any,
        cases: Sequence[EditCase],
        store: HiddenStateCache | None = None,
        processes: Processes = ALONE,
    ):
        super().__init__(backbone, config, cases, store, processes)
        self.words = words_of(backbone.tokenizer)
        self._stage = ""

    def stages(self) -> Mapping[str, tuple[StageLoss, StageFigures]]:
        """Loss and validation figures of each stage, by its name."""
        raise NotImplementedError

    def loss(self, modules: Any, stage: str, chosen: Sequence[int], rng: np.random.Generator) -> tuple[Tensor, Figures]:
        """The loss of a stage in nats on this process's share of these cases, and figures."""
        self._stage = stage
        modules.train()
        loss, _ = self.stages()[stage]
        return loss(modules, list(chosen)[self.processes.share(len(chosen))], rng)

    @torch.no_grad()
    def validate(self, modules: Any, chosen: Sequence[int]) -> Figures:
        """Figures of the stage that is trained (before any is, of the last), with all these edits in memory at once."""
        stages = self.stages()
        _, figures = stages.get(self._stage) or list(stages.values())[-1]
        return figures(modules, chosen)

    def validated_features(
        self, encode: Callable[[HiddenTokens], Tensor], cases: Sequence[int]
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """All queries of these cases, some at a time, and all their edits.

        Yields features of queries, (queries, features), those of all edits, (edits, features), and (queries, edits)
        booleans: which edit reaches which query.
        """
        edits = self.edit_rows(cases)
        features = encode(edits.tokens)
        for part in parts(cases, AT_ONCE // 8):
            queries = self.rows(part, [[*self.in_scope_names(case), *self.locality_names(case)] for case in part])
            yield encode(queries.tokens), features, queries.reached_by(edits)


def parts(cases: Sequence[int], size: int) -> list[Sequence[int]]:
    """The cases in their order, `size` at a time."""
    return [cases[start : start + size] for start in range(0, len(cases), size)]


def scope_loss(
    scores: Float[Tensor, "queries edits"],
    own: Bool[Tensor, "queries edits"],
    margin: float = 2.0,
    negative_weight: float = 2.0,
) -> Float[Tensor, ""]:
    """The comparisons that retrieval makes, in nats: own edits above 0, others below, by a margin, own ones first.

    scores: s > 0 means "in scope"; own: the edits that reach each query. The sum is of
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
