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
from .base import Editor
from .shared import EditMemory, latest_of_nearest, read_questions

_FIELDS = {"prompt", "answer", "question"}


class InContextConfig(BaseModel):
    """How an edit is found, and how it is told."""

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


class InContext(Editor):
    """Retrieval into the prompt, after "Can We Edit Factual Knowledge by In-Context Learning?" (IKE).

    Zheng et al., EMNLP 2023 (https://arxiv.org/abs/2305.12740). The model is asked "New fact: ... Prompt: ..." where a
    stored edit is near enough, and the bare question where none is. Nothing is trained: image and prompt are
    compared by the cosine of their mean-pooled states in the unedited backbone, and both must exceed a threshold. The
    paper finds its demonstrations by a sentence encoder and is always told the right fact; what finds it is ours.

    It works as well as the backbone reads a context: the tiny built-in ones have never seen one.
    """

    name = "ike"
    summary = "the nearest edit told in the prompt (IKE)"
    settings_class = InContextConfig

    def __init__(self, backbone: Backbone, config: InContextConfig | None = None):
        super().__init__(backbone)
        self.config = config or InContextConfig()
        layer = self.config.layer
        self.layer = backbone.default_edit_layer() if layer is None else layer
        self.memory = EditMemory(backbone.layer_device(self.layer))
        self._fired: list[tuple[Fired, ...]] = []

    def _edit_one(self, edit_id: str, edit: Edit) -> dict[str, Any]:
        feature = self._features([edit.question])[0]
        self._put(edit_id, edit, feature)
        told = len(edit.question.prompt.encode()) + len(edit.answer.encode())
        return {"store_bytes": feature.numel() * feature.element_size() + told}

    def _put(self, edit_id: str, edit: Edit, feature: Tensor) -> None:
        self.memory.add(edit_id, edit, feature)
        self.backbone.set_transform(self._ask)

    def undo(self, edit_id: str) -> None:
        """Take one edit out. Raises `NotFoundError`."""
        self.memory.remove(edit_id)
        if not len(self.memory):
            self.reset()

    def reset(self) -> None:
        """Take every edit out."""
        self.memory.clear()
        self._fired = []
        self.backbone.remove_transform(self._ask)

    def configuration(self) -> dict[str, Any]:
        """The whole `InContextConfig`."""
        return self.config.model_dump()

    def digest(self) -> str:
        """The configuration: nothing else decides what it does."""
        return self.config.model_dump_json()

    def edited_state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Features (edits, 2 width), and the texts of the edits; their images are not looked at again."""
        tensors, edits = self.memory.state(images=False)
        return tensors, {"edits": edits}

    def restore(self, tensors: dict[str, Tensor], note: dict[str, Any]) -> None:
        """Put what `edited_state` gave in place of the edits in force."""
        self.reset()
        self.memory.restore(tensors, note["edits"])
        if len(self.memory):
            self.backbone.set_transform(self._ask)

    # -- answering ---------------------------------------------------------------------------------------

    def fired(self) -> list[tuple[Fired, ...]] | None:
        """The edit that was told with each query of the last batch, and by how much it exceeded the thresholds."""
        return list(self._fired)

    @torch.no_grad()
    def _ask(self, questions: Sequence[Question]) -> list[PreparedQuestion]:
        queries = self._features(questions)
        with torch.autocast(queries.device.type, enabled=False):  # bfloat16 products would blur similarities.
            places, margins = latest_of_nearest(self._margins(queries))
        self._fired, asked, ids = [], [], self.memory.ids
        for question, place, margin in zip(questions, places, margins.tolist(), strict=True):
            edit_id = ids[place]
            near = margin > 0
            self._fired.append((Fired(edit_id, 1.0, margin),) if near else ())
            asked.append(PreparedQuestion(self._told(self.memory[edit_id], question) if near else question))
        return asked

    def _told(self, edit: Edit, question: Question) -> Question:
        told = self.config.template.format(
            prompt=edit.question.prompt.strip(), answer=edit.answer.strip(), question=question.prompt.strip()
        )
        return replace(question, prompt=self.config.demonstrations + told)

    def _margins(self, queries: Tensor) -> Tensor:
        """(queries, edits): the smaller of the two leads over the thresholds."""
        edits = self.memory.features
        width = self.backbone.width
        images, prompts = queries[:, :width] @ edits[:, :width].T, queries[:, width:] @ edits[:, width:].T
        has = [rows[:, :width].any(1) for rows in (queries, edits)]
        images = torch.where(~has[0][:, None] & ~has[1][None], 1.0, images)  # No image is like no image,
        images = torch.where(has[0][:, None] != has[1][None], -1.0, images)  # and unlike any.
        return torch.minimum(images - self.config.image_threshold, prompts - self.config.prompt_threshold)

    def _features(self, questions: Sequence[Question]) -> Tensor:
        """(questions, 2 width): pooled states of image, zero where there is none, and prompt, each of unit length."""
        tokens = read_questions(self.backbone, questions, self.layer)
        return torch.cat([_pooled(tokens, mask) for mask in (tokens.image_mask, tokens.prompt_mask)], 1)


def _pooled(tokens: HiddenTokens, mask: Tensor) -> Tensor:
    # Each token counts alike: without LayerNorm the few that gather attention, which are longest, would decide.
    states = F.layer_norm(tokens.hidden_states, tokens.hidden_states.shape[-1:]) * mask[..., None]
    return F.normalize(states.sum(1), dim=-1)
