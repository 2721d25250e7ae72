"""LiveEdit with verify and refine: an expert whose edit does not take is improved by a few gradient steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from ...backbones import Backbone
from ...backbones.vision_tower import SeenImages
from ...experts import LowRankExpert
from ...samples import Edit, Question
from ..base import checked_config
from ..shared.fitting import Fitting, Passage, Start
from ..shared.wordings import NEUTRAL_PROMPTS, wordings
from .config import LiveEditConfig, RefineConfig
from .editor import LiveEdit
from .modules import LiveEditModules

CALIBRATED_WEIGHT: Final = 0.5
"""The weight threshold of an editor with a calibrated prompt threshold: there, that is where s is 0."""

_ROWS_AT_ONCE: Final = 6
"""Wordings in one gradient step, the edit's own among them."""


class LiveEditRefine(LiveEdit):
    """LiveEdit that verifies each generated expert and refines it if its edit is not yet right. Not part of the paper.

    1. The question and its answer are encoded and run up to the edit layer once. The expert is generated from these
       hidden states, and the later steps reuse them.
    2. If the edit's own query would not pass the routers, the expert's features are moved towards the query's
       features, in steps of a tenth and no further than needed.
    3. If the answer tokens are not all predicted with `RefineConfig.confidence`, U and V take gradient steps through
       the layers after the edit layer. They are trained on several wordings, with noise on the image tokens and at
       random weights, so that the expert does not fit one input only. A longer answer gets a row of U and V for each of
       its tokens.

    Answers are whole or not at all, each by a setting of `RefineConfig`: experts are never added up, a weight is 0 or
    1, and the unedited model answers where the edited one is in doubt.
    """

    name = "liveedit-refine"
    summary = "LiveEdit, with a few gradient steps on an expert whose edit did not take"
    table_order = 91
    parts_of = "liveedit"
    settings_class = RefineConfig

    def __init__(self, backbone: Backbone, modules: LiveEditModules, refining: RefineConfig | None = None):
        super().__init__(backbone, modules)
        self._given = refining or RefineConfig.model_validate({})
        self._use(modules.config)
        self.answer_confidence = self.refining.answer_confidence

    def _use(self, config: LiveEditConfig) -> None:
        super()._use(config)
        self.refining = self._given
        if config.prompt_threshold and "weight_threshold" not in self._given.model_fields_set:
            self.refining = self._given.model_copy(update={"weight_threshold": CALIBRATED_WEIGHT})
        self.combining = self.refining.combining

    @classmethod
    def configured(cls, backbone: Backbone, settings: Mapping[str, Any], source: str | None = None) -> Self:
        """Load the trained editor with some settings of `RefineConfig` changed."""
        refining = checked_config(RefineConfig, settings, cls.name)
        loaded = cls.load(backbone, source)
        loaded.detach()
        return cls(backbone, loaded.modules, refining)

    def configuration(self) -> dict[str, Any]:
        """`LiveEditConfig` and `RefineConfig`."""
        return {**super().configuration(), "refine": self.refining.model_dump()}

    def make_expert(self, edit: Edit) -> tuple[LowRankExpert, int]:
        """The generated expert, refined if needed, and the number of gradient steps (0 if it was right at once)."""
        with SeenImages(self.backbone.model).used():  # All wordings show the same image.
            passage = self._verified_passage(edit)
            with torch.no_grad():
                expert = self.modules.experts(passage.tokens)[0]
            return self._refined(edit, passage, expert)

    def refine(self, edit: Edit, expert: LowRankExpert) -> tuple[LowRankExpert, int]:
        """Refine an expert that was made before; returns the same as `make_expert`."""
        with SeenImages(self.backbone.model).used():
            return self._refined(edit, self._verified_passage(edit), expert)

    def _refined(self, edit: Edit, asked: Passage, expert: LowRankExpert) -> tuple[LowRankExpert, int]:
        expert = self._reachable(asked, expert)
        fitting = Fitting(self.backbone, self.config.layer, self.config, self.refining)
        if self.refining.steps == 0 or fitting.is_right(asked, expert.u, expert.v):
            return expert, 0
        passages = self._passages(edit)
        u, v, steps = fitting.run(self._start(fitting, edit, passages, expert), passages)
        return LowRankExpert(u, v, expert.visual_feature, expert.prompt_feature, expert.query_feature), steps

    def _start(self, fitting: Fitting, edit: Edit, passages: Sequence[Passage], expert: LowRankExpert) -> Start:
        if passages[0].answer_length <= len(expert.u):
            return self._near(expert)
        neutral = [Question(prompt, edit.question.image) for prompt in NEUTRAL_PROMPTS]
        with torch.no_grad():
            return fitting.from_gates(passages, [self.read(self.backbone.encode(neutral))])

    def _near(self, expert: LowRankExpert) -> Start:
        """A start at the generated expert. Steps are relative to the standard deviations of u and v, so that one
        learning rate serves every backbone."""
        rate_u, rate_v = (
            self.refining.learning_rate * float(part.std().clamp(min=1e-3)) for part in (expert.u, expert.v)
        )
        return Start(expert.u, expert.v, rate_u, rate_v)

    def _verified_passage(self, edit: Edit) -> Passage:
        """The edit in the wordings in which it is verified, its own prompt first; alone if nothing is verified."""
        count = self.refining.verified_wordings if self.refining.steps else 1
        prompts = wordings(edit.question.prompt, count)
        return self._passage([Question(prompt, edit.question.image) for prompt in prompts], edit.answer)

    def _passages(self, edit: Edit) -> list[Passage]:
        """The edit in several wordings, a few at a time; its own prompt is the first of each passage."""
        image = edit.question.image
        own, *others = (Question(prompt, image) for prompt in wordings(edit.question.prompt, self.refining.wordings))
        size = _ROWS_AT_ONCE - 1
        parts = [others[start : start + size] for start in range(0, len(others), size)]
        return [self._passage([own, *part], edit.answer) for part in parts]

    @torch.no_grad()
    def _reachable(self, passage: Passage, expert: LowRankExpert) -> LowRankExpert:
        """The expert, with its features moved so far that the edit's own query passes both routers."""
        modules, query = self.modules, self.modules.query(passage.tokens)
        visual, prompt = query.visual[0], query.prompt[0]
        wanted = modules.visual_score(visual, query.sentinel[0]) + self.refining.visual_margin
        if not bool(passage.inputs.has_image[0]):  # Routing needs an image.
            return expert
        return LowRankExpert(
            expert.u,
            expert.v,
            self._moved(expert.visual_feature, visual, lambda it: modules.visual_score(visual, it) >= wanted),
            self._moved(
                expert.prompt_feature,
                prompt,
                lambda it: modules.prompt_score(prompt, it) >= self.refining.prompt_score,
            ),
            expert.query_feature,
        )

    def _moved(self, feature: Tensor, towards: Tensor, suffices: Callable[[Tensor], Tensor]) -> Tensor:
        """The feature, moved by the fewest tenths of the way that suffice; unmoved if none do."""
        for tenth in range(11):
            moved = feature + tenth / 10 * (towards - feature)
            if self.config.similarity == "cosine":
                moved = F.normalize(moved, dim=-1)
            if bool(suffices(moved)):
                return moved if tenth else feature
        return feature

    def _passage(self, questions: Sequence[Question], answer: str) -> Passage:
        inputs = self.backbone.encode(questions, [answer] * len(questions))
        with torch.no_grad():
            return Passage(inputs, self.read(inputs))
