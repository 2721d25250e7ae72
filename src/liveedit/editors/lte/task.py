"""How LTE is trained: a retriever that finds the edit, and a model that follows it if it concerns the query."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ...backbones.hidden_states import Item
from ...samples import Edit, ProbeName, Question
from ..shared import StagedScopeTask, scope_loss
from ..shared.random_answers import random_answer
from ..shared.scope_task import AT_ONCE, StageFigures, StageLoss, parts
from .context import with_edits
from .modules import LearningToEditModules
from .tuning import TunedWeights

_DISTINCT_BY_TEXT: tuple[ProbeName, ...] = ("text_locality", "modal_locality", "same_image_locality")
"""Locality inputs whose text shows that the edit does not concern them.

The context holds the edit without its image, so the model cannot see that the same question is asked about another
image. Trained to ignore such an edit, it would ignore edits of redrawn images as well.
"""


@dataclass(frozen=True)
class _Asked:
    """Rows of one batch: what is asked and answered, and where in the store the base model's answers to it are."""

    questions: tuple[Question, ...]
    answers: tuple[str, ...]
    places: tuple[int, ...] = ()


class LearningToEditTask(StagedScopeTask):
    """The stages `retriever`, `following` and `alignment`."""

    def stages(self) -> dict[str, tuple[StageLoss, StageFigures]]:
        """Pairs in and out of scope; the answers of edits in the context; these and the base model's own answers."""
        return {
            "retriever": (self._retriever_loss, self._retriever_figures),
            "following": (self._following_loss, self._following_figures),
            "alignment": (self._alignment_loss, self._alignment_figures),
        }

    def _retriever_loss(
        self, modules: LearningToEditModules, chosen: Sequence[int], rng: np.random.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        pairs = self.pairs(chosen, rng)
        queries, edits = modules.retriever(pairs.queries.tokens), modules.retriever(pairs.edits.tokens)
        with torch.autocast(queries.device.type, enabled=False):
            scores = modules.similarity(queries @ edits.T)
        return scope_loss(scores, pairs.own), {"own_passes": 100 * (scores > 0)[pairs.own].float().mean().item()}

    # -- alignment ---------------------------------------------------------------------------------------

    def _following_loss(
        self, modules: LearningToEditModules, chosen: Sequence[int], rng: np.random.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        """`NLL(answer | edits, query in scope)` alone.

        A small model has never copied from its context; with the second loss from the start, it learns that much later.
        """
        logits, targets, _ = self._predict(modules, self._followed(chosen, rng))
        followed = 100 * (logits.argmax(-1) == targets).float().mean().item()
        return F.cross_entropy(logits, targets), {"followed": followed}

    def _alignment_loss(
        self, modules: LearningToEditModules, chosen: Sequence[int], rng: np.random.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        """`NLL(answer | edits, query in scope) + KL(base || tuned)` on queries out of scope, and on ones without edits.

        The paper's in-scope and out-of-scope samples (section 3.2), with the base model's distribution in place of a
        sampled answer out of scope.
        """
        followed = self._followed(chosen, rng)
        kept = self._kept(chosen, rng)
        logits, targets, tokens = self._predict(modules, followed, kept)
        count = sum(tokens[: len(followed.questions)])
        follow = F.cross_entropy(logits[:count], targets[:count])
        base = self._base_logits(kept).log_softmax(-1)
        keep = F.kl_div(logits[count:].log_softmax(-1), base, reduction="batchmean", log_target=True)
        figures = {
            "follow_loss_nats": follow.item(),
            "keep_loss_nats": keep.item(),
            "followed": 100 * (logits[:count].argmax(-1) == targets[:count]).float().mean().item(),
        }
        return follow + self.config.keep_weight * keep, figures

    def _followed(self, chosen: Sequence[int], rng: np.random.Generator) -> _Asked:
        """A query in scope of each case, after its edit."""
        questions, answers = [], []
        for case in chosen:
            asked, _ = self._item(case, self.one_inside(case, rng))
            answer = self.cases[case].edit.answer
            if rng.random() < self.config.random_answers:
                answer = random_answer(self.words, rng)
            edit = Edit(self._item(case, self.one_inside(case, rng))[0], answer)
            questions.append(with_edits(self.config, asked, self._among_others(edit, chosen, rng)))
            answers.append(answer)
        return _Asked(tuple(questions), tuple(answers))

    def _kept(self, chosen: Sequence[int], rng: np.random.Generator) -> _Asked:
        """For each case a locality input after its edit, and one of its inputs without any."""
        questions, answers, places = [], [], []
        for case in chosen:
            edit = self.cases[case].edit
            distinct = [name for name in _DISTINCT_BY_TEXT if name in self.places[case]]
            every = [*self.locality_names(case), "reliability"]
            drawn = [(every[rng.integers(len(every))], [])]
            if distinct:
                name = distinct[rng.integers(len(distinct))]
                drawn.append((name, self._among_others(edit, chosen, rng)))
            for name, edits in drawn:
                question, answer = self._item(case, name)
                questions.append(with_edits(self.config, question, edits))
                answers.append(answer)
                places.append(self.places[case][name])
        return _Asked(tuple(questions), tuple(answers), tuple(places))

    def _among_others(self, edit: Edit, chosen: Sequence[int], rng: np.random.Generator) -> list[Edit]:
        """The edit at a random place among others, as many as a query has before it."""
        others = [self.cases[case].edit for case in rng.permutation(chosen)]
        found = [other for other in others if other.question.prompt != edit.question.prompt][: self.config.top_k - 1]
        found.insert(int(rng.integers(len(found) + 1)), edit)
        return found

    def _item(self, case: int, name: str) -> Item:
        return self.items[self.places[case][name]]

    def _predict(self, modules: LearningToEditModules, *asked: _Asked) -> tuple[Tensor, Tensor, list[int]]:
        """Logits of each answer token, (tokens, vocabulary) float32, the tokens, and how many each row has."""
        questions = [question for part in asked for question in part.questions]
        answers = [answer for part in asked for answer in part.answers]
        inputs = self.backbone.encode(questions, answers)
        with TunedWeights(self.backbone, modules.tuning).training():
            logits = self.backbone.logits(inputs)[inputs.predicting]
        return logits.float(), inputs.input_ids[inputs.answer_mask], inputs.answer_mask.sum(1).tolist()

    @torch.no_grad()
    def _base_logits(self, asked: _Asked) -> Tensor:
        """The untouched model's logits of the same answers to the bare questions, (tokens, vocabulary) float32."""
        final = self.store.batch(asked.places).final
        with torch.autocast(final.device.type, enabled=False):
            return self.backbone.head(final.to(self.backbone.device, self.backbone.dtype)).float()

    # -- validation --------------------------------------------------------------------------------------

    def _retriever_figures(self, modules: LearningToEditModules, chosen: Sequence[int]) -> dict[str, float]:
        """How often the own edit is the nearest, and scores above 0; how often none does if none should."""
        found: list[Tensor] = []
        for queries, edits, own in self.validated_features(modules.retriever, chosen):
            cosines = queries.float() @ edits.float().T
            best = cosines.argmax(1, keepdim=True)
            passes = modules.similarity(cosines.gather(1, best)[:, 0]) > 0
            found.append(torch.stack([own.any(1), own.gather(1, best)[:, 0], passes], 1))
        inside, own_first, passes = torch.cat(found).unbind(1)
        return {
            "own_nearest": 100 * own_first[inside].float().mean().item(),
            "own_passes": 100 * (own_first & passes)[inside].float().mean().item(),
            "others_out": 100 * (~passes)[~inside].float().mean().item(),
        }

    def _alignment_figures(self, modules: LearningToEditModules, chosen: Sequence[int]) -> dict[str, float]:
        """Answers of which every token is right: the edit's in scope, the base model's own out of it."""
        rng = np.random.default_rng(0)
        right: dict[str, list[bool]] = {"followed": [], "kept": []}
        for part in parts(chosen, AT_ONCE // 4):
            followed, kept = self._followed(part, rng), self._kept(part, rng)
            logits, targets, tokens = self._predict(modules, followed, kept)
            count = len(followed.questions)
            wanted = torch.cat([targets[: sum(tokens[:count])], self._base_logits(kept).argmax(-1)])
            rows = [bool(row.all()) for row in (logits.argmax(-1) == wanted).split(tokens)]
            right["followed"] += rows[:count]
            right["kept"] += rows[count:]
        return {name: 100 * sum(rows) / len(rows) for name, rows in right.items()}

    def _following_figures(self, modules: LearningToEditModules, chosen: Sequence[int]) -> dict[str, float]:
        """The first of them."""
        return {"followed": self._alignment_figures(modules, chosen)["followed"]}
