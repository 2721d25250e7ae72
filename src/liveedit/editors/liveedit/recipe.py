"""How LiveEdit is trained: its stages, and one function from cases to a saved editor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...backbones import Backbone
from ...samples import EditCase
from ...training.distributed import ALONE, Processes
from ...training.trainer import TrainingConfig
from ..trained import Report, TrainingResult, train_editor, untrained_modules
from .config import LiveEditConfig
from .editor import LiveEdit
from .modules import LiveEditModules
from .task import LiveEditLosses

TRAINING_CASES = LiveEdit.training_cases
"""Cases of the drawn world that a training draws."""
default_stages = LiveEdit.default_stages
default_shape = LiveEdit.backbone_settings


@dataclass(frozen=True)
class TrainingRecipe:
    """Everything that decides what a training gives, the backbone and the cases apart."""

    editor: LiveEditConfig
    losses: LiveEditLosses
    training: TrainingConfig

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {name: getattr(self, name).model_dump(mode="json") for name in ("editor", "losses", "training")}


def train_liveedit(
    backbone: Backbone,
    cases: Sequence[EditCase],
    recipe: TrainingRecipe,
    folder: Path,
    report: Report = lambda what, done, total, figures: None,
    processes: Processes = ALONE,
) -> TrainingResult:
    """Train an editor into `folder`/editor; a later call with the same recipe goes on where one was cut off.

    Learning curves go to `folder`/curves.json. Under several processes each calls this; the first writes and reports,
    and a later call may have another number of them. Raises `CheckpointError` where the folder holds a training of
    another recipe, `BackboneError` where the editor does not fit the backbone, `ConfigError` for too few cases or
    too small a batch.
    """
    parts = (recipe.editor, recipe.training, folder, report, processes)
    return train_editor(LiveEdit, backbone, cases, *parts, losses=recipe.losses)


def new_modules(backbone: Backbone, recipe: TrainingRecipe) -> LiveEditModules:
    """Untrained modules on the backbone's device, the same on every one: their weights are drawn on the CPU.

    Raises `BackboneError` where they do not fit the backbone.
    """
    return untrained_modules(LiveEdit, backbone, recipe.editor, recipe.training.seed)
