"""Runs that train a LiveEdit editor with their own settings before they measure it."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from ...backbones import Backbone
from ...backbones.hidden_states import HiddenStateCache
from ...datasets import read
from ...datasets.sources import NamedData, open_data, world_seed
from ...datasets.world.kept import kept_world
from ...editors.liveedit import LiveEdit
from ...editors.trained import Form, TrainingSetup, train_editor, training_setup
from ...errors import ConfigError, DatasetError
from ...evaluation.provenance import described_load, sealed
from ...files import cache_folder, write_json
from ...progress import Progress, TaskProgress, no_progress
from ...training.trainer import StageConfig, TrainingConfig, usual_validation
from ..jobs import Done
from ..runs import EditorChoice, Run, loaded_backbone, measure_run, slug

_NOTE: Final = "trained.json"
_LEAST_STEPS_BETWEEN_VALIDATIONS: Final = 10


@dataclass(frozen=True)
class Training:
    """How the editor of a run is trained, apart from the settings that the runs vary.

    data: "world", "world:SEED" (its training part), a folder with train.json, or FORMAT:FILE[:IMAGES]. cases: number
    of cases; None for LiveEdit's default number of the world, and for all cases of files. steps_share: share of the
    steps of every stage, for a quick trial.
    """

    data: str = "world"
    cases: int | None = None
    form: Form = "improved"
    steps_share: float = 1.0
    validation: int | None = None
    seed: int = 0
    stages: tuple[StageConfig, ...] = ()
    settings: tuple[tuple[str, Any], ...] = ()
    """Settings of editor and losses that are the same in every run."""

    def setup(self, backbone: Backbone, cases: int, settings: Mapping[str, Any]) -> TrainingSetup:
        """The training configuration with these settings. Raises `ConfigError` for unknown ones."""
        given = {**dict(self.settings), **settings}
        return training_setup(LiveEdit, backbone, given, self.form, self._schedule(cases))

    def _schedule(self, cases: int) -> TrainingConfig:
        if not 0 < self.steps_share <= 1:
            raise ConfigError(f"A share of {self.steps_share} of the steps was asked for. Give more than 0, at most 1.")
        whole, share = LiveEdit.schedule(self.form), self.steps_share
        shortened = [
            stage.model_copy(update={"steps": max(min(stage.steps, 1), round(stage.steps * share))})
            for stage in self.stages or whole.stages
        ]
        changes = {
            "stages": tuple(shortened),
            "seed": self.seed,
            "warmup": round(whole.warmup * share),
            "validation": self.validation or usual_validation(cases),
            "validate_every": max(_LEAST_STEPS_BETWEEN_VALIDATIONS, round(whole.validate_every * share)),
        }
        return whole.model_copy(update=changes)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**vars(self), "stages": [stage.model_dump() for stage in self.stages]}

    @property
    def summarized(self) -> dict[str, Any]:
        """The fields that reports name."""
        return {"form": self.form, "steps_share": self.steps_share}


@dataclass(frozen=True)
class TrainedRun(Run):
    """A run whose editor is trained first, into a folder for its settings; a finished training is reused."""

    settings: tuple[tuple[str, Any], ...] = ()
    training: Training = field(default_factory=Training)

    @property
    def title(self) -> str:
        """The title of the run, and that its editor is trained."""
        return f"{super().title}, trained"

    def run(self, report: TaskProgress) -> Done:
        """The rows, each with the results of the training."""
        note, trained_now = self._train(report)
        source = str(self._folder() / "editor")
        done = measure_run(self, EditorChoice(self.editor.label, self.editor.name, source), report)
        rows = tuple(sealed({**row, "settings": dict(self.settings), "training": note}) for row in done.rows)
        return Done(rows, done.kept and not trained_now)

    def _train(self, report: TaskProgress) -> tuple[dict[str, Any], bool]:
        """The results of the training, and whether it ran now."""
        backbone = loaded_backbone(self.backbone, self.options.load)
        found = training_cases(self.training)
        setup = self.training.setup(backbone, len(found.cases), dict(self.settings))
        digests = {"backbone_digest": backbone.digest(), "data_digest": _digest(found.files)}
        load = described_load(dict(self.options.load))
        wanted = {**setup.to_dict(), "cases": len(found.cases), **digests, **({"load": load} if load else {})}
        folder = self._folder()
        kept = _read(folder / _NOTE)
        if kept is not None and kept["settings"] == wanted and (folder / "editor").is_dir():
            return kept["training"], False

        def trained(task: str, done: int, total: int, figures: Mapping[str, float] | None = None, /) -> None:
            report(f"{self.editor.label}: {task}", done, total)

        kept_states = _states_of(backbone, setup, digests, len(found.cases), folder / "states")
        try:
            result = train_editor(setup, backbone, found.cases, folder, trained, states=kept_states)
        except BaseException:
            _LAST_STATES.clear()  # They may be incomplete.
            raise
        finally:
            shutil.rmtree(folder / "states", ignore_errors=True)
        note = {"parameters": result.parameters, "validation": result.validation, **self.training.to_dict()}
        write_json(folder / _NOTE, {"settings": wanted, "training": note})
        return _read(folder / _NOTE)["training"], True  # As read in later runs: JSON has no tuples.

    def _folder(self) -> Path:
        """A folder for each backbone, settings and way of training: checkpoints of others are never continued."""
        parts = [self.backbone, sorted(self.settings, key=str), self.training.to_dict()]
        digest = hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()[:8]
        return self.out / "trained" / f"{slug(self.editor.label)}-{digest}"


def usual_stages(form: Form) -> tuple[StageConfig, ...]:
    """The stages in which LiveEdit is trained by default."""
    return LiveEdit.schedule(form).stages


_LAST_STATES: Final[dict[Any, HiddenStateCache]] = {}
"""The hidden states of the last training in this process: the next run often reads the same layer."""


def _states_of(
    backbone: Backbone, setup: TrainingSetup, digests: Mapping[str, str], cases: int, folder: Path
) -> HiddenStateCache:
    """The hidden states of this training's inputs, those of the last training if they are the same."""
    layer, text = LiveEdit.hidden_layer(backbone, setup.config), getattr(setup.options, "text_locality", None)
    key = (*sorted(digests.items()), cases, layer, text)
    if key not in _LAST_STATES:
        _LAST_STATES.clear()
        _LAST_STATES[key] = HiddenStateCache(backbone, layer, folder)
    return _LAST_STATES[key]


def training_cases(training: Training, progress: Progress = no_progress) -> NamedData:
    """The cases to train on; a world is drawn once, into the cache."""
    seed = world_seed(training.data)
    if seed is not None:
        count = training.cases or LiveEdit.training_cases
        file = kept_world(cache_folder() / f"world-train-{seed}-{count}", seed, count, 0, progress)["train"]
        return NamedData(training.data, read("mmedit", file), (file,))
    folder = Path(training.data)
    if folder.is_dir():
        if not (folder / "train.json").is_file():
            raise DatasetError(f"The folder {training.data!r} has no train.json. Create it with `liveedit data draw`.")
        found = NamedData(folder.name, read("mmedit", folder / "train.json"), (folder / "train.json",))
    else:
        found = open_data(training.data)
    if training.cases is not None and training.cases > len(found.cases):
        raise ConfigError(
            f"{training.cases} training cases were requested and the data has {len(found.cases)}. Request fewer."
        )
    return NamedData(found.name, tuple(found.cases[: training.cases]), found.files)


def _digest(files: Sequence[Path]) -> str:
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def _read(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
