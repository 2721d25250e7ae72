"""IKE: the nearest stored edit is put into the prompt as text."""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field, field_validator
from torch import Tensor
from torch.nn import functional as F

from ..answers import Fired
from ..backbones import Backbone, HiddenTokens
from ..backbones.prompt_transforms import PreparedQuestion
from ..samples import Edit, Question
from .shared import RetrievalEditor, TextExpert, nearest, read_questions

_FIELDS = {"prompt", "answer", "question"}


class InContextConfig(BaseModel):
    """How an edit is found, and how it is put into the prompt."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    template: str = Field(
        default="New fact: {prompt} {answer}\nPrompt: {question}",
        description="What is asked instead: the edit's {prompt} and {answer} before the {question}.",
    )
    demonstrations: str = Field(
        default="",
        description="Text before that: worked examples of copying, following and ignoring a new fact (paper: 32, for "
        "models that learn from examples).",
    )
    layer: int | None = Field(
        default=None, ge=0, description="Layer whose states are compared, from 0; None: two thirds of the depth."
    )
    image_threshold: float = Field(
        default=0.7, ge=-1, le=1, description="Cosine that the pooled states of both images must exceed."
    )
    prompt_threshold: float = Field(
        default=0.95, ge=-1, le=1, description="Cosine that the pooled states of both prompts must exceed."
    )

    @field_validator("template")
    @classmethod
    def _has_its_fields(cls, template: str) -> str:
        found = {name for _, name, _, _ in string.Formatter().parse(template) if name is not None}
        if found != _FIELDS:
            raise ValueError(f"the template has the fields {sorted(found)} and needs {sorted(_FIELDS)}")
        return template


class InContext(RetrievalEditor[TextExpert]):
    """Retrieval into the prompt, after "Can We Edit Factual Knowledge by In-Context Learning?" (IKE).

    Zheng et al., EMNLP 2023 (https://arxiv.org/abs/2305.12740). The model is asked "New fact: ... Prompt: ..." if a
    stored edit is near enough, and the bare question if none is. Nothing is trained: image and prompt are
    compared by the cosine of their mean-pooled states in the unedited backbone, and both must exceed a threshold. The
    paper finds its demonstrations by a sentence encoder and is always given the right fact; the retrieval is ours.

    It works as well as the backbone reads a context: the tiny built-in ones have never seen one.
    """

    name = "ike"
    table_order = 80
    summary = "the nearest edit in the prompt (IKE)"
    settings_class = InContextConfig
    expert_class = TextExpert

    def __init__(self, backbone: Backbone, config: InContextConfig | None = None):
        super().__init__(backbone)
        self.config = config or InContextConfig()
        layer = self.config.layer
        self._layer = backbone.default_edit_layer() if layer is None else layer

    @property
    def layer(self) -> int:
        """The layer whose states are compared."""
        return self._layer

    def expert_shapes(self) -> dict[str, tuple[int, ...]]:
        """The feature's length: pooled states of image and prompt."""
        return {"feature": (2 * self.backbone.width,)}

    def make_expert(self, edit: Edit) -> tuple[TextExpert, int]:
        """The pooled states of the question, and the texts. No gradient steps."""
        return TextExpert.of(edit, self._features([edit.question])[0]), 0

    def configuration(self) -> dict[str, Any]:
        """The whole `InContextConfig`."""
        return self.config.model_dump()

    def digest(self) -> str:
        """The configuration: nothing else decides what it does."""
        return self.config.model_dump_json()

    # -- answering ---------------------------------------------------------------------------------------

    @torch.no_grad()
    def _prepare(self, questions: Sequence[Question]) -> list[PreparedQuestion]:
        """Each question after the nearest edit, if both similarities exceed their thresholds.

        The edit's margin is the smaller of the two leads over the thresholds.
        """
        places, margins = nearest(self._similarity(self._features(questions)))
        self._fired, asked, ids = [], [], self.memory.ids
        for question, (place,), (margin,) in zip(questions, places, margins.tolist(), strict=True):
            edit_id = ids[place]
            near = margin > 0
            self._fired.append((Fired(edit_id, 1.0, margin),) if near else ())
            asked.append(PreparedQuestion(self._after(self.get(edit_id).edit, question) if near else question))
        return asked

    def _after(self, edit: Edit, question: Question) -> Question:
        text = self.config.template.format(
            prompt=edit.question.prompt.strip(), answer=edit.answer.strip(), question=question.prompt.strip()
        )
        return replace(question, prompt=self.config.demonstrations + text)

    def _similarity(self, features: Tensor) -> Tensor:
        """(queries, edits): the smaller of the two leads over the thresholds."""
        queries, edits = features, self.memory.features
        width = self.backbone.width
        with torch.autocast(queries.device.type, enabled=False):  # bfloat16 products would blur similarities.
            images, prompts = queries[:, :width] @ edits[:, :width].T, queries[:, width:] @ edits[:, width:].T
        has = [rows[:, :width].any(1) for rows in (queries, edits)]
        images = torch.where(~has[0][:, None] & ~has[1][None], 1.0, images)  # No image is the same as no image,
        images = torch.where(has[0][:, None] != has[1][None], -1.0, images)  # and unlike any image.
        return torch.minimum(images - self.config.image_threshold, prompts - self.config.prompt_threshold)

    def _features(self, questions: Sequence[Question]) -> Tensor:
        """(questions, 2 width): pooled states of image, zero if there is none, and prompt, each of unit length."""
        tokens = read_questions(self.backbone, questions, self.layer)
        return torch.cat([_pooled(tokens, mask) for mask in (tokens.image_mask, tokens.prompt_mask)], 1)


def _pooled(tokens: HiddenTokens, mask: Tensor) -> Tensor:
    # Without LayerNorm the few tokens that gather attention, which are longest, would decide.
    states = F.layer_norm(tokens.hidden_states, tokens.hidden_states.shape[-1:]) * mask[..., None]
    return F.normalize(states.sum(1), dim=-1)
