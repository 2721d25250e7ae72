"""RECIPE: retrieval-augmented continuous prompts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...answers import Fired
from ...backbones import Backbone
from ...backbones.hidden_states import HiddenStateCache
from ...backbones.prompt_transforms import PreparedQuestion
from ...errors import BackboneError
from ...progress import TaskProgress
from ...samples import Edit, EditCase, Question
from ...training.distributed import ALONE, Processes
from ...training.trainer import StageConfig
from ..shared import FeatureMemory, read_questions
from ..trained import TrainedEditor
from .config import RecipeConfig
from .modules import RecipeModules
from .task import RecipeTask


class Recipe(TrainedEditor):
    """The editor of "Lifelong Knowledge Editing for LLMs with Retrieval-Augmented Continuous Prompt Learning".

    Chen et al., EMNLP 2024 (https://arxiv.org/abs/2405.03279). A generator turns an edit into three vectors that stand
    before the word embeddings of every query which is nearer to the edit than to the knowledge sentinel; the model
    itself is never changed. `RecipeModules` says where we differ from the paper. The image is read at query time,
    and the answer is no part of what a query is found by: in the released adaptation to images both are wrong.
    """

    name = "recipe"
    summary = "a continuous prompt per edit, retrieved past a sentinel (RECIPE)"
    table_order = 60
    config_class = RecipeConfig

    def __init__(self, backbone: Backbone, modules: RecipeModules):
        self.device = backbone.layer_device(modules.config.layer)
        super().__init__(backbone, modules.to(self.device))
        self.memory = FeatureMemory(self.device)
        self._prompts: dict[str, Tensor] = {}
        self._fired: list[tuple[Fired, ...]] = []

    # -- training ----------------------------------------------------------------------------------------

    @classmethod
    def backbone_settings(cls, backbone: Backbone) -> dict[str, Any]:
        """Width, the layer that is read, and the scale of word embeddings."""
        deviation = float(backbone.word_embeddings.weight.detach().float().std())
        return {**RecipeConfig.backbone_settings(backbone), "embedding_scale": round(deviation, 6)}

    @classmethod
    def new_modules(cls, backbone: Backbone, config: RecipeConfig) -> RecipeModules:
        """Untrained modules. Raises `BackboneError` where they do not fit the backbone."""
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

    @classmethod
    def make_task(
        cls,
        backbone: Backbone,
        config: RecipeConfig,
        cases: Sequence[EditCase],
        folder: Path,
        report: TaskProgress,
        processes: Processes = ALONE,
        options: None = None,
    ) -> RecipeTask:
        """The cases with the states of all their inputs."""
        store = HiddenStateCache(backbone, config.layer, folder / f"states-{processes.rank}")
        task = RecipeTask(backbone, config, cases, store, processes)
        task.prepare(lambda done, total: report("states at the edit layer", done, total, {}))
        return task

    # -- editing -----------------------------------------------------------------------------------------

    def _edit_one(self, edit_id: str, edit: Edit) -> dict[str, Any]:
        tokens = read_questions(self.backbone, [edit.question], self.config.layer, [edit.answer])
        with torch.no_grad():
            key, prompt = self.modules.keys(tokens)[0], self.modules.generator(tokens)[0]
        self._put(edit_id, key, prompt)
        return {"store_bytes": 4 * (key.numel() + prompt.numel())}

    def _put(self, edit_id: str, key: Tensor, prompt: Tensor) -> None:
        self.backbone.set_transform(self._ask)
        self.memory.add_feature(edit_id, key)
        self._prompts[edit_id] = prompt

    def undo(self, edit_id: str) -> None:
        """Take one edit out. Raises `NotFoundError`."""
        self.memory.remove(edit_id)
        del self._prompts[edit_id]
        if not len(self.memory):
            self.reset()

    def reset(self) -> None:
        """Take every edit out."""
        self.memory.clear()
        self._prompts.clear()
        self._fired = []
        self.backbone.remove_transform(self._ask)

    def edited_state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Keys (edits, features) and prompts (edits, prompt tokens, width), with the edits' ids."""
        if not len(self.memory):
            return {}, {"ids": []}
        prompts = torch.stack(list(self._prompts.values()))
        return {"features": self.memory.features, "prompts": prompts}, {"ids": list(self.memory.ids)}

    def restore(self, tensors: dict[str, Tensor], note: dict[str, Any]) -> None:
        """Put what `edited_state` gave in place of the edits in force."""
        self.reset()
        for place, edit_id in enumerate(note["ids"]):
            self._put(edit_id, tensors["features"][place], tensors["prompts"][place].to(self.device))

    # -- answering ---------------------------------------------------------------------------------------

    def fired(self) -> list[tuple[Fired, ...]] | None:
        """The retrieved edit of each query of the last batch, with its lead over the sentinel (cosine)."""
        return list(self._fired)

    @torch.no_grad()
    def _ask(self, questions: Sequence[Question]) -> list[PreparedQuestion]:
        """Each question behind the prompt of its nearest edit, where that is nearer than the sentinel."""
        tokens = read_questions(self.backbone, questions, self.config.layer)
        with torch.autocast(self.device.type, enabled=False):  # What is measured in bfloat16 is routed in float32.
            queries = self.modules.queries(tokens)
            ids, similarity = self.memory.nearest(queries)
            margins = (similarity - queries @ self.modules.border).tolist()
        found = list(zip(questions, ids, margins, strict=True))
        self._fired = [(Fired(edit_id, 1.0, margin),) if margin > 0 else () for _, edit_id, margin in found]
        return [
            PreparedQuestion(question, self._prompts[edit_id] if margin > 0 else None)
            for question, edit_id, margin in found
        ]
