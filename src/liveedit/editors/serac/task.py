"""How SERAC is trained: pairs of edits and queries for the classifier, rewritten answers for the other model."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..shared import StagedScopeTask
from ..shared.random_answers import random_answer
from ..shared.scope_task import AT_ONCE, StageFigures, StageLoss
from .counterfactual import Rewrite
from .modules import SeracModules


class SeracTask(StagedScopeTask):
    """The stages `classifier` and `counterfactual`."""

    def stages(self) -> dict[str, tuple[StageLoss, StageFigures]]:
        """Binary cross-entropy of all pairs; negative log-likelihood of rewritten answers."""
        return {
            "classifier": (self._classifier_loss, self._classifier_figures),
            "counterfactual": (self._counterfactual_loss, self._counterfactual_figures),
        }

    def _classifier_loss(
        self, modules: SeracModules, chosen: Sequence[int], rng: np.random.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        pairs = self.pairs(chosen, rng)
        classifier = modules.classifier
        scores = classifier.scores(classifier(pairs.queries.tokens), classifier(pairs.edits.tokens))
        hits = scores > 0
        figures = {
            "own_in_scope": 100 * hits[pairs.own].float().mean().item(),
            "others_in_scope": 100 * (hits & ~pairs.own).any(1).float().mean().item(),
        }
        return pair_loss(scores, pairs.own, self.config.negative_weight), figures

    def _counterfactual_loss(
        self, modules: SeracModules, chosen: Sequence[int], rng: np.random.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        rewrites = [self._rewrite(case, rng) for case in chosen]
        logits, targets = self._predicted(modules, rewrites)
        right = logits.argmax(-1) == targets
        return F.cross_entropy(logits.float(), targets), {"token_accuracy": 100 * right.float().mean().item()}

    def _rewrite(self, case: int, rng: np.random.Generator) -> Rewrite:
        edit, query = (self.items[self.places[case][self.one_inside(case, rng)]][0].prompt for _ in range(2))
        answer = self.cases[case].edit.answer
        if rng.random() < self.config.random_answers:
            answer = random_answer(self.words, rng)
        return Rewrite(edit, answer, query)

    def _predicted(self, modules: SeracModules, rewrites: Sequence[Rewrite]) -> tuple[Tensor, Tensor]:
        """Logits of each answer token, (tokens, vocabulary), and the tokens."""
        model = modules.counterfactual
        answers = [model.answer_ids(item.answer) for item in rewrites]
        return model(rewrites, answers), torch.tensor([*chain(*answers)], device=model.device)

    # -- validation --------------------------------------------------------------------------------------

    def _classifier_figures(self, modules: SeracModules, chosen: Sequence[int]) -> dict[str, float]:
        classifier = modules.classifier
        found: list[Tensor] = []
        for queries, edits, own in self.validated_features(classifier, chosen):
            scores = classifier.scores(queries, edits)
            best = scores.argmax(1, keepdim=True)
            answers = scores.gather(1, best)[:, 0] > 0
            found.append(torch.stack([own.any(1), answers, own.gather(1, best)[:, 0]], 1))
        inside, answers, own_first = torch.cat(found).unbind(1)
        return {
            "in_scope": 100 * (answers & own_first)[inside].float().mean().item(),
            "out_of_scope": 100 * (~answers)[~inside].float().mean().item(),
        }

    def _counterfactual_figures(self, modules: SeracModules, chosen: Sequence[int]) -> dict[str, float]:
        """Answers of which every token is right, as they are and made of random tokens."""
        rng = np.random.default_rng(0)
        prompts = [[self.items[self.places[case][name]][0].prompt for name in self._two(case)] for case in chosen]
        kinds = {
            "rewritten": [self.cases[case].edit.answer for case in chosen],
            "random_rewritten": [random_answer(self.words, rng) for _ in chosen],
        }
        return {
            name: self._exact(modules, [Rewrite(a, answer, b) for (a, b), answer in zip(prompts, answers, strict=True)])
            for name, answers in kinds.items()
        }

    def _two(self, case: int) -> tuple[str, str]:
        names = self.in_scope_names(case)
        return "reliability", "text_generality" if "text_generality" in names else "reliability"

    def _exact(self, modules: SeracModules, rewrites: Sequence[Rewrite]) -> float:
        right = 0
        for start in range(0, len(rewrites), AT_ONCE):
            part = rewrites[start : start + AT_ONCE]
            logits, targets = self._predicted(modules, part)
            lengths = [len(modules.counterfactual.answer_ids(item.answer)) for item in part]
            right += sum(bool(row.all()) for row in (logits.argmax(-1) == targets).split(lengths))
        return 100 * right / len(rewrites)


def pair_loss(scores: Tensor, own: Tensor, negative_weight: float) -> Tensor:
    """Binary cross-entropy over all pairs of a query and an edit, in nats.

    scores: (queries, edits), log-odds of "in scope"; own: (queries, edits) booleans. Pairs out of scope are summed over
    the edits and averaged over the queries: a memory may hold thousands, and none of them may be wrong. Pairs in scope
    are averaged. (The paper draws one of each kind.)
    """
    scores = scores.float()
    outside = F.softplus(scores).masked_fill(own, 0).sum(1).mean()
    inside = F.softplus(-scores)[own].mean() if bool(own.any()) else scores.sum() * 0
    return inside + negative_weight * outside
