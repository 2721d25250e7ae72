"""LiveEdit with verify and refine: an expert whose edit does not take is improved by a few gradient steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from torch.nn import functional as F

from ...backbones import Backbone, HiddenTokens, TokenBatch
from ...experts import LowRankExpert
from ...samples import Edit, Question
from .editor import LiveEdit, split_experts
from .modules import LiveEditModules
from .routing import changed_tokens, expert_residual


class RefineConfig(BaseModel):
    """When and how an expert is refined."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: int = Field(default=200, ge=0, description="Gradient steps at most; 0 takes none.")
    learning_rate: float = Field(
        default=0.15, gt=0, description="Learning rate of Adam on U and V, relative to their standard deviations."
    )
    image_noise: float = Field(
        default=0.05,
        ge=0,
        description="Noise on the image tokens' hidden states, relative to their standard deviation.",
    )
    carrier: str = Field(
        default="Please answer: {}", description="A second wording of the prompt, on which the expert is refined too."
    )
    confidence: float = Field(
        default=0.8, gt=0, lt=1, description="The edit is right if each of its tokens has at least this probability."
    )
    visual_margin: float = Field(
        default=1.0,
        description="The edit's own query must exceed the sentinel by this margin, in units of visual similarity.",
    )
    prompt_score: float = Field(default=4.0, description="The edit's own query must reach this prompt similarity s.")


@dataclass(frozen=True)
class _Passage:
    """Questions with an answer, encoded, and their hidden states at the edit layer."""

    inputs: TokenBatch
    tokens: HiddenTokens


class LiveEditRefine(LiveEdit):
    """LiveEdit that verifies each generated expert and refines it if its edit is not yet right. Not part of the paper.

    1. The question and its answer are encoded and run up to the edit layer once. The expert is generated from these
       hidden states, and the later steps reuse them.
    2. If the edit's own query would not pass the routers, the expert's features are moved towards the query's
       features, in steps of a tenth and no further than needed.
    3. If the answer tokens are not all predicted with `RefineConfig.confidence`, U and V take gradient steps through
       the layers after the edit layer. They are trained on two wordings, with noise on the image tokens, so that the
       expert does not fit one input only.
    """

    name = "liveedit-refine"
    summary = "LiveEdit, with a few gradient steps on an expert whose edit did not take"
    table_order = 91
    parts_of = "liveedit"

    def __init__(self, backbone: Backbone, modules: LiveEditModules, refining: RefineConfig | None = None):
        super().__init__(backbone, modules)
        self.refining = refining or RefineConfig()

    def configuration(self) -> dict[str, Any]:
        """`LiveEditConfig` and `RefineConfig`."""
        return {**super().configuration(), "refine": self.refining.model_dump()}

    def make_expert(self, edit: Edit) -> tuple[LowRankExpert, int]:
        """The generated expert, refined if needed, and the number of gradient steps (0 if it was right at once)."""
        passage = self._passage([edit.question], edit.answer)
        with torch.no_grad():
            (expert,) = split_experts(self.modules.edit(passage.tokens))
        return self._refined(edit, passage, expert)

    def refine(self, edit: Edit, expert: LowRankExpert) -> tuple[LowRankExpert, int]:
        """Refine an expert that was made before; returns the same as `make_expert`."""
        return self._refined(edit, self._passage([edit.question], edit.answer), expert)

    def _refined(self, edit: Edit, asked: _Passage, expert: LowRankExpert) -> tuple[LowRankExpert, int]:
        question = edit.question
        expert = self._reachable(asked, expert)
        if self.refining.steps == 0 or self._is_right(asked, expert.u, expert.v):
            return expert, 0
        other = Question(self.refining.carrier.format(question.prompt), question.image)
        both = self._passage([question, other], edit.answer)
        generator = torch.Generator(device=self.backbone.device).manual_seed(0)
        # Steps are relative to the standard deviations of U and V, so that one learning rate serves every backbone.
        size_u, size_v = expert.u.std().clamp(min=1e-3), expert.v.std().clamp(min=1e-3)
        move_u, move_v = (torch.zeros_like(part, requires_grad=True) for part in (expert.u, expert.v))
        optimizer = torch.optim.Adam([move_u, move_v], lr=self.refining.learning_rate)
        u, v, steps = expert.u, expert.v, 0
        while steps < self.refining.steps:
            loss = self._loss(both, expert.u + size_u * move_u, expert.v + size_v * move_v, generator)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            steps += 1
            u, v = (expert.u + size_u * move_u).detach(), (expert.v + size_v * move_v).detach()
            if self._is_right(both, u, v):
                break
        return LowRankExpert(u, v, expert.visual_feature, expert.prompt_feature), steps

    @torch.no_grad()
    def _reachable(self, passage: _Passage, expert: LowRankExpert) -> LowRankExpert:
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

    def _passage(self, questions: Sequence[Question], answer: str) -> _Passage:
        inputs = self.backbone.encode(questions, [answer] * len(questions))
        with torch.no_grad():
            return _Passage(inputs, self.read(inputs))

    def _loss(self, passage: _Passage, u: Tensor, v: Tensor, generator: torch.Generator) -> Tensor:
        states = passage.tokens.hidden_states
        noise = torch.randn(states.shape, generator=generator, device=states.device) * states.std()
        noisy = states + self.refining.image_noise * noise * passage.tokens.image_mask[..., None]
        logits = self._logits(passage, noisy, u, v)
        return F.cross_entropy(logits, _targets(passage, logits.device))

    @torch.no_grad()
    def _is_right(self, passage: _Passage, u: Tensor, v: Tensor) -> bool:
        probabilities = self._logits(passage, passage.tokens.hidden_states, u, v).softmax(-1)
        targets = _targets(passage, probabilities.device)
        return bool((probabilities.gather(1, targets[:, None]) >= self.refining.confidence).all())

    def _logits(self, passage: _Passage, states: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """(answer tokens, vocabulary) logits that predict the answer with this expert alone active."""
        weights = torch.ones(len(states), 1, device=states.device)
        residual = expert_residual(states, u[None], v[None], weights, self.config)
        inputs, tokens = passage.inputs, passage.tokens
        changed = changed_tokens(tokens.image_mask, tokens.text_mask, self.config)
        edited = (states + residual * changed[..., None]).to(self.backbone.dtype)
        return self.backbone.logits_from(edited, inputs, self.config.layer, inputs.predicting).float()


def _targets(passage: _Passage, device: torch.device) -> Tensor:
    return passage.inputs.input_ids[passage.inputs.answer_mask].to(device)
