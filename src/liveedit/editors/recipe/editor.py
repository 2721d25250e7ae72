"""RECIPE: retrieval-augmented continuous prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import nn

from ...answers import Fired
from ...backbones import Backbone
from ...backbones.prompt_transforms import PreparedQuestion
from ...errors import BackboneError
from ...samples import Edit, Question
from ...training.trainer import StageConfig
from ..shared import RetrievalEditor, read_questions
from ..trained import TrainedEditor
from .config import RecipeConfig
from .modules import PromptExpert, RecipeModules
from .task import RecipeTask


class Recipe(TrainedEditor, RetrievalEditor[PromptExpert]):
    """The editor of "Lifelong Knowledge Editing for LLMs with Retrieval-Augmented Continuous Prompt Learning".

    Chen et al., EMNLP 2024 (https://arxiv.org/abs/2405.03279). A generator turns an edit into a few vectors. They are
    put before the word embeddings of every query that is nearer to the edit than to the knowledge sentinel; the model
    itself is never changed. `RecipeModules` says where we differ from the paper. The image is read at query time,
    and the answer is no part of what a query is found by: in the released adaptation to images both are wrong.
    """

    name = "recipe"
    summary = "a continuous prompt per edit, retrieved past a sentinel (RECIPE)"
    table_order = 60
    config_class = RecipeConfig
    task_class: ClassVar = RecipeTask
    expert_class = PromptExpert

    def __init__(self, backbone: Backbone, modules: RecipeModules):
        super().__init__(backbone, modules.to(backbone.layer_device(modules.config.layer)))

    # -- training ----------------------------------------------------------------------------------------

    @classmethod
    def backbone_settings(cls, backbone: Backbone) -> dict[str, Any]:
        """Width, the layer that is read, the scale of word embeddings, and how many vectors a prompt has."""
        deviation = float(backbone.word_embeddings.weight.detach().float().std())
        return {
            **RecipeConfig.backbone_settings(backbone),
            "embedding_scale": round(deviation, 6),
            "prompt_tokens": default_prompt_tokens(backbone),
        }

    @classmethod
    def new_modules(cls, backbone: Backbone, config: RecipeConfig) -> RecipeModules:
        """Untrained modules. Raises `BackboneError` if they do not fit the backbone."""
        if config.width != backbone.width or config.layer >= len(backbone.layers):
            raise BackboneError(
                f"This editor was made for width {config.width} and layer {config.layer}; {backbone.name} has width "
                f"{backbone.width} and {len(backbone.layers)} layers. Train one for it: liveedit train."
            )
        return RecipeModules(config)

    @classmethod
    def default_stages(cls) -> tuple[StageConfig, ...]:
        """The retriever, then the prompts."""
        return (
            StageConfig(name="retrieval", steps=600, batch=48, learning_rate=1e-3),
            StageConfig(name="prompts", steps=1000, batch=32, learning_rate=3e-3),
        )

    # -- editing -----------------------------------------------------------------------------------------

    @property
    def layer(self) -> int:
        """The layer that the retriever and the generator read."""
        return self.config.layer

    def expert_shapes(self) -> dict[str, tuple[int, ...]]:
        """The length of keys, and the size of continuous prompts."""
        return {"feature": (self.config.features,), "prompt": (self.config.prompt_tokens, self.config.width)}

    def make_expert(self, edit: Edit) -> tuple[PromptExpert, int]:
        """The key and the continuous prompt of an edit, in one pass. No gradient steps."""
        tokens = read_questions(self.backbone, [edit.question], self.layer, [edit.answer])
        with torch.no_grad():
            return PromptExpert(self.modules.keys(tokens)[0], self.modules.generator(tokens)[0]), 0

    # -- answering ---------------------------------------------------------------------------------------

    @torch.no_grad()
    def _prepare(self, questions: Sequence[Question]) -> list[PreparedQuestion]:
        """Each question after the prompt of its nearest edit, if that is nearer than the sentinel.

        The edit's margin is its lead over the sentinel (cosine).
        """
        tokens = read_questions(self.backbone, questions, self.config.layer)
        with torch.autocast(self.device.type, enabled=False):  # bfloat16 would blur similarities.
            queries = self.modules.queries(tokens)
            ids, similarity = self.memory.nearest(queries)
            margins = (similarity - queries @ self.modules.sentinel_key).tolist()
        found = list(zip(questions, ids, margins, strict=True))
        self._fired = [(Fired(edit_id, 1.0, margin),) if margin > 0 else () for _, edit_id, margin in found]
        return [
            PreparedQuestion(question, self.get(edit_id).prompt.to(self.device) if margin > 0 else None)
            for question, edit_id, margin in found
        ]


def default_prompt_tokens(backbone: Backbone) -> int:
    """Vectors in a prompt: the paper's 3, and up to 8 in a narrow vision-language model.

    The paper's three vectors are 12,288 numbers in a 7B model. Below a width of 512 as many vectors are taken as have
    1,536 numbers together (docs/EXPERIMENTS.md: 8 of width 192 generalise better than 3). With learned positions it
    stays at 3: every vector moves the whole question to positions of which the model may have seen few.
    """
    usual = 3
    embeddings = [part for part in backbone.decoder.children() if isinstance(part, nn.Embedding)]
    learned_positions = any(part is not backbone.word_embeddings for part in embeddings)
    if not backbone.reads_images or learned_positions:
        return usual
    return max(usual, min(8, 1536 // backbone.width))
