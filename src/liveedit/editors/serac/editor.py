"""SERAC: edits are remembered; a query in the scope of one is answered by a small model that reads the edit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from ...answers import Fired
from ...backbones import Backbone, TokenBatch
from ...backbones.prompt_transforms import PreparedQuestion
from ...errors import BackboneError
from ...samples import Edit, Question
from ...training.trainer import StageConfig
from ..shared import EncoderConfig, RetrievalEditor, TextExpert, read_questions
from ..trained import TrainedEditor
from .config import SeracConfig
from .counterfactual import Counterfactual, Rewrite
from .modules import SeracModules
from .task import SeracTask


class Serac(TrainedEditor, RetrievalEditor[TextExpert]):
    """Semi-Parametric Editing with a Retrieval-Augmented Counterfactual (Mitchell et al. 2022, arXiv:2206.06520).

    `beta = max_i g(edit_i, query)`; where beta > 0.5 the counterfactual model answers, with the edit of the largest g
    as its context, and otherwise the backbone (equation 2). The backbone's weights never change, and
    a query out of every scope gets its logits bit for bit.
    """

    name = "serac"
    summary = "a scope classifier and a small counterfactual model (SERAC)"
    table_order = 30
    config_class: ClassVar = SeracConfig
    task_class: ClassVar = SeracTask
    expert_class = TextExpert
    training_cases = 16_000

    # -- how it is trained -------------------------------------------------------------------------------

    @classmethod
    def backbone_settings(cls, backbone: Backbone) -> dict[str, Any]:
        """Width, layer and vocabulary."""
        return {**EncoderConfig.backbone_settings(backbone), "vocabulary": backbone.word_embeddings.num_embeddings}

    @classmethod
    def new_modules(cls, backbone: Backbone, config: SeracConfig) -> SeracModules:
        """Untrained modules. Raises `BackboneError` if they do not fit the backbone."""
        vocabulary = backbone.word_embeddings.num_embeddings
        if (config.width, config.vocabulary) != (backbone.width, vocabulary) or config.layer >= len(backbone.layers):
            raise BackboneError(
                f"These settings are for width {config.width}, layer {config.layer} and {config.vocabulary} words; "
                f"{backbone.name} has width {backbone.width}, {len(backbone.layers)} layers and {vocabulary} words. "
                "Leave these settings out."
            )
        return SeracModules(backbone, config).to(backbone.layer_device(config.layer))

    @classmethod
    def default_stages(cls) -> tuple[StageConfig, ...]:
        """The counterfactual model and the classifier, each by itself, as in the paper."""
        return (
            StageConfig(name="counterfactual", steps=400, batch=48, learning_rate=1e-3),
            StageConfig(name="classifier", steps=1400, batch=48, learning_rate=1e-3),
        )

    # -- editing -----------------------------------------------------------------------------------------

    @property
    def layer(self) -> int:
        """The layer that the classifier reads."""
        return self.config.layer

    def expert_shapes(self) -> dict[str, tuple[int, ...]]:
        """The feature's length."""
        return {"feature": (self.config.features,)}

    def make_expert(self, edit: Edit) -> tuple[TextExpert, int]:
        """The feature of the question, as the classifier reads it, and the texts. No gradient steps."""
        return TextExpert.of(edit, self._features([edit.question], [edit.answer])[0]), 0

    # -- answering ---------------------------------------------------------------------------------------

    @torch.no_grad()
    def in_scope(self, questions: Sequence[Question]) -> list[tuple[str, float]]:
        """The edit with the largest g for each question, and that g. Raises `NotFoundError` if there is no edit."""
        ids, cosines = self.memory.nearest(self._features(questions))
        probabilities = self.modules.classifier.similarity(cosines).sigmoid()
        return list(zip(ids, probabilities.tolist(), strict=True))

    def _prepare(self, questions: Sequence[Question]) -> list[PreparedQuestion]:
        """Questions in the scope of an edit go to the counterfactual model; the margin of the edit is g - 0.5."""
        found = self.in_scope(questions)
        inside = [probability > 0.5 for _, probability in found]
        edits = [self.get(edit_id).edit for (edit_id, _), hit in zip(found, inside, strict=True) if hit]
        substitute = _CounterfactualSubstitute(self.modules.counterfactual, edits)
        self._fired = [
            (Fired(edit_id, 1.0, probability - 0.5),) if hit else ()
            for (edit_id, probability), hit in zip(found, inside, strict=True)
        ]
        return [
            PreparedQuestion(question, substitute=substitute if hit else None)
            for question, hit in zip(questions, inside, strict=True)
        ]

    @torch.no_grad()
    def _features(self, questions: Sequence[Question], answers: Sequence[str] | None = None) -> Tensor:
        return self.modules.classifier(read_questions(self.backbone, questions, self.config.layer, answers))


class _CounterfactualSubstitute:
    """The substitute model of those questions of a batch that are in the scope of an edit; `edits` are theirs."""

    def __init__(self, model: Counterfactual, edits: Sequence[Edit]):
        self.model, self.edits = model, edits

    def generate(self, questions: Sequence[Question], max_new_tokens: int) -> list[str]:
        """Greedy answers."""
        return self.model.generate(self._rewrites(questions), max_new_tokens)

    @torch.no_grad()
    def logits(self, questions: Sequence[Question], inputs: TokenBatch, rows: Sequence[int]) -> Tensor:
        """(rows, length, vocabulary): its logits where an answer's token is predicted, 0 elsewhere."""
        chosen = torch.tensor(rows, device=inputs.input_ids.device)
        answer, predicting = inputs.answer_mask[chosen], inputs.predicting[chosen]
        ids = inputs.input_ids[chosen]
        logits = torch.zeros(*ids.shape, self.model.vocabulary, device=ids.device)
        if bool(answer.any()):
            answers = [row[mask].tolist() for row, mask in zip(ids, answer, strict=True)]
            logits[predicting] = self.model(self._rewrites(questions), answers).to(logits)
        return logits

    def _rewrites(self, questions: Sequence[Question]) -> list[Rewrite]:
        pairs = zip(self.edits, questions, strict=True)
        return [Rewrite(edit.question.prompt, edit.answer, question.prompt) for edit, question in pairs]
