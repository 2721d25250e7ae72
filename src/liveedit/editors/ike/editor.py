"""IKE: the nearest stored edit is put into the prompt as text."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ...answers import Fired
from ...backbones import Backbone, HiddenTokens
from ...backbones.prompt_transforms import PreparedQuestion
from ...samples import Edit, Question
from ..shared import RetrievalEditor, TextExpert, nearest, read_questions
from ..shared.everyday_questions import EVERYDAY_QUESTIONS
from ..shared.separation import Separation, most_useful
from .config import WHOLE_PROMPTS, InContextConfig
from .own_tokens import WEIGHT_POWER, own_tokens, separations


class InContext(RetrievalEditor[TextExpert]):
    """Retrieval into the prompt, after "Can We Edit Factual Knowledge by In-Context Learning?" (IKE).

    Zheng et al., EMNLP 2023 (https://arxiv.org/abs/2305.12740). The model is asked "New fact: ... Prompt: ..." if a
    stored edit is near enough, and the bare question if none is. Nothing is trained: image and prompt are
    compared by the cosine of their mean-pooled states in the unedited backbone, and both must exceed a threshold. The
    paper finds its demonstrations by a sentence encoder and is always given the right fact; the retrieval is ours.

    A language model that knows the language of the neutral questions compares the questions' own tokens instead
    (`OwnTokens`), at the layer and with the threshold that those questions show: about two thirds of a short prompt in
    a chat are the template, so that whole prompts are all alike.

    It works as well as the backbone reads a context: the tiny built-in ones have never seen one.
    """

    name = "ike"
    table_order = 80
    summary = "the nearest edit in the prompt (IKE)"
    settings_class = InContextConfig
    expert_class = TextExpert

    def __init__(self, backbone: Backbone, config: InContextConfig | None = None):
        super().__init__(backbone)
        given = config or InContextConfig()
        found = _most_useful(backbone, given)
        usual = WHOLE_PROMPTS if found is None else found.threshold
        changes: dict[str, Any] = {} if found is None else {"layer": found.layer}
        if given.prompt_threshold is None:
            changes["prompt_threshold"] = usual
        self.config = given.model_copy(update=changes)
        layer = self.config.layer
        self._layer = backbone.default_edit_layer() if layer is None else layer
        self._own = None if found is None else own_tokens(backbone, [found.layer])[found.layer]

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
        """The whole `InContextConfig`, with the layer and the threshold that were measured."""
        return self.config.model_dump()

    def digest(self) -> str:
        """SHA-256 of all that decides what is found and asked; how the threshold was chosen does not."""
        settings = self.config.model_dump(exclude={"calibrated", "false_firing"})
        described: list[Any] = [self.name, settings]
        if self._own is not None:
            described.append({"power": WEIGHT_POWER, "centred_by": EVERYDAY_QUESTIONS})
        return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()

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
        """(queries, edits): the smaller of the two leads over the thresholds; the prompts', where no image is read."""
        queries, edits = features, self.memory.features
        width, least = self.backbone.width, self.config.prompt_threshold
        assert least is not None, "the constructor sets it"
        with torch.autocast(queries.device.type, enabled=False):  # bfloat16 products would blur similarities.
            images, prompts = queries[:, :width] @ edits[:, :width].T, queries[:, width:] @ edits[:, width:].T
        if self._own is not None:  # The images' lead would be a limit at which edits count as equally near.
            return prompts - least
        has = [rows[:, :width].any(1) for rows in (queries, edits)]
        images = torch.where(~has[0][:, None] & ~has[1][None], 1.0, images)  # No image is the same as no image,
        images = torch.where(has[0][:, None] != has[1][None], -1.0, images)  # and unlike any image.
        return torch.minimum(images - self.config.image_threshold, prompts - least)

    def _features(self, questions: Sequence[Question]) -> Tensor:
        """(questions, 2 width): pooled states of image, zero if there is none, and prompt, each of unit length."""
        tokens = read_questions(self.backbone, questions, self.layer)
        if self._own is not None:
            prompts = self._own.features(tokens.hidden_states, tokens)
            return torch.cat([torch.zeros_like(prompts), prompts], 1)
        return torch.cat([_pooled(tokens, mask) for mask in (tokens.image_mask, tokens.prompt_mask)], 1)


def _pooled(tokens: HiddenTokens, mask: Tensor) -> Tensor:
    # Without LayerNorm the few tokens that gather attention, which are longest, would decide.
    states = F.layer_norm(tokens.hidden_states, tokens.hidden_states.shape[-1:]) * mask[..., None]
    return F.normalize(states.sum(1), dim=-1)


def _most_useful(backbone: Backbone, config: InContextConfig) -> Separation | None:
    """Where the own tokens of questions are compared best; None if whole prompts are to be compared."""
    if backbone.reads_images or not config.calibrated:
        return None
    layers = range(backbone.default_edit_layer() + 1) if config.layer is None else [config.layer]
    return most_useful(separations(backbone, layers, config.false_firing))
