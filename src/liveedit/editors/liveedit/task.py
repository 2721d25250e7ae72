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
from ...backbones.hidden_states import HiddenStateBatch, HiddenStateCache, Item
from ...experts import ExpertRepository
from ...samples import LOCALITY, EditCase, ProbeName
from ...training.distributed import ALONE, Processes
from ..shared.routing import QueryFeatures, changed_tokens, expert_residual, route, soft_weights
from . import losses
from .config import LiveEditLosses
from .modules import EditFeatures, LiveEditModules

_DRAWS_PER_ROW = 64
"""Random numbers per row that decide which prompt tokens are hidden; longer prompts reuse them."""

_IN_SCOPE: tuple[ProbeName, ...] = ("reliability", "text_generality", "modal_generality")

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
        self.items: list[Item] = []
        self._places: list[dict[str, int]] = []
        self._labels: list[tuple[int, int, int]] = []
        self._with_images: list[bool] = []
        self._lay_out()

    def _lay_out(self) -> None:
        """Record the index of every input in the store, its scope and image, and whether it has an image."""
        subjects: dict[str, int] = {}
        relations: dict[str, int] = {}
        images: dict[str, int] = {}
        for case in self.cases:
            place: dict[str, int] = {}
            for probe in (case.reliability, *case.probes):
                answer = case.edit.answer if probe.name in _IN_SCOPE else probe.answer
                if probe.name not in (*_IN_SCOPE, *LOCALITY) or not answer or not answer.strip():
                    continue
                subject, relation = case.edit.scope if probe.name in _IN_SCOPE else probe.question.scope
                place[probe.name] = len(self.items)
                self.items.append((probe.question, answer))
                self._with_images.append(probe.question.image is not None)
                shown, _ = replace(probe.question, subject=None).scope
                self._labels.append(
                    (
                        subjects.setdefault(subject, len(subjects)),
                        relations.setdefault(relation, len(relations)),
                        images.setdefault(shown, len(images)),
                    )
                )
            self._places.append(place)

    def prepare(self, progress: Callable[[int, int], None] = lambda done, total: None) -> None:
        """Compute the hidden states of every input, once."""
        self.store.fill(self.items, progress=progress)

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
        edits = self._rows(chosen, [[self._random_in_scope(case, rng)] for case in chosen])
        inside = [[self._random_in_scope(case, rng), self._random_in_scope(case, rng)] for case in chosen]
        outside = [self._hard_negatives(case, rng) for case in chosen]
        queries = self._rows(chosen, [[*a, *b] for a, b in zip(inside, outside, strict=True)])
        edits, queries = (self._thinned(rows, rng) for rows in (edits, queries))
        visual, prompt = self.processes.gather(*modules.edit_features(self._tokens(edits.batch)))
        bar = self._gathered_query(modules, queries)
        with self._full_precision():
            return self._routing_terms(modules, (visual, prompt), edits, bar, queries)

    def _routing_terms(
        self, modules: LiveEditModules, hat: tuple[Tensor, Tensor], edits: _Rows, bar: QueryFeatures, queries: _Rows
    ) -> tuple[Tensor, dict[str, float]]:
        same_subject = queries.subject[:, None] == edits.subject[None]
        asks_same = queries.relation[:, None] == edits.relation[None]
        own = same_subject & asks_same
        options = self.options
        ignored = same_subject if options.same_subject == "ignored" else torch.zeros_like(own)
        if not modules.config.hard_prompt:  # Such a router cannot separate two questions about one image.
            ignored = ignored | (queries.image[:, None] == edits.image[None])
        visual = (bar.visual @ hat[0].T) * modules.visual_scale
        sentinel = modules.visual_score(bar.visual, bar.sentinel)
        prompt = (bar.prompt @ hat[1].T) * modules.prompt_scale - modules.prompt_offset
        own_seen = own
        if modules.config.scope == "image":  # Queries without an image do not reach hard routing.
            seen = queries.has_image
            visual, sentinel, own_seen, ignored = visual[seen], sentinel[seen], own[seen], ignored[seen]
        if options.hard_loss == "paper":
            hard = losses.hard_routing_paper(visual, sentinel, own_seen)
        else:
            hard = losses.hard_routing_margin(
                visual, sentinel, own_seen, ignored, options.margin, options.negative_weight
            )
        if not modules.config.soft_routing:  # The prompt has no influence on the weights: there is nothing to learn.
            soft = prompt.sum() * 0
        elif options.soft_loss == "paper":
            generator = torch.Generator().manual_seed(int(queries.case.sum()))
            soft = losses.soft_routing_paper(prompt, own, generator, options.soft_terms)
        else:
            kinds = losses.PairKinds(own, asks_same)
            soft = losses.soft_routing_masked(prompt, kinds, options.negative_weight, options.soft_terms)
        fires = visual > sentinel[:, None]
        figures = {
            "hard_loss_nats": hard.item(),
            "soft_loss_nats": soft.item(),
            "own_passes": 100 * fires[own_seen].float().mean().item(),
            "others_pass": 100 * (fires & ~own_seen).any(1).float().mean().item(),
        }
        return hard + soft, figures

    def _generator_loss(self, modules: LiveEditModules, chosen: Sequence[int]) -> tuple[Tensor, dict[str, float]]:
        """NLL of edit and generality probes, each row with its own expert alone at weight 1."""
        own = chosen[self.processes.share(len(chosen))]
        rows = self._rows(own, [self._in_scope_names(case) for case in own], shared=False)
        edits = self._rows(own, [["reliability"]] * len(own), shared=False)
        tokens = self._tokens(edits.batch)
        u, v = modules.generator(tokens)
        weights = torch.ones(len(rows.case), 1, device=self.device)
        logits = self._edited_logits(modules, rows.batch, u[rows.case, None], v[rows.case, None], weights)
        (share,) = self._shares(len(logits))
        loss = share * losses.answer_nll(logits, rows.batch.targets)
        right = share * (logits.argmax(-1) == rows.batch.targets).float().mean().item()
        return loss, {"edit_loss_nats": loss.item(), "token_accuracy": 100 * right}

    def _joint_loss(
        self, modules: LiveEditModules, chosen: Sequence[int], rng: np.random.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        """Edit loss, locality KL and routing loss, with the experts of the batch mixed (equations 8 to 16)."""
        names = [
            [*self._in_scope_names(case), *self._locality_names(case, has_image=not self.options.text_locality)]
            for case in chosen
        ]
        rows = self._rows(chosen, names)
        edits = self._rows(chosen, [["reliability"]] * len(chosen))
        features = modules.edit(self._tokens(edits.batch))
        made = EditFeatures(*self.processes.gather(features.u, features.v, features.visual, features.prompt))
        bar = self._gathered_query(modules, rows)
        own = (rows.subject[:, None] == edits.subject[None]) & (rows.relation[:, None] == edits.relation[None])
        with self._full_precision():
            routing, figures = self._routing_terms(modules, (made.visual, made.prompt), edits, bar, rows)
            weights = self._mixing_weights(modules, made.visual, made.prompt, bar, own, rows.has_image, rng)
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
        share, outside_share = self._shares(int(edited.sum()), outside)
        edit_loss = share * losses.answer_nll(logits[edited], batch.targets[edited])
        base = self._base_logits(batch.final[~edited])
        kl = logits.sum() * 0
        if len(base):  # Averaged over the answer tokens of all rows outside, including those that were not run.
            ran = outside_share * (len(base) / outside)
            kl = ran * losses.locality_kl(base, logits[~edited], self.options.kl_exchanged)
        right = share * (logits[edited].argmax(-1) == batch.targets[edited]).float().mean().item()
        return edit_loss, kl, right

    def _mixing_weights(
        self,
        modules: LiveEditModules,
        visual_hat: Tensor,
        prompt_hat: Tensor,
        bar: QueryFeatures,
        own: Tensor,
        has_image: Tensor,
        rng: np.random.Generator,
    ) -> Tensor:
        """Soft weights, (rows, edits), of those experts of the batch that `mixing` selects."""
        scores = (bar.prompt @ prompt_hat.T) * modules.prompt_scale - modules.prompt_offset
        if self.options.mixing == "routed":
            threshold = modules.visual_score(bar.visual, bar.sentinel)
            kept = (bar.visual @ visual_hat.T) * modules.visual_scale > threshold[:, None]
            # The own expert is always mixed in training: it would learn nothing while hard routing keeps it out.
            kept = kept & has_image[:, None] | own
        elif self.options.mixing == "prefix":
            before = torch.arange(own.shape[1], device=own.device) < int(rng.integers(own.shape[1]))
            kept = own | before[None]
        else:
            kept = torch.ones_like(own)
        return soft_weights(scores.masked_fill(~kept, float("-inf")), modules.config.weighting)

    def _edited_logits(
        self, modules: LiveEditModules, batch: HiddenStateBatch, u: Tensor, v: Tensor, weights: Tensor
    ) -> Tensor:
        """Logits that predict the answer tokens, with these experts active."""
        residual = expert_residual(batch.hidden_states, u, v, weights, modules.config)
        changed = changed_tokens(batch, modules.config)
        states = batch.hidden_states + residual * changed[..., None]
        logits = self.backbone.logits_from(states.to(self.backbone.dtype), batch, self.layer, batch.predicting)
        return logits.to(self.device)

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
        edited = {self._labels[self._places[case]["reliability"]][:2] for case in chosen}
        figures = {}
        for name in (*_IN_SCOPE, *LOCALITY):
            cases = [case for case in chosen if name in self._places[case]]
            if name in LOCALITY:
                cases = [case for case in cases if self._labels[self._places[case][name]][:2] not in edited]
            if cases:
                own = cases[self.processes.share(len(cases))]
                parts = [own[start : start + group] for start in range(0, len(own), group)]
                found = self._percentages([self._right(modules, repository, part, name) for part in parts])
                figures[name], figures[f"{name}_routing"] = found
        return figures

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
            routing = route(modules, query, rows.has_image, repository)
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
        places = [self._places[case][name] for case, wanted in zip(cases, names, strict=True) for name in wanted]
        numbers = [number for number, wanted in enumerate(names) for _ in wanted]
        mine = self.processes.share(len(cases)) if shared else slice(0, len(cases))
        own = slice(*(sum(map(len, names[:end])) for end in (mine.start, mine.stop)))
        subject, relation, image = torch.tensor([self._labels[place] for place in places], device=self.device).T
        case = torch.tensor(numbers, device=self.device)
        has_image = torch.tensor([self._with_images[place] for place in places], device=self.device)
        return _Rows(self.store.batch(places[own]), case, subject, relation, image, has_image, own)

    def _thinned(self, rows: _Rows, rng: np.random.Generator) -> _Rows:
        """The same rows with some prompt tokens hidden, never the last.

        The mask is drawn per row of the whole batch, so that it does not depend on the process that holds the row.
        """
        share = self.options.prompt_dropout
        if not share:
            return rows
        hidden = torch.from_numpy(rng.random((len(rows.case), _DRAWS_PER_ROW)) < share)[rows.own].to(self.device)
        prompt = rows.batch.prompt_mask
        place = prompt.long().cumsum(1) - 1
        last = place == place[:, -1:]
        kept = prompt & (last | ~hidden.gather(1, place.clamp(min=0) % _DRAWS_PER_ROW))
        roles = rows.batch.roles.masked_fill(prompt & ~kept, TokenRole.PADDING)
        return replace(rows, batch=replace(rows.batch, roles=roles))

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

    def _full_precision(self) -> torch.autocast:
        """Similarities are computed in float32: bfloat16 is too coarse to compare them."""
        return torch.autocast(self.device.type, enabled=False)

    def _in_scope_names(self, case: int) -> list[str]:
        return [name for name in _IN_SCOPE if name in self._places[case]]

    def _locality_names(self, case: int, has_image: bool) -> list[str]:
        """The case's locality inputs; with `has_image`, only those that have one."""
        skipped = ("text_locality",) if has_image else ()
        return [name for name in LOCALITY if name in self._places[case] and name not in skipped]

    def _hard_negatives(self, case: int, rng: np.random.Generator) -> list[str]:
        """The near duplicate, which is the hardest to route, and one of the easier locality inputs."""
        names = self._locality_names(case, has_image=True)
        near = [name for name in names if name == "near_duplicate_locality"]
        easier = [name for name in names if name not in near]
        return near + ([easier[rng.integers(len(easier))]] if easier else [])

    def _random_in_scope(self, case: int, rng: np.random.Generator) -> str:
        names = self._in_scope_names(case)
        return names[rng.integers(len(names))]


def _count(parts: Sequence[Tensor]) -> tuple[int, int]:
    """The number of true values, and the number of values."""
    return sum(int(part.sum()) for part in parts), sum(len(part) for part in parts)
