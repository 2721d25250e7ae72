"""What training LiveEdit means: which inputs, which losses, which validation figures.

Everything runs on states at the edit layer that were computed once; only the layers behind it run in a step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from ...backbones import Backbone
from ...backbones.states import Item, StateBatch, StateStore
from ...experts import ExpertRepository
from ...samples import LOCALITY, EditCase, ProbeName
from . import losses
from .editor import split_experts
from .modules import LiveEditModules, QueryFeatures, TokenStates
from .routing import changed_tokens, expert_residual, route, soft_weights

_IN_SCOPE: tuple[ProbeName, ...] = ("reliability", "text_generality", "modal_generality")

Stage = Literal["routing", "generator", "joint"]


class LiveEditLosses(BaseModel):
    """How LiveEdit is trained. The defaults are the improved form; `LiveEditLosses.paper()` is the paper's."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    hard_loss: Literal["paper", "margin"] = Field(
        default="margin", description="Hard-routing loss: equation 13, or margins."
    )
    soft_loss: Literal["paper", "masked"] = Field(
        default="masked", description="Soft-routing loss: equations 15, 16, or masked."
    )
    mixing: Literal["batch", "prefix", "routed"] = Field(
        default="routed",
        description="Experts mixed in a step: the batch's (paper), a random prefix and the own one (released code), or "
        "those that pass hard routing, as at query time.",
    )
    kl_exchanged: bool = Field(default=False, description="KL(edited || base) as in the released code.")
    text_locality: bool = Field(default=True, description="Text-only locality in the losses (released code: no).")
    same_subject: Literal["negative", "ignored"] = Field(
        default="negative",
        description="Edits of the same subject that ask something else, in hard routing with margins.",
    )
    margin: float = Field(default=2.0, ge=0, description="Margin of hard routing with margins.")
    negative_weight: float = Field(
        default=2.0, gt=0, description="Weight of the negatives in margin and masked losses."
    )

    @classmethod
    def paper(cls) -> LiveEditLosses:
        """The losses of section 4.3 as they stand."""
        return cls(hard_loss="paper", soft_loss="paper", mixing="batch")


@dataclass(frozen=True)
class _Rows:
    """Kept states of some probes of a batch of cases: the case of each row, and its scope as two numbers."""

    batch: StateBatch
    case: Tensor
    subject: Tensor
    relation: Tensor


class LiveEditTask:
    """Cases with their kept states, and the losses on batches of them."""

    def __init__(
        self, backbone: Backbone, layer: int, cases: Sequence[EditCase], options: LiveEditLosses, store: StateStore
    ):
        self.backbone, self.layer, self.options, self.store = backbone, layer, options, store
        self.cases = tuple(cases)
        self._places: list[dict[str, int]] = []
        self._scopes: list[tuple[int, int]] = []

    def prepare(self, progress: Callable[[int, int], None] = lambda done, total: None) -> None:
        """Compute the states of every input, once."""
        items: list[Item] = []
        subjects: dict[str, int] = {}
        relations: dict[str, int] = {}
        for case in self.cases:
            place: dict[str, int] = {}
            for probe in (case.reliability, *case.probes):
                answer = case.edit.answer if probe.name in _IN_SCOPE else probe.answer
                if probe.name not in (*_IN_SCOPE, *LOCALITY) or not answer or not answer.strip():
                    continue
                subject, relation = case.edit.scope if probe.name in _IN_SCOPE else probe.question.scope
                place[probe.name] = len(items)
                items.append((probe.question, answer))
                self._scopes.append(
                    (subjects.setdefault(subject, len(subjects)), relations.setdefault(relation, len(relations)))
                )
            self._places.append(place)
        self.store.fill(items, progress=progress)

    # -- losses ------------------------------------------------------------------------------------------

    def loss(
        self, modules: LiveEditModules, stage: Stage, chosen: Sequence[int], rng: np.random.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        """The loss of a stage on these cases, and its parts in nats."""
        if stage == "routing":
            return self._routing_loss(modules, chosen, rng)
        if stage == "generator":
            return self._generator_loss(modules, chosen)
        return self._joint_loss(modules, chosen, rng)

    def _routing_loss(
        self, modules: LiveEditModules, chosen: Sequence[int], rng: np.random.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        """Both extractors on random members of each edit's scope (section 4.3.2), and on its locality inputs."""
        edits = self._rows(chosen, [[self._random_in_scope(case, rng)] for case in chosen])
        inside = [[self._random_in_scope(case, rng), self._random_in_scope(case, rng)] for case in chosen]
        outside = [self._hard_negatives(case, rng) for case in chosen]
        queries = self._rows(chosen, [[*a, *b] for a, b in zip(inside, outside, strict=True)])
        hat = modules.edit_features(_tokens(edits.batch, self.backbone))
        bar = modules.query(_tokens(queries.batch, self.backbone))
        with full_precision():
            return self._routing_terms(modules, hat, edits, bar, queries)

    def _routing_terms(
        self, modules: LiveEditModules, hat: tuple[Tensor, Tensor], edits: _Rows, bar: QueryFeatures, queries: _Rows
    ) -> tuple[Tensor, dict[str, float]]:
        same_subject = queries.subject[:, None] == edits.subject[None]
        asks_same = queries.relation[:, None] == edits.relation[None]
        own = same_subject & asks_same
        visual = (bar.visual @ hat[0].T) * modules.visual_scale
        sentinel = modules.visual_score(bar.visual, bar.sentinel)
        prompt = (bar.prompt @ hat[1].T) * modules.prompt_scale - modules.prompt_offset
        options = self.options
        if modules.config.scope == "image":  # Hard routing never sees a query without a picture.
            seen = queries.batch.image.any(1)
            visual, sentinel, own_seen = visual[seen], sentinel[seen], own[seen]
            same_subject = same_subject[seen]
        else:
            own_seen = own
        if options.hard_loss == "paper":
            hard = losses.hard_routing_paper(visual, sentinel, own_seen)
        else:
            ignored = same_subject if options.same_subject == "ignored" else torch.zeros_like(own_seen)
            hard = losses.hard_routing_margin(
                visual, sentinel, own_seen, ignored, options.margin, options.negative_weight
            )
        if options.soft_loss == "paper":
            generator = torch.Generator().manual_seed(int(queries.case.sum()))
            soft = losses.soft_routing_paper(prompt, own, generator)
        else:
            soft = losses.soft_routing_masked(prompt, losses.PairKinds(own, asks_same), options.negative_weight)
        fires = visual > sentinel[:, None]
        figures = {
            "hard_loss_nats": hard.item(),
            "soft_loss_nats": soft.item(),
            "own_passes": 100 * fires[own_seen].float().mean().item(),
            "others_pass": 100 * (fires & ~own_seen).any(1).float().mean().item(),
        }
        return hard + soft, figures

    def _generator_loss(self, modules: LiveEditModules, chosen: Sequence[int]) -> tuple[Tensor, dict[str, float]]:
        """NLL of edit and generality, each row with the own expert alone."""
        rows = self._rows(chosen, [self._in_scope_names(case) for case in chosen])
        edits = self._rows(chosen, [["reliability"]] * len(chosen))
        tokens = _tokens(edits.batch, self.backbone)
        u, v = modules.generator(tokens.states, tokens.image, tokens.prompt, tokens.answer, tokens.embeddings)
        weights = torch.ones(len(rows.case), 1)
        logits = self._edited_logits(modules, rows.batch, u[rows.case, None], v[rows.case, None], weights)
        loss = losses.answer_nll(logits, rows.batch.targets)
        right = (logits.argmax(-1) == rows.batch.targets).float().mean().item()
        return loss, {"edit_loss_nats": loss.item(), "token_accuracy": 100 * right}

    def _joint_loss(
        self, modules: LiveEditModules, chosen: Sequence[int], rng: np.random.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        """Edit loss and routing loss together, experts mixed over the batch (equations 8 to 16)."""
        names = [
            [*self._in_scope_names(case), *self._locality_names(case, pictured=not self.options.text_locality)]
            for case in chosen
        ]
        rows = self._rows(chosen, names)
        edits = self._rows(chosen, [["reliability"]] * len(chosen))
        made = modules.edit(_tokens(edits.batch, self.backbone))
        tokens = _tokens(rows.batch, self.backbone)
        bar = modules.query(tokens)
        own = (rows.subject[:, None] == edits.subject[None]) & (rows.relation[:, None] == edits.relation[None])
        with full_precision():
            routing, figures = self._routing_terms(modules, (made.visual, made.prompt), edits, bar, rows)
            weights = self._mixing_weights(modules, made.visual, made.prompt, bar, own, tokens.image.any(1), rng)
        inside = own.any(1)
        # Where no expert is mixed, the logits are the base's and the KL is 0: such rows need not run.
        run = inside | (weights > 0).any(1)
        batch, asked_here = rows.batch.select(run), inside[run]
        logits = self._edited_logits(modules, batch, made.u, made.v, weights[run])
        edited = asked_here[batch.answer.nonzero()[:, 0]]
        edit_loss = losses.answer_nll(logits[edited], batch.targets[edited])
        base = self.backbone.head(batch.final[~edited].to(self.backbone.dtype))
        kl = logits.sum() * 0
        if len(base):  # Averaged over the answer tokens of all rows outside, those that did not run included.
            share = len(base) / int(rows.batch.answer[~inside].sum())
            kl = share * losses.locality_kl(base, logits[~edited], self.options.kl_exchanged)
        right = (logits[edited].argmax(-1) == batch.targets[edited]).float().mean().item()
        figures |= {"edit_loss_nats": edit_loss.item(), "kl_nats": kl.item(), "token_accuracy": 100 * right}
        return edit_loss + kl + routing, figures

    def _mixing_weights(
        self,
        modules: LiveEditModules,
        visual_hat: Tensor,
        prompt_hat: Tensor,
        bar: QueryFeatures,
        own: Tensor,
        pictured: Tensor,
        rng: np.random.Generator,
    ) -> Tensor:
        """Soft weights over the batch's experts, (rows, edits), after what `mixing` lets through."""
        scores = (bar.prompt @ prompt_hat.T) * modules.prompt_scale - modules.prompt_offset
        if self.options.mixing == "routed":
            threshold = modules.visual_score(bar.visual, bar.sentinel)
            kept = (bar.visual @ visual_hat.T) * modules.visual_scale > threshold[:, None]
            # An own expert that is still kept out would learn nothing: in training it is always let in.
            kept = kept & pictured[:, None] | own
        elif self.options.mixing == "prefix":
            kept = own | (torch.arange(own.shape[1]) < int(rng.integers(own.shape[1])))[None]
        else:
            kept = torch.ones_like(own)
        return soft_weights(scores.masked_fill(~kept, float("-inf")))

    def _edited_logits(
        self, modules: LiveEditModules, batch: StateBatch, u: Tensor, v: Tensor, weights: Tensor
    ) -> Tensor:
        """Logits that predict the answer tokens, with these experts in force."""
        residual = expert_residual(batch.states, u, v, weights, modules.config)
        changed = changed_tokens(batch.image, batch.prompt | batch.answer, modules.config)
        states = batch.states + residual * changed[..., None]
        return self.backbone.logits_from(states.to(self.backbone.dtype), batch, self.layer, batch.predicting)

    # -- validation --------------------------------------------------------------------------------------

    @torch.no_grad()
    def validate(self, modules: LiveEditModules, chosen: Sequence[int], group: int = 64) -> dict[str, float]:
        """All these edits in force at once, in percent by probe: teacher-forced accuracy, and right routing.

        Routing is right where an in-scope query gets at least half of its weight from its own expert, and where a
        locality query gets less than half of the weight from any: it tells routers apart before experts are trained.
        """
        repository = ExpertRepository()
        for start in range(0, len(chosen), group):
            part = chosen[start : start + group]
            edits = self._rows(part, [["reliability"]] * len(part))
            made = modules.edit(_tokens(edits.batch, self.backbone))
            for case, expert in zip(part, split_experts(made), strict=True):
                repository.add(str(case), expert)
        edited = {self._scopes[self._places[case]["reliability"]] for case in chosen}
        figures = {}
        for name in (*_IN_SCOPE, *LOCALITY):
            cases = [case for case in chosen if name in self._places[case]]
            if name in LOCALITY:
                cases = [case for case in cases if self._scopes[self._places[case][name]] not in edited]
            right = [
                self._right(modules, repository, cases[start : start + group], name)
                for start in range(0, len(cases), group)
            ]
            if right:
                tokens, routed = (torch.cat(part).float() for part in zip(*right, strict=True))
                figures[name] = 100 * tokens.mean().item()
                figures[f"{name}_routing"] = 100 * routed.mean().item()
        return figures

    def _right(
        self, modules: LiveEditModules, repository: ExpertRepository, cases: Sequence[int], name: ProbeName
    ) -> tuple[Tensor, Tensor]:
        """Which answer tokens are right, (tokens,), and which queries are routed right, (cases,)."""
        rows = self._rows(cases, [[name]] * len(cases))
        tokens = _tokens(rows.batch, self.backbone)
        query = modules.query(tokens)
        with full_precision():
            routing = route(modules, query, tokens.image.any(1), repository)
        if routing is None:
            u = torch.zeros(len(cases), 1, modules.config.rank, modules.config.width)
            logits = self._edited_logits(modules, rows.batch, u, u, torch.zeros(len(cases), 1))
        else:
            logits = self._edited_logits(modules, rows.batch, routing.u, routing.v, routing.weights)
        wanted = rows.batch.targets
        if name in LOCALITY:
            wanted = self.backbone.head(rows.batch.final.to(self.backbone.dtype)).argmax(-1)
        fired = [()] * len(cases) if routing is None else routing.fired
        routed = [
            sum(expert.weight for expert in experts if name in LOCALITY or expert.edit_id == str(case)) >= 0.5
            for case, experts in zip(cases, fired, strict=True)
        ]
        return logits.argmax(-1) == wanted, torch.tensor(routed) != (name in LOCALITY)

    # -- picking rows ------------------------------------------------------------------------------------

    def _rows(self, cases: Sequence[int], names: Sequence[Sequence[str]]) -> _Rows:
        places = [self._places[case][name] for case, wanted in zip(cases, names, strict=True) for name in wanted]
        position = [place for place, wanted in enumerate(names) for _ in wanted]
        scopes = torch.tensor([self._scopes[place] for place in places])
        return _Rows(self.store.batch(places), torch.tensor(position), scopes[:, 0], scopes[:, 1])

    def _in_scope_names(self, case: int) -> list[str]:
        return [name for name in _IN_SCOPE if name in self._places[case]]

    def _locality_names(self, case: int, pictured: bool) -> list[str]:
        """The case's locality inputs; `pictured` leaves out those without a picture."""
        skipped = ("text_locality",) if pictured else ()
        return [name for name in LOCALITY if name in self._places[case] and name not in skipped]

    def _hard_negatives(self, case: int, rng: np.random.Generator) -> list[str]:
        """The near-duplicate, which is what routing gets wrong, and one of the easier locality inputs."""
        names = self._locality_names(case, pictured=True)
        near = [name for name in names if name == "near_duplicate_locality"]
        easier = [name for name in names if name not in near]
        return near + ([easier[rng.integers(len(easier))]] if easier else [])

    def _random_in_scope(self, case: int, rng: np.random.Generator) -> str:
        names = self._in_scope_names(case)
        return names[rng.integers(len(names))]


def full_precision() -> torch.autocast:
    """Similarities are compared with each other: bfloat16 products would blur them."""
    return torch.autocast("cpu", enabled=False)


def _tokens(batch: StateBatch, backbone: Backbone) -> TokenStates:
    embeddings = backbone.model.get_input_embeddings()(batch.ids).float()
    return TokenStates(batch.states, batch.image, batch.prompt, batch.answer, embeddings)
