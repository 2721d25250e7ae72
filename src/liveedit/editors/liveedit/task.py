"""The training task of LiveEdit: its inputs, losses and validation figures.

Hidden states at the edit layer are computed once; a step runs only the layers after it.

Several processes make the same random choices; each runs extractors, generator and the layers after the edit layer on
its share of the cases. Features and experts are gathered, because every query is compared with every edit of the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ...backbones import Backbone, HiddenTokens, TokenRole
from ...backbones.hidden_states import HiddenStateBatch, HiddenStateCache
from ...backbones.kept_prompt import KeptPrompt
from ...experts import ExpertRepository
from ...samples import LOCALITY, EditCase, ProbeName
from ...training.distributed import ALONE, Processes
from ..shared.routing import QueryFeatures, changed_tokens, expert_residual, route, soft_weights
from ..shared.scope_task import IN_SCOPE
from . import losses
from .config import LiveEditLosses
from .modules import EditFeatures, LiveEditModules
from .probes import RoutingProbes, TrainingProbes, with_edits
from .thresholds import RoutedQueries

_DRAWS_PER_ROW = 64
"""Random numbers per row that decide which tokens are hidden; longer prompts and images reuse them."""

_SAMPLED = 256
"""Edits that `LiveEditTask.sample` takes, about."""

Stage = Literal["routing", "generator", "joint"]


@dataclass(frozen=True)
class _Rows:
    """Some probes of a batch of cases: labels of all rows, and the hidden states of this process's own rows.

    case, subject, relation, image: (rows,) integers: the index of each row's case in the batch, its scope as two
    numbers, and a number for its image. has_image: (rows,) booleans. own: the rows that `batch` holds.
    """

    batch: HiddenStateBatch
    case: Tensor
    subject: Tensor
    relation: Tensor
    image: Tensor
    has_image: Tensor
    own: slice

    @property
    def scope(self) -> Tensor:
        """(rows, 2) integers: subject and relation."""
        return torch.stack([self.subject, self.relation], 1)

    def scope_equals(self, edits: _Rows) -> Tensor:
        """(rows, edits) booleans: whether a row asks for what an edit is about."""
        return (self.subject[:, None] == edits.subject[None]) & (self.relation[:, None] == edits.relation[None])


class LiveEditTask:
    """Cases with their hidden states, the losses on batches of them, and validation."""

    def __init__(
        self,
        backbone: Backbone,
        layer: int,
        cases: Sequence[EditCase],
        options: LiveEditLosses,
        store: HiddenStateCache,
        processes: Processes = ALONE,
    ):
        self.backbone, self.layer, self.options, self.store = backbone, layer, options, store
        self.processes, self.device = processes, backbone.layer_device(layer)
        self.cases = tuple(cases)
        self._probes = TrainingProbes(self.cases, options.text_locality)
        self.items = self._probes.items

    def prepare(self, progress: Callable[[int, int], None] = lambda done, total: None) -> None:
        """Compute the hidden states of every input, once."""
        self.store.fill(self.items, progress=progress)

    def sample(self) -> HiddenTokens:
        """The edits of some of the cases."""
        step = max(1, len(self.cases) // _SAMPLED)
        chosen = range(0, len(self.cases), step)
        return self._tokens(self._rows(chosen, [["reliability"]] * len(chosen), shared=False).batch)

    # -- losses ------------------------------------------------------------------------------------------

    def loss(
        self, modules: LiveEditModules, stage: Stage, chosen: Sequence[int], rng: np.random.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        """The loss of a stage on these cases, and its terms in nats; the batch's are the means over processes."""
        if stage == "routing":
            return self._routing_loss(modules, chosen, rng)
        if stage == "generator":
            return self._generator_loss(modules, chosen)
        return self._joint_loss(modules, chosen, rng)

    def _routing_loss(
        self, modules: LiveEditModules, chosen: Sequence[int], rng: np.random.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        """Both extractors on random members of each edit's scope (section 4.3.2), and on its locality inputs."""
        probes = self._probes
        if self.options.sampling == "one":
            return self._comparison(modules, chosen, probes.random_sides(*probes.samples(chosen, rng), rng), rng)
        return self._comparison(modules, chosen, probes.hard(chosen, rng), rng)

    def _comparison(
        self, modules: LiveEditModules, chosen: Sequence[int], probes: RoutingProbes, rng: np.random.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        """The routing loss of these probes."""
        edits, queries = self._rows(chosen, probes.edits), self._rows(chosen, probes.queries)
        edits, queries = (self._thinned(rows, rng) for rows in (edits, queries))
        visual, prompt = self.processes.gather(*modules.edit_features(self._tokens(edits.batch)))
        return self._routing_terms(
            modules, (visual, prompt), edits, self._gathered_query(modules, queries), queries, rng
        )

    def _routing_terms(
        self,
        modules: LiveEditModules,
        hat: tuple[Tensor, Tensor],
        edits: _Rows,
        bar: QueryFeatures,
        queries: _Rows,
        rng: np.random.Generator,
    ) -> tuple[Tensor, dict[str, float]]:
        """Hard-routing and soft-routing loss (equation 12). hat: phi_hat and psi_hat of the edits."""
        own = queries.scope_equals(edits)
        with self._full_precision():
            scores = self._prompt_scores(modules, bar.prompt, hat[1])
            hard, figures = self._hard_terms(modules, hat[0], edits, bar, queries, own)
        if not modules.config.soft_routing:  # The prompt has no influence on the weights: there is nothing to learn.
            soft = scores.sum() * 0
        elif self.options.soft_loss == "paper":
            soft = self._soft_paper(modules, hat[1], bar, queries, own, rng)
        else:
            kinds = losses.PairKinds(own, queries.relation[:, None] == edits.relation[None])
            soft = losses.soft_routing_masked(scores, kinds, self.options.negative_weight, self.options.soft_terms)
        return hard + soft, {"hard_loss_nats": hard.item(), "soft_loss_nats": soft.item(), **figures}

    def _hard_terms(
        self,
        modules: LiveEditModules,
        visual_hat: Tensor,
        edits: _Rows,
        bar: QueryFeatures,
        queries: _Rows,
        own: Tensor,
    ) -> tuple[Tensor, dict[str, float]]:
        """Hard-routing loss, and the percentages of queries that their own edits, and that other edits fire for."""
        options = self.options
        ignored = torch.zeros_like(own)
        if options.same_subject == "ignored":
            ignored = queries.subject[:, None] == edits.subject[None]
        if not modules.config.hard_prompt:  # Such a router cannot separate two questions about one image.
            ignored = ignored | (queries.image[:, None] == edits.image[None])
        visual = (bar.visual @ visual_hat.T) * modules.visual_scale
        sentinel = modules.visual_score(bar.visual, bar.sentinel)
        seen = _reachable(modules, queries)
        visual, sentinel, own, ignored = visual[seen], sentinel[seen], own[seen], ignored[seen]
        if options.hard_loss == "paper":
            hard = self._reduced(losses.hard_routing_paper(visual, sentinel, own))
        else:
            hard = losses.hard_routing_margin(visual, sentinel, own, ignored, options.margin, options.negative_weight)
        fires = visual > sentinel[:, None]
        figures = {
            "own_passes": 100 * fires[own].float().mean().item(),
            "others_pass": 100 * (fires & ~own).any(1).float().mean().item(),
        }
        return hard, figures

    def _soft_paper(
        self,
        modules: LiveEditModules,
        prompt_hat: Tensor,
        bar: QueryFeatures,
        queries: _Rows,
        own: Tensor,
        rng: np.random.Generator,
    ) -> Tensor:
        """Equations 15 and 16: each in-scope query among the edits and the locality inputs of the batch."""
        inside = own.any(1)
        (seen_as_edits,) = self.processes.gather(modules.prompt_features(self._tokens(queries.batch)))
        candidates = torch.cat([prompt_hat, seen_as_edits[~inside]])
        own = torch.cat([own, own.new_zeros(len(own), int((~inside).sum()))], 1)[inside]
        others = losses.drawn_others(own, torch.Generator().manual_seed(int(rng.integers(2**31))))
        with self._full_precision():
            scores = self._prompt_scores(modules, bar.prompt[inside], candidates)
            return self._reduced(losses.soft_routing_paper(scores, own, others, self.options.soft_terms))

    def _prompt_scores(self, modules: LiveEditModules, query: Tensor, edits: Tensor) -> Tensor:
        """s of each query with each edit."""
        return (query @ edits.T) * modules.prompt_scale - modules.prompt_shift

    def _reduced(self, each: Tensor) -> Tensor:
        """The losses of single queries as one: their sum (equation 12) or mean."""
        return each.sum() if self.options.reduction == "sum" else each.mean()

    def _generator_loss(self, modules: LiveEditModules, chosen: Sequence[int]) -> tuple[Tensor, dict[str, float]]:
        """NLL of edit and generality probes, each row with its own expert alone at weight 1."""
        own = chosen[self.processes.share(len(chosen))]
        rows = self._rows(own, [self._probes.in_scope(case) for case in own], shared=False)
        edits = self._rows(own, [["reliability"]] * len(own), shared=False)
        tokens = self._tokens(edits.batch)
        u, v = modules.generator(tokens)
        weights = torch.ones(len(rows.case), 1, device=self.device)
        logits = self._edited_logits(modules, rows.batch, u[rows.case, None], v[rows.case, None], weights)
        (share,) = self._shares(len(logits))
        (factor,) = self._factors(len(chosen), len(logits))
        loss = factor * losses.answer_nll(logits, rows.batch.targets)
        right = share * (logits.argmax(-1) == rows.batch.targets).float().mean().item()
        return loss, {"edit_loss_nats": loss.item(), "token_accuracy": 100 * right}

    def _joint_loss(
        self, modules: LiveEditModules, chosen: Sequence[int], rng: np.random.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        """Edit loss, locality KL and routing loss, with the experts of the batch mixed (equations 8 to 16)."""
        samples = self._probes.samples(chosen, rng) if self.options.sampling == "one" else None
        rows = self._rows(chosen, self._probes.every(chosen) if samples is None else with_edits(*samples))
        edits = self._rows(chosen, [["reliability"]] * len(chosen))
        features = modules.edit(self._tokens(edits.batch))
        made = EditFeatures(*self.processes.gather(features.u, features.v, features.visual, features.prompt))
        bar = self._gathered_query(modules, rows)
        if samples is None:
            routing, figures = self._routing_terms(modules, (made.visual, made.prompt), edits, bar, rows, rng)
        else:
            routing, figures = self._comparison(modules, chosen, self._probes.random_sides(*samples, rng), rng)
        own = rows.scope_equals(edits)
        with self._full_precision():
            weights = self._mixing_weights(modules, made, bar, own, _reachable(modules, rows), rng)
        edit_loss, kl, right = self._mixed_terms(modules, rows, made, weights[rows.own], own[rows.own].any(1))
        figures |= {"edit_loss_nats": edit_loss.item(), "kl_nats": kl.item(), "token_accuracy": 100 * right}
        return edit_loss + kl + routing, figures

    def _mixed_terms(
        self, modules: LiveEditModules, rows: _Rows, made: EditFeatures, weights: Tensor, inside: Tensor
    ) -> tuple[Tensor, Tensor, float]:
        """Edit loss, KL and token accuracy of this process's rows, with experts mixed by these weights.

        weights: (own rows, edits of all processes). inside: (own rows,) booleans, the rows in the scope of an edit.
        """
        # Rows without any expert have the unedited logits, so that their KL is 0: they are not run.
        run = inside | (weights > 0).any(1)
        batch, asked_here = rows.batch.select(run), inside[run]
        logits = self._edited_logits(modules, batch, made.u, made.v, weights[run])
        edited = asked_here[batch.answer_mask.nonzero()[:, 0]]
        outside = int(rows.batch.answer_mask[~inside].sum())
        (share,) = self._shares(int(edited.sum()))
        factor, outside_factor = self._factors(len(made.u), int(edited.sum()), outside)
        edit_loss = factor * losses.answer_nll(logits[edited], batch.targets[edited])
        base = self._base_logits(batch.final[~edited])
        kl = logits.sum() * 0
        if len(base):  # Over the answer tokens of all rows outside, including those that were not run.
            ran = outside_factor * (len(base) / outside)
            kl = ran * losses.locality_kl(base, logits[~edited], self.options.kl_exchanged)
        right = share * (logits[edited].argmax(-1) == batch.targets[edited]).float().mean().item()
        return edit_loss, kl, right

    def _mixing_weights(
        self,
        modules: LiveEditModules,
        made: EditFeatures,
        bar: QueryFeatures,
        own: Tensor,
        reachable: Tensor,
        rng: np.random.Generator,
    ) -> Tensor:
        """Soft weights, (rows, edits), of those experts of the batch that `mixing` selects."""
        scores = self._prompt_scores(modules, bar.prompt, made.prompt)
        if self.options.mixing == "routed":
            threshold = modules.visual_score(bar.visual, bar.sentinel)
            kept = (bar.visual @ made.visual.T) * modules.visual_scale > threshold[:, None]
            # The own expert is always mixed in training: it would learn nothing while hard routing keeps it out.
            kept = kept & reachable[:, None] | own
        elif self.options.mixing == "prefix":
            before = torch.arange(own.shape[1], device=own.device) < int(rng.integers(own.shape[1]))
            kept = own | before[None]
        else:
            kept = torch.ones_like(own)
        return soft_weights(scores.masked_fill(~kept, float("-inf")), modules.config.weighting)

    def _edited_logits(
        self, modules: LiveEditModules, batch: HiddenStateBatch, u: Tensor, v: Tensor, weights: Tensor
    ) -> Tensor:
        """Logits that predict the answer tokens, with these experts active.

        No gradient passes the tokens before the first changed one, of which an image has most.
        """
        residual = expert_residual(batch.hidden_states, u, v, weights, modules.config)
        changed = changed_tokens(batch, modules.config)
        plain, dtype = batch.hidden_states, self.backbone.dtype
        states = (plain + residual * changed[..., None]).to(dtype)
        kept = KeptPrompt.of(self.backbone, batch, self.layer, plain.to(dtype), changed)
        if kept is None:
            return self.backbone.logits_from(states, batch, self.layer, batch.predicting).to(self.device)
        return kept.logits(states, batch.predicting).to(self.device)

    def _base_logits(self, final: Tensor) -> Tensor:
        """Logits of the unedited model, computed from its last hidden states."""
        return self.backbone.head(final.to(self.backbone.dtype)).to(self.device)

    # -- validation --------------------------------------------------------------------------------------

    @torch.no_grad()
    def validate(self, modules: LiveEditModules, chosen: Sequence[int], group: int = 64) -> dict[str, float]:
        """Teacher-forced accuracy and routing accuracy by probe, in percent, with all these edits active at once.

        An in-scope query is routed correctly if its own expert has at least half of the weight, a locality query if
        all experts together have less than half. This measures routers before the experts are trained.
        """
        repository = ExpertRepository(self.device)
        for start in range(0, len(chosen), group):
            part = chosen[start : start + group]
            edits = self._rows(part, [["reliability"]] * len(part), shared=False)
            for case, expert in zip(part, modules.experts(self._tokens(edits.batch)), strict=True):
                repository.add(str(case), expert)
        edited = {self._probes.labels[self._probes.places[case]["reliability"]][:2] for case in chosen}
        figures = {}
        for name in (*IN_SCOPE, *LOCALITY):
            cases = [case for case in chosen if name in self._probes.places[case]]
            if name in LOCALITY:
                cases = [
                    case for case in cases if self._probes.labels[self._probes.places[case][name]][:2] not in edited
                ]
            if cases:
                own = cases[self.processes.share(len(cases))]
                parts = [own[start : start + group] for start in range(0, len(own), group)]
                found = self._percentages([self._right(modules, repository, part, name) for part in parts])
                figures[name], figures[f"{name}_routing"] = found
        return figures

    @torch.no_grad()
    def routed_queries(self, modules: LiveEditModules, group: int = 64) -> RoutedQueries:
        """Every probe that the editor can reach, compared with the edits of all cases."""
        parts = [range(start, min(start + group, len(self.cases))) for start in range(0, len(self.cases), group)]
        made = [self._keys(modules, part) for part in parts]
        visual, prompt, scopes = (torch.cat(columns) for columns in zip(*made, strict=True))
        found = [self._compared(modules, part, visual, prompt, scopes) for part in parts]
        margins, scores, own = (torch.cat(columns) for columns in zip(*found, strict=True))
        return RoutedQueries(margins, scores, own)

    def _keys(self, modules: LiveEditModules, cases: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        """phi_hat, psi_hat and scope of the edits of these cases."""
        edits = self._rows(cases, [["reliability"]] * len(cases), shared=False)
        return *modules.edit_features(self._tokens(edits.batch)), edits.scope

    def _compared(
        self, modules: LiveEditModules, cases: Sequence[int], visual: Tensor, prompt: Tensor, scopes: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Margins and scores of the probes of these cases that the editor can reach, and which edits are their own."""
        rows = self._rows(cases, self._probes.every(cases), shared=False)
        query = modules.query(self._tokens(rows.batch))
        with self._full_precision():
            sentinel = modules.visual_score(query.visual, query.sentinel)[:, None]
            margins = (query.visual @ visual.T) * modules.visual_scale - sentinel
            scores = self._prompt_scores(modules, query.prompt, prompt)
        own = (rows.scope[:, None] == scopes[None]).all(-1)
        reached = rows.has_image | modules.config.reaches_text
        return margins[reached], scores[reached], own[reached]

    def _percentages(self, parts: list[tuple[Tensor, Tensor]]) -> list[float]:
        """Percentage of true values in the first, and in the second, of each pair, over all processes."""
        counts = [number for kind in zip(*parts, strict=True) for number in _count(kind)] or [0, 0, 0, 0]
        right_tokens, tokens, right_routes, routes = self.processes.total(*counts)
        # Divided in float32, as a mean is, so that the figures do not depend on the number of processes.
        shares = torch.tensor([right_tokens, right_routes]) / torch.tensor([tokens, routes])
        return [100 * share for share in shares.tolist()]

    def _right(
        self, modules: LiveEditModules, repository: ExpertRepository, cases: Sequence[int], name: ProbeName
    ) -> tuple[Tensor, Tensor]:
        """Which answer tokens are correct, (tokens,), and which queries are routed correctly, (cases,)."""
        rows = self._rows(cases, [[name]] * len(cases), shared=False)
        query = modules.query(self._tokens(rows.batch))
        with self._full_precision():
            routing = route(modules, query, _reachable(modules, rows), repository)
        if routing is None:
            u = torch.zeros(len(cases), 1, modules.config.rank, modules.config.width, device=self.device)
            logits = self._edited_logits(modules, rows.batch, u, u, u.new_zeros(len(cases), 1))
        else:
            logits = self._edited_logits(modules, rows.batch, routing.u, routing.v, routing.weights)
        wanted = rows.batch.targets
        if name in LOCALITY:
            wanted = self._base_logits(rows.batch.final).argmax(-1)
        fired = [()] * len(cases) if routing is None else routing.fired
        routed = [
            sum(expert.weight for expert in experts if name in LOCALITY or expert.edit_id == str(case)) >= 0.5
            for case, experts in zip(cases, fired, strict=True)
        ]
        return logits.argmax(-1) == wanted, torch.tensor(routed) != (name in LOCALITY)

    # -- picking rows ------------------------------------------------------------------------------------

    def _rows(self, cases: Sequence[int], names: Sequence[Sequence[str]], shared: bool = True) -> _Rows:
        """These probes of these cases, with hidden states of this process's share (`shared`) or of all cases."""
        places = [self._probes.places[case][name] for case, wanted in zip(cases, names, strict=True) for name in wanted]
        numbers = [number for number, wanted in enumerate(names) for _ in wanted]
        mine = self.processes.share(len(cases)) if shared else slice(0, len(cases))
        own = slice(*(sum(map(len, names[:end])) for end in (mine.start, mine.stop)))
        subject, relation, image = torch.tensor([self._probes.labels[place] for place in places], device=self.device).T
        case = torch.tensor(numbers, device=self.device)
        has_image = torch.tensor([self.items[place][0].image is not None for place in places], device=self.device)
        return _Rows(self.store.batch(places[own]), case, subject, relation, image, has_image, own)

    def _thinned(self, rows: _Rows, rng: np.random.Generator) -> _Rows:
        """The same rows with some tokens of prompt and image hidden, never the last of either.

        Masks are drawn per row of the whole batch, so that they do not depend on the process that holds the row.
        """
        batch, hidden = rows.batch, torch.zeros_like(rows.batch.roles, dtype=torch.bool)
        for tokens, share in (
            (batch.prompt_mask, self.options.prompt_dropout),
            (batch.image_mask, self.options.image_dropout),
        ):
            if share:
                drawn = torch.from_numpy(rng.random((len(rows.case), _DRAWS_PER_ROW)) < share)
                hidden |= _drawn_tokens(tokens, drawn[rows.own].to(self.device))
        if not hidden.any():
            return rows
        return replace(rows, batch=replace(batch, roles=batch.roles.masked_fill(hidden, TokenRole.PADDING)))

    def _tokens(self, batch: HiddenStateBatch) -> HiddenTokens:
        ids = batch.input_ids.masked_fill(
            batch.image_mask, self.backbone.pad_token_id
        )  # Some families have no embedding of it.
        embeddings = self.backbone.word_embeddings(ids.to(self.backbone.device)).float().to(self.device)
        return HiddenTokens.of(batch, batch.hidden_states, embeddings)

    def _gathered_query(self, modules: LiveEditModules, rows: _Rows) -> QueryFeatures:
        """Query-side features of the rows of all processes."""
        own = modules.query(self._tokens(rows.batch))
        return QueryFeatures(*self.processes.gather(own.visual, own.sentinel, own.prompt))

    def _shares(self, *sizes: int) -> list[float]:
        """Factors that make the mean over processes of a mean over `size` things the mean over those of all."""
        totals = self.processes.total(*sizes)
        return [self.processes.count * size / max(1, total) for size, total in zip(sizes, totals, strict=True)]

    def _factors(self, edits: int, *sizes: int) -> list[float]:
        """Factors on means over `size` answer tokens of this process, whose mean over processes is the batch's loss.

        That loss is the mean over the answer tokens of all processes, or by `reduction` their sum for each of `edits`
        (equations 8 to 11).
        """
        if self.options.reduction == "sum":
            return [self.processes.count * size / edits for size in sizes]
        return self._shares(*sizes)

    def _full_precision(self) -> torch.autocast:
        """Similarities are computed in float32: bfloat16 is too coarse to compare them."""
        return torch.autocast(self.device.type, enabled=False)


def _reachable(modules: LiveEditModules, rows: _Rows) -> Tensor:
    """(rows,) booleans: the queries in the editor's scope."""
    return rows.has_image if modules.config.scope == "image" else torch.ones_like(rows.has_image)


def _drawn_tokens(tokens: Tensor, drawn: Tensor) -> Tensor:
    """Those of the tokens, (rows, tokens) booleans, whose number in their row is drawn, but for the last."""
    place = tokens.long().cumsum(1) - 1
    return tokens & (place < place[:, -1:]) & drawn.gather(1, place.clamp(min=0) % _DRAWS_PER_ROW)


def _count(parts: Sequence[Tensor]) -> tuple[int, int]:
    """The number of true values, and the number of values."""
    return sum(int(part.sum()) for part in parts), sum(len(part) for part in parts)
