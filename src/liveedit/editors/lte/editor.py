"""LTE: the nearest edits are put before the query, and the model is tuned to follow those that concern it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from ...answers import Fired
from ...backbones import Backbone
from ...backbones.prompt_transforms import PreparedQuestion
from ...errors import BackboneError
from ...samples import Edit, Question
from ...training.trainer import StageConfig
from ..shared import EncoderConfig, RetrievalEditor, TextExpert, read_questions
from ..trained import TrainedEditor
from .config import LearningToEditConfig
from .context import fitting_templates, with_edits
from .modules import LearningToEditModules
from .task import LearningToEditTask
from .tuning import TunedWeights


class LearningToEdit(TrainedEditor, RetrievalEditor[TextExpert]):
    """Learning to Edit (Jiang et al. 2024, arXiv:2402.11905).

    The model is tuned once to follow an edit in its context if that concerns the query, and to ignore it if not
    (section 3.2). Then an edit is a row in a memory: the nearest to a query are put before it (section 3.3).

    The tuned weights are active only while there is an edit, so that "before" always means the unedited model, and
    locality counts all that tuning changed. Deviations: the retriever sees the image too, and an edit that is not
    near enough is not put before a query (`threshold`), since the context holds no image of an edit and the model
    cannot know which image it is about; out of scope, tuning keeps the base model's own distribution.
    """

    name = "lte"
    summary = "tuned to follow edits in its context, which are retrieved (LTE)"
    table_order = 50
    config_class: ClassVar = LearningToEditConfig
    task_class: ClassVar = LearningToEditTask
    expert_class = TextExpert

    def __init__(self, backbone: Backbone, modules: LearningToEditModules):
        super().__init__(backbone, modules)
        self.weights = TunedWeights(backbone, self.modules.tuning)

    # -- how it is trained -------------------------------------------------------------------------------

    @classmethod
    def backbone_settings(cls, backbone: Backbone) -> dict[str, Any]:
        """Width, layer, and templates that the tokenizer has words for."""
        edit_template, query_template = fitting_templates(backbone)
        return {
            **EncoderConfig.backbone_settings(backbone),
            "edit_template": edit_template,
            "query_template": query_template,
        }

    @classmethod
    def new_modules(cls, backbone: Backbone, config: LearningToEditConfig) -> LearningToEditModules:
        """Untrained modules. Raises `BackboneError` if they do not fit the backbone."""
        if config.width != backbone.width or config.layer >= len(backbone.layers):
            raise BackboneError(
                f"These settings are for width {config.width} and layer {config.layer}; {backbone.name} has width "
                f"{backbone.width} and {len(backbone.layers)} layers. Leave both out."
            )
        return LearningToEditModules(backbone, config).to(backbone.layer_device(config.layer))

    @classmethod
    def default_stages(cls) -> tuple[StageConfig, ...]:
        """The retriever; then the model learns to follow an edit, and then to do so only if it concerns the query."""
        return (
            StageConfig(name="retriever", steps=700, batch=48, learning_rate=1e-3),
            StageConfig(name="following", steps=400, batch=32, learning_rate=1e-3),
            StageConfig(name="alignment", steps=400, batch=16, learning_rate=1e-3),
        )

    # -- editing -----------------------------------------------------------------------------------------

    @property
    def layer(self) -> int:
        """The layer that the retriever reads."""
        return self.config.layer

    def expert_shapes(self) -> dict[str, tuple[int, ...]]:
        """The feature's length."""
        return {"feature": (self.config.features,)}

    def make_expert(self, edit: Edit) -> tuple[TextExpert, int]:
        """The feature of the question, as the retriever reads it, and the texts. No gradient steps."""
        return TextExpert.of(edit, self._features([edit.question], [edit.answer])[0]), 0

    def _activate(self) -> None:
        super()._activate()
        self.weights.activate()

    def _deactivate(self) -> None:
        self.weights.deactivate()
        super()._deactivate()

    # -- answering ---------------------------------------------------------------------------------------

    def retrieve(self, questions: Sequence[Question]) -> list[list[tuple[str, float]]]:
        """The edits to put before each question, nearest first, with their cosines. Needs at least one edit."""
        return self.memory.retrieve(self._features(questions), self.config.top_k, self.modules.threshold())

    def _prepare(self, questions: Sequence[Question]) -> list[PreparedQuestion]:
        """Each question after its edits; their margins are cosines, less the threshold if there is one."""
        found = self.retrieve(questions)
        threshold = self.modules.threshold() or 0.0
        self._fired = [tuple(Fired(edit_id, 1 / len(row), near - threshold) for edit_id, near in row) for row in found]
        edits = [[self.get(edit_id).edit for edit_id, _ in row] for row in found]
        return [PreparedQuestion(with_edits(self.config, *pair)) for pair in zip(questions, edits, strict=True)]

    @torch.no_grad()
    def _features(self, questions: Sequence[Question], answers: Sequence[str] | None = None) -> Tensor:
        """Features of questions as the unedited model reads them, which the retriever was trained on."""
        with self.weights.paused():
            return self.modules.retriever(read_questions(self.backbone, questions, self.config.layer, answers))
