"""How LiveEdit is trained: its stages, and one function from cases to a saved editor."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ...backbones import Backbone
from ...backbones.states import StateStore
from ...errors import CheckpointError
from ...processes import ALONE, Processes
from ...samples import EditCase
from ...training import StageConfig, Trainer, TrainingConfig
from .config import LiveEditConfig
from .editor import LiveEdit
from .modules import LiveEditModules
from .task import LiveEditLosses, LiveEditTask

TRAINING_CASES = 8_000
"""Cases of the drawn world that a training draws."""

Report = Callable[[str, int, int, dict[str, float]], None]
"""Called with what is going on, how much of it is done, how much there is, and figures."""


def default_stages() -> tuple[StageConfig, ...]:
    """Routing alone, the generator alone, then both together."""
    return (
        StageConfig(name="routing", steps=1200, batch=160, rate=1e-3),
        StageConfig(name="generator", steps=800, batch=32, rate=1e-3),
        StageConfig(name="joint", steps=300, batch=32, rate=3e-4),
    )


def default_shape(backbone: Backbone) -> dict[str, Any]:
    """What a backbone decides of a `LiveEditConfig`: width, edit layer, length of the sentinel, scope."""
    return {
        "width": backbone.width,
        "layer": backbone.default_edit_layer(),
        "image_tokens": max(1, backbone.image_tokens),
        "scope": "image" if backbone.reads_pictures else "text+image",
    }


@dataclass(frozen=True)
class TrainingRecipe:
    """Everything that decides what a training gives, the backbone and the cases apart."""

    editor: LiveEditConfig
    losses: LiveEditLosses
    training: TrainingConfig

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {name: getattr(self, name).model_dump(mode="json") for name in ("editor", "losses", "training")}


@dataclass(frozen=True)
class TrainedEditor:
    """What a training gave: the editor's folder, its size, and the validation figures in percent."""

    folder: Path
    parameters: int
    validation: dict[str, float]


def train_liveedit(
    backbone: Backbone,
    cases: Sequence[EditCase],
    recipe: TrainingRecipe,
    folder: Path,
    report: Report = lambda what, done, total, figures: None,
    processes: Processes = ALONE,
) -> TrainedEditor:
    """Train an editor into `folder`/editor; a later call with the same recipe goes on where one was cut off.

    Learning curves go to `folder`/curves.json. Under several processes each calls this; the first writes and reports,
    and a later call may have another number of them. Raises `CheckpointError` where the folder holds a training of
    another recipe, `BackboneError` where the editor does not fit the backbone, `ConfigError` for too few cases or
    too small a batch.
    """
    layer = recipe.editor.layer
    store = StateStore(backbone, layer, folder / ("states" if processes.is_first else f"states-{processes.rank}"))
    task = LiveEditTask(backbone, layer, cases, recipe.losses, store, processes)
    trainer = Trainer(folder, recipe.training, task, report, processes)
    modules = new_modules(backbone, recipe)
    with processes.first_goes_ahead():
        _claim(folder / "training.json", {"backbone": backbone.name, "cases": len(cases), **recipe.to_dict()})
    task.prepare(lambda done, total: trainer.report("states at the edit layer", done, total, {}))
    validation = trainer.run(modules)
    if processes.is_first:
        with LiveEdit(backbone, modules) as editor:
            editor.save_pretrained(folder / "editor")
    processes.wait()
    parameters = sum(parameter.numel() for parameter in modules.parameters())
    return TrainedEditor(folder / "editor", parameters, validation)


def new_modules(backbone: Backbone, recipe: TrainingRecipe) -> LiveEditModules:
    """Untrained modules on the backbone's device, the same on every one: their weights are drawn on the CPU.

    Raises `BackboneError` where they do not fit the backbone.
    """
    torch.manual_seed(recipe.training.seed)
    modules = LiveEditModules(recipe.editor)
    LiveEdit(backbone, modules).detach()  # Refuses what would not fit when the training is over.
    return modules.train()


def _claim(note: Path, settings: dict[str, Any]) -> None:
    """Write down what this folder trains, or make sure that it is the same."""
    if not note.exists():
        note.parent.mkdir(parents=True, exist_ok=True)
        note.write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
        return
    try:
        found = json.loads(note.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{note} could not be read ({error}). Remove it or choose another folder.") from error
    differing = [f"{name} = {before!r} there, {after!r} here" for name, before, after in _differences(found, settings)]
    if differing:
        raise CheckpointError(
            f"{note.parent} holds a training with other settings ({'; '.join(differing)}). Choose another "
            "folder, remove it, or give the settings that it was begun with."
        )


def _differences(found: dict[str, Any], wanted: dict[str, Any], prefix: str = "") -> list[tuple[str, Any, Any]]:
    """(name, found, wanted) of every setting in which the two differ."""
    differing = []
    for name in [*wanted, *(found.keys() - wanted.keys())]:
        before, after = found.get(name), wanted.get(name)
        if isinstance(before, dict) and isinstance(after, dict):
            differing += _differences(before, after, f"{prefix}{name}.")
        elif before != after:
            differing.append((f"{prefix}{name}", before, after))
    return differing
