"""Cells that train a LiveEdit editor of their own settings before they measure it."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import ValidationError

from ..backbones import Backbone
from ..datasets import read
from ..datasets.sources import NamedData, cache_folder, open_data, world_seed
from ..datasets.world.kept import kept_world
from ..editors.liveedit import LiveEdit, LiveEditConfig
from ..editors.liveedit.recipe import TrainingRecipe, train_liveedit
from ..editors.liveedit.task import LiveEditLosses
from ..errors import ConfigError, DatasetError
from ..training.trainer import StageConfig, TrainingConfig
from .cells import Cell, EditorChoice, loaded_backbone, measure_cell, slug
from .jobs import Done, Report

Form = Literal["improved", "paper"]

_NOTE: Final = "trained.json"
_LEAST_STEPS_BETWEEN_VALIDATIONS: Final = 10


@dataclass(frozen=True)
class Training:
    """How the editor of a cell is trained, whatever it is that the cell varies apart.

    data: "world", "world:SEED" (the part that is made for training), a folder with train.json, or
    FORMAT:FILE[:IMAGES]. cases: how many; None is LiveEdit's own number of the world, and all of files.
    steps_share: share of the steps of every stage, for a quick look.
    """

    data: str = "world"
    cases: int | None = None
    form: Form = "improved"
    steps_share: float = 1.0
    validation: int | None = None
    seed: int = 0
    stages: tuple[StageConfig, ...] = ()
    settings: tuple[tuple[str, Any], ...] = ()
    """Settings of editor and losses that are the same in every cell."""

    def recipe(self, backbone: Backbone, cases: int, settings: Mapping[str, Any]) -> TrainingRecipe:
        """The recipe with these settings of editor and losses. Raises `ConfigError` for settings that neither has."""
        settings, kinds = {**dict(self.settings), **settings}, (LiveEditConfig, LiveEditLosses)
        known = {name for kind in kinds for name in kind.model_fields}
        if unknown := sorted(settings.keys() - known):
            raise ConfigError(f"There is no setting {', '.join(unknown)}. Give one of {', '.join(sorted(known))}.")
        editor, losses = ({k: v for k, v in settings.items() if k in kind.model_fields} for kind in kinds)
        make: Callable[..., LiveEditConfig] = LiveEditConfig.paper if self.form == "paper" else LiveEditConfig.create
        general = LiveEditLosses.paper() if self.form == "paper" else LiveEditLosses.model_validate({})
        try:
            return TrainingRecipe(
                make(**{**LiveEdit.backbone_settings(backbone), **editor}),
                LiveEditLosses.model_validate({**general.model_dump(), **losses}),
                self._schedule(cases),
            )
        except ValidationError as error:
            raise ConfigError(f"The settings {settings} cannot be used: {error}.") from error

    def _schedule(self, cases: int) -> TrainingConfig:
        if not 0 < self.steps_share <= 1:
            raise ConfigError(f"A share of {self.steps_share} of the steps was asked for. Give more than 0, at most 1.")
        usual = LiveEdit.paper_stages() if self.form == "paper" else LiveEdit.default_stages()
        whole = TrainingConfig(stages=self.stages or usual)
        share = self.steps_share
        shortened = [
            stage.model_copy(update={"steps": max(min(stage.steps, 1), round(stage.steps * share))})
            for stage in whole.stages
        ]
        return TrainingConfig(
            stages=tuple(shortened),
            seed=self.seed,
            warmup=round(whole.warmup * share),
            validation=self.validation or min(whole.validation, max(1, cases // 4)),
            validate_every=max(_LEAST_STEPS_BETWEEN_VALIDATIONS, round(whole.validate_every * share)),
        )

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**vars(self), "stages": [stage.model_dump() for stage in self.stages]}


@dataclass(frozen=True)
class TrainedCell(Cell):
    """A cell whose editor is trained first, into a folder of its own settings; a finished training is kept."""

    settings: tuple[tuple[str, Any], ...] = ()
    training: Training = field(default_factory=Training)

    @property
    def title(self) -> str:
        """As of other cells, and that it is trained."""
        return f"{super().title}, trained"

    def run(self, report: Report) -> Done:
        """The rows, each with what the training gave."""
        note, trained_now = self._train(report)
        source = str(self._folder() / "editor")
        done = measure_cell(self, EditorChoice(self.editor.label, self.editor.name, source), report)
        rows = tuple({**row, "settings": dict(self.settings), "training": note} for row in done.rows)
        return Done(rows, done.kept and not trained_now)

    def _train(self, report: Report) -> tuple[dict[str, Any], bool]:
        """What the training gave, and whether it ran now."""
        backbone = loaded_backbone(self.backbone, self.measuring.load)
        found = training_cases(self.training)
        recipe = self.training.recipe(backbone, len(found.cases), dict(self.settings))
        digests = {"backbone_digest": backbone.digest(), "data_digest": _digest(found.files)}
        wanted = {**recipe.to_dict(), "cases": len(found.cases), **digests}
        folder = self._folder()
        kept = _read(folder / _NOTE)
        if kept is not None and kept["settings"] == wanted and (folder / "editor").is_dir():
            return kept["training"], False

        def trained(what: str, done: int, total: int, _: dict[str, float]) -> None:
            report(f"{self.editor.label}: {what}", done, total)

        result = train_liveedit(backbone, found.cases, recipe, folder, trained)
        shutil.rmtree(folder / "states", ignore_errors=True)
        note = {"parameters": result.parameters, "validation": result.validation, **self.training.to_dict()}
        _write(folder / _NOTE, {"settings": wanted, "training": note})
        return _read(folder / _NOTE)["training"], True  # As it will be found again: JSON knows no tuples.

    def _folder(self) -> Path:
        """One for each backbone, settings and way of training, so that none meets the checkpoints of another."""
        parts = [self.backbone, sorted(self.settings, key=str), self.training.to_dict()]
        digest = hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()[:8]
        return self.out / "trained" / f"{slug(self.editor.label)}-{digest}"


def training_cases(training: Training, progress: Callable[[int, int], None] = lambda done, total: None) -> NamedData:
    """The cases to train on; a world is drawn into the cache, once for all cells."""
    seed = world_seed(training.data)
    if seed is not None:
        count = training.cases or LiveEdit.training_cases
        file = kept_world(cache_folder() / f"world-train-{seed}-{count}", seed, count, 0, progress)["train"]
        return NamedData(training.data, read("mmedit", file), (file,))
    folder = Path(training.data)
    if folder.is_dir():
        if not (folder / "train.json").is_file():
            raise DatasetError(f"The folder {training.data!r} has no train.json. Draw one with `liveedit data draw`.")
        found = NamedData(folder.name, read("mmedit", folder / "train.json"), (folder / "train.json",))
    else:
        found = open_data(training.data)
    if training.cases is not None and training.cases > len(found.cases):
        raise ConfigError(
            f"{training.cases} cases to train on were asked for and the data holds {len(found.cases)}. Ask for fewer."
        )
    return NamedData(found.name, tuple(found.cases[: training.cases]), found.files)


def _digest(files: Sequence[Path]) -> str:
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def _read(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _write(file: Path, content: Any) -> None:
    beside = file.with_suffix(".tmp")
    beside.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    beside.replace(file)
