"""How RECIPE is trained: the retriever on kept states, the prompts through the whole backbone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ...backbones.prompt_transforms import PreparedQuestion
from ...samples import GENERALITY, LOCALITY
from ..shared import IN_SCOPE, FeatureMemory, ScopeRows, ScopeTask
from ..shared.losses import answer_nll, locality_kl
from ..shared.scope_task import parts
from .modules import RecipeModules

Stage = Literal["retrieval", "prompts"]


class RecipeTask(ScopeTask):
    """The losses of RECIPE's section 3.5, each in a stage of its own: here they share no weights."""

    def loss(
        self, modules: RecipeModules, stage: Stage, chosen: Sequence[int], rng: np.random.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        """The loss of a stage on these cases, and its parts."""
        return (self._retrieval_loss if stage == "retrieval" else self._prompt_loss)(modules, chosen, rng)

    def _retrieval_loss(
        self, modules: RecipeModules, chosen: Sequence[int], rng: np.random.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        """Of each case its edit, a random input in its scope, and two of its locality inputs.

        Every process computes the whole of it: no decoder runs.
        """
        pairs = self.pairs(chosen, rng, inside=1)
        keys, own_queries = modules.both(pairs.edits.tokens)
        queries = torch.cat([own_queries, modules.queries(pairs.queries.tokens)])
        own = torch.cat([pairs.edits.reached_by(pairs.edits), pairs.own])
        with self.full_precision():
            edits, sentinel = modules.scale * queries @ keys.T, modules.scale * queries @ modules.sentinel_key
            loss = retrieval_loss(edits, sentinel, own)
        fires = edits > sentinel[:, None]
        figures = {
            "own_passes": 100 * fires[own].float().mean().item(),
            "others_pass": 100 * (fires & ~own).any(1).float().mean().item(),
        }
        return loss, figures

    def _prompt_loss(
        self, modules: RecipeModules, chosen: Sequence[int], rng: np.random.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        """NLL on one random input in scope of each edit, and KL on locality inputs, all with the edit's prompt."""
        inside = [self._some_inside(case, 1, rng) for case in chosen]
        wanted = set(rng.permutation(len(chosen))[: round(self.config.locality_share * len(chosen))].tolist())
        outside = [self._one_outside(case, rng) if place in wanted else [] for place, case in enumerate(chosen)]
        mine = self.processes.share(len(chosen))
        names = [[*a, *b] for a, b in zip(inside[mine], outside[mine], strict=True)]
        rows = self.rows(chosen[mine], names)
        prompts = modules.generator(self.edit_rows(chosen[mine]).tokens)
        is_inside = torch.tensor([name in IN_SCOPE for row in names for name in row], device=self.device)
        logits, targets, row_of = self._prompted_logits(rows, prompts[rows.case])
        edited = is_inside[row_of]
        share, outside_share = self.shares(int(edited.sum()), int((~edited).sum()))
        loss = share * answer_nll(logits[edited], targets[edited])
        right = share * (logits[edited].argmax(-1) == targets[edited]).float().mean().item()
        figures = {"edit_loss_nats": loss.item(), "token_accuracy": 100 * right, "kl_nats": 0.0}
        if outside_share:
            kl = outside_share * locality_kl(self.base_logits(rows.batch.final)[~edited], logits[~edited])
            loss, figures["kl_nats"] = loss + self.config.locality_weight * kl, kl.item()
        return loss, figures

    def _one_outside(self, case: int, rng: np.random.Generator) -> list[str]:
        names = self.locality_names(case)
        return [names[rng.integers(len(names))]] if names else []

    def _prompted_logits(self, rows: ScopeRows, prompts: Sequence[Tensor | None] | Tensor) -> tuple[Tensor, ...]:
        """Logits, (answer tokens, vocabulary), their targets, and the row of each; prompts row by row."""
        questions, answers = zip(*rows.items, strict=True)
        with self.backbone.transformed(
            lambda asked: [PreparedQuestion(q, p) for q, p in zip(asked, prompts, strict=True)]
        ):
            inputs = self.backbone.encode(questions, answers)
        logits = self.backbone.logits(inputs)[inputs.predicting].to(self.device)
        targets = inputs.input_ids[inputs.answer_mask].to(self.device)
        return logits, targets, inputs.answer_mask.nonzero()[:, 0].to(self.device)

    # -- validation --------------------------------------------------------------------------------------

    @torch.no_grad()
    def validate(self, modules: RecipeModules, chosen: Sequence[int], group: int = 64) -> dict[str, float]:
        """Figures in percent with all these edits active at once.

        By probe, whether an in-scope query finds its own edit and a locality query none (`..._retrieval`); and
        teacher-forced accuracy of generality after the own prompt, whatever is found: each is measured before the
        other is trained.
        """
        memory, prompts = FeatureMemory(), {}
        for part in parts(chosen, group):
            tokens = self.edit_rows(part).tokens
            for case, key, prompt in zip(part, modules.keys(tokens), modules.generator(tokens), strict=True):
                memory.add(str(case), key)
                prompts[case] = prompt
        edited = {self._scopes[self.places[case]["reliability"]] for case in chosen}
        figures = {}
        for name in (*IN_SCOPE, *LOCALITY):
            cases = [case for case in chosen if name in self.places[case]]
            if name in LOCALITY:
                cases = [case for case in cases if self._scopes[self.places[case][name]] not in edited]
            if not cases:
                continue
            found = [self._retrieved_right(modules, memory, part, name) for part in parts(cases, group)]
            figures[f"{name}_retrieval"] = 100 * torch.cat(found).float().mean().item()
            if name in GENERALITY:
                found = [self._answered_right(part, name, prompts) for part in parts(cases, group)]
                figures[name] = 100 * torch.cat(found).float().mean().item()
        return figures

    def _retrieved_right(
        self, modules: RecipeModules, memory: FeatureMemory, cases: Sequence[int], name: str
    ) -> Tensor:
        """(cases,) booleans."""
        queries = modules.queries(self.rows(cases, [[name]] * len(cases)).tokens)
        ids, similarity = memory.nearest(queries)
        fires = (similarity > queries @ modules.sentinel_key).tolist()
        if name in LOCALITY:
            return ~torch.tensor(fires)
        own = [edit_id == str(case) for edit_id, case in zip(ids, cases, strict=True)]
        return torch.tensor(fires) & torch.tensor(own)

    def _answered_right(self, cases: Sequence[int], name: str, prompts: dict[int, Tensor]) -> Tensor:
        """(answer tokens,) booleans."""
        rows = self.rows(cases, [[name]] * len(cases))
        logits, targets, _ = self._prompted_logits(rows, [prompts[case] for case in cases])
        return (logits.argmax(-1) == targets).cpu()


def retrieval_loss(edits: Tensor, sentinel: Tensor, own: Tensor) -> Tensor:
    """The contrastive losses of RECIPE, in nats, averaged over queries.

    edits: (queries, edits) similarities; sentinel: (queries,); own: (queries, edits) booleans. A query in scope is to
    find its edit among all edits and the sentinel, and the sentinel among the sentinel and the other edits; a query out
    of every scope is to find the sentinel.
    """
    edits, sentinel = edits.float(), sentinel.float()[:, None]
    inside = own.any(1)
    everything = torch.cat([edits, sentinel], 1)[inside].log_softmax(1)[:, :-1]
    share = own[inside].float() / own[inside].sum(1, keepdim=True)
    found = -(everything * share).sum(1)
    others = torch.cat([edits.masked_fill(own, float("-inf")), sentinel], 1)
    sentinel_found = -others.log_softmax(1)[:, -1]
    return sentinel_found.mean() + (found.mean() if len(found) else found.sum())
