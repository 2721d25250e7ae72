"""Editors with trained modules: how they are created, trained, saved and loaded is the same for all."""

from __future__ import annotations

import hashlib
import json
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, Self

import torch
from pydantic import BaseModel
from torch import Tensor, nn

from ..backbones import BUILT_IN, Backbone, built_in_folder
from ..backbones.hidden_states import HiddenStateCache
from ..errors import BackboneError, CheckpointError, ConfigError, NotFoundError
from ..files import cache_folder, write_json, write_text
from ..hub.repositories import folder_of
from ..progress import Progress, TaskProgress, no_progress, no_task_progress, progress_of
from ..samples import EditCase
from ..training.checkpoints import load_tensors, save_tensors
from ..training.distributed import ALONE, Processes
from ..training.trainer import StageConfig, Task, Trainer, TrainingConfig, check_cases
from .base import checked_config
from .pretrained import PretrainedEditor

_FILE, _CONFIG = "editor.safetensors", "editor.json"

Form = Literal["improved", "paper"]
"""The form of an editor: this project's, or exactly the paper's."""


class PreparedTask(Task, Protocol):
    """A training task that computes the hidden states of its inputs once."""

    def prepare(self, progress: Progress = no_progress) -> None:
        """Compute what every step needs."""
        ...


class TrainedEditor(PretrainedEditor):
    """An editor whose `modules` are trained once for a backbone and then make every edit.

    A subclass gives `config_class`, `task_class`, `new_modules` and `default_stages`. It may give `backbone_settings`
    if the backbone determines some of its configuration, `options_class` and `new_task` if its task has settings of
    its own, and `paper_config`, `paper_options`, `paper_training` and `paper_stages` if it also has the paper's form.
    """

    config_class: ClassVar[type[BaseModel]]
    """The configuration of its modules; it is saved with them."""
    task_class: ClassVar[type[Any]]
    """Its training task, a `PreparedTask`: it is created with the first five arguments of `new_task`."""
    options_class: ClassVar[type[BaseModel] | None] = None
    """Further settings of its training task, such as the forms of losses; None if there are none."""
    paper_config: ClassVar[Mapping[str, Any] | None] = None
    """Settings of `config_class` that give the paper's form; None if the editor has one form only."""
    paper_options: ClassVar[Mapping[str, Any]] = {}
    """Settings of `options_class` that give the paper's form."""
    paper_training: ClassVar[Mapping[str, Any]] = {}
    """Settings of `TrainingConfig`, besides its stages, that give the paper's form."""
    starting_settings: ClassVar[frozenset[str]] = frozenset()
    """Settings that decide only how a training begins. The digest, to which edits are bound, is without them."""
    calibrated_settings: ClassVar[frozenset[str]] = frozenset()
    """Settings that `calibrate_on` chooses. The digest is without those that have their defaults."""
    parts_of: ClassVar[str] = ""
    """The editor whose trained modules this one uses, if they are not its own."""
    training_cases: ClassVar[int] = 3_000
    """Number of cases that are generated for its training by default."""

    def __init__(self, backbone: Backbone, modules: Any):
        super().__init__(backbone)
        self.modules = modules.eval()
        self.config: Any = modules.config
        self.origin: dict[str, Any] = {}
        """What the modules were trained with: backbone, its digest, data, cases, validation. Saved with them."""

    # -- for subclasses ----------------------------------------------------------------------------------

    @classmethod
    def backbone_settings(cls, backbone: Backbone) -> dict[str, Any]:
        """The settings of `config_class` that the backbone determines, such as its width."""
        return {}

    @classmethod
    @abstractmethod
    def new_modules(cls, backbone: Backbone, config: Any) -> nn.Module:
        """Untrained modules with an attribute `config`. Raises `BackboneError` if they do not fit the backbone."""

    @classmethod
    @abstractmethod
    def default_stages(cls) -> tuple[StageConfig, ...]:
        """The stages of its training."""

    @classmethod
    def paper_stages(cls) -> tuple[StageConfig, ...]:
        """The stages that train the paper's form, if the editor has one."""
        return cls.default_stages()

    @classmethod
    def hidden_layer(cls, backbone: Backbone, config: Any) -> int:
        """The layer whose hidden states its task reads."""
        return config.layer

    @classmethod
    def new_task(
        cls,
        backbone: Backbone,
        config: Any,
        cases: Sequence[EditCase],
        store: HiddenStateCache,
        processes: Processes = ALONE,
        options: Any = None,
    ) -> PreparedTask:
        """Its training task. store: the hidden states of `hidden_layer`, which the task fills in `prepare`.

        options: an instance of `options_class`; None for its defaults, and for editors without one.
        """
        return cls.task_class(backbone, config, cases, store, processes)

    @classmethod
    def make_task(
        cls,
        backbone: Backbone,
        config: Any,
        cases: Sequence[EditCase],
        folder: Path,
        report: TaskProgress,
        processes: Processes = ALONE,
        options: Any = None,
        states: HiddenStateCache | None = None,
    ) -> PreparedTask:
        """Its training task with all hidden states computed. They may be kept in `folder`.

        states: where they are kept instead; if they are there, of the same layer and inputs, nothing is computed.
        """
        place = folder / ("states" if processes.is_first else f"states-{processes.rank}")
        store = HiddenStateCache(backbone, cls.hidden_layer(backbone, config), place) if states is None else states
        task = cls.new_task(backbone, config, cases, store, processes, options)
        if not len(store):
            task.prepare(progress_of(report, "hidden states") if processes.is_first else no_progress)
        return task

    @classmethod
    def start(cls, modules: Any, task: Any) -> None:
        """Change how untrained modules start, by what the task has computed. By default nothing changes."""

    # -- its forms ---------------------------------------------------------------------------------------

    @classmethod
    def forms(cls) -> tuple[Form, ...]:
        """The forms in which it can be trained."""
        return ("improved",) if cls.paper_config is None else ("improved", "paper")

    @classmethod
    def schedule(cls, form: Form = "improved") -> TrainingConfig:
        """Stages and optimiser of a form. Raises `ConfigError` if the editor does not have this form."""
        if form not in cls.forms():
            raise ConfigError(
                f"The editor {cls.name!r} has no {form} form; it has only: {', '.join(cls.forms())}. Leave out --form."
            )
        if form == "paper":
            return TrainingConfig(stages=cls.paper_stages(), **cls.paper_training)
        return TrainingConfig(stages=cls.default_stages())

    # -- calibration -------------------------------------------------------------------------------------

    def calibrate_on(
        self, cases: Sequence[EditCase], false_firing: float = 0.05, progress: Progress = no_progress
    ) -> dict[str, float]:
        """Choose how similar a question must be to an edit, on cases that the editor was not trained on.

        false_firing: share of the questions outside of every edit that an edit may answer, from 0 up to 1, with all
        edits of the cases active. Returns what was chosen, and what it gives on these cases in percent. Raises
        `ConfigError` if the editor has nothing to choose, `InvalidInputError` for cases or a share that cannot be used.
        """
        raise ConfigError(f"The editor {self.name!r} has no thresholds to choose: use it as it was trained.")

    # -- creating, saving, loading -----------------------------------------------------------------------

    @classmethod
    def new_config(cls, backbone: Backbone, **settings: Any) -> Any:
        """The configuration for a backbone. Raises `ConfigError` for unknown settings and invalid values."""
        return checked_config(cls.config_class, {**cls.backbone_settings(backbone), **settings}, cls.name)

    @classmethod
    def untrained(cls, backbone: Backbone, config: Any = None, seed: int = 0) -> Self:
        """An editor with randomly initialised modules."""
        torch.manual_seed(seed)
        return cls(backbone, cls.new_modules(backbone, config or cls.new_config(backbone)))

    @classmethod
    def load(cls, backbone: Backbone, source: str | None = None) -> Self:
        """Load the trained editor in `source`; by default the one of a built-in backbone, shipped or made here.

        Raises `NotFoundError` if there is none.
        """
        named = cls.parts_of or cls.name
        folder = folder_of(source) if source is not None else trained_folder(named, backbone.name)
        if not (folder / _CONFIG).is_file():
            inside = folder / "editor"
            hint = f" There is one in {str(inside)!r}." if (inside / _CONFIG).is_file() else ""
            if source is not None and not folder.exists():
                hint = " That folder does not exist: check the path."
            raise NotFoundError(
                f"There is no trained editor {named!r} for {backbone.name!r} in {str(folder)!r}.{hint} Train one "
                f"with `{train_command(named, backbone.name)}` and give it with --editor-path DIR/editor."
            )
        return cls.from_folder(folder, backbone)

    @classmethod
    def from_folder(cls, folder: Path, backbone: Backbone) -> Self:
        """Load what `save_pretrained` wrote.

        Raises `CheckpointError` for damaged files and for weights that do not fit the configuration, `BackboneError`
        if the editor was trained for another model.
        """
        config = cls.new_config(backbone, **_read_json(folder / _CONFIG))
        tensors, metadata = load_tensors(folder / _FILE)
        meant, found = metadata.get("trained_for"), backbone.fingerprint
        if meant is not None and meant != found:
            others = [name for name in found if meant.get(name) != found[name]]
            differing = ", ".join(f"{name} {meant.get(name)}, here {found[name]}" for name in others)
            raise BackboneError(
                f"The editor in {folder} was trained for another model ({differing}). Give the editor of "
                f"{backbone.name}, or train one: liveedit train."
            )
        modules: Any = cls.new_modules(backbone, config)
        try:
            modules.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
        except RuntimeError as error:
            raise CheckpointError(f"{folder}: weights and configuration do not fit ({error}).") from error
        editor = cls(backbone, modules)
        editor.origin = metadata.get("origin", {})
        return editor

    def _save_pretrained(self, save_directory: Path) -> None:
        """Write the weights as safetensors, in float16 where it holds them, and the whole configuration as JSON."""
        tensors = {name: _in_fewest_bytes(tensor) for name, tensor in self.modules.state_dict().items()}
        note = {"trained_for": self.backbone.fingerprint, **({"origin": self.origin} if self.origin else {})}
        save_tensors(save_directory / _FILE, tensors, note)
        write_text(save_directory / _CONFIG, self.config.model_dump_json(indent=2) + "\n")

    @torch.no_grad()
    def round_weights(self) -> None:
        """Round the weights to float16, in which trained editors are kept."""
        for tensor in self.modules.state_dict().values():
            tensor.copy_(tensor.half())

    def facts(self) -> dict[str, object]:
        """What it was trained with, as far as it is recorded, and the validation at the end of the training."""
        known = self.origin
        digest = known.get("backbone_digest")
        return {
            "trained on": _of_training(known),
            "thresholds chosen on": known.get("calibrated_on"),
            "trained with the backbone digest": None if digest == self.backbone.digest() else digest,
            **{
                f"validation, {name.replace('_', ' ')}": f"{value:.1f} %"
                for name, value in known.get("validation", {}).items()
            },
            "parameters": f"{sum(part.numel() for part in self.modules.parameters()):,}",
        }

    def configuration(self) -> dict[str, Any]:
        """The whole configuration."""
        return self.config.model_dump(mode="json")

    def digest(self) -> str:
        """SHA-256 of configuration and weights, in hexadecimal digits."""
        digest = hashlib.sha256(self.config.model_dump_json(exclude=self._without_effect()).encode())
        for name, tensor in sorted(self.modules.state_dict().items()):
            digest.update(name.encode() + tensor.cpu().float().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def _without_effect(self) -> set[str]:
        fields = type(self.config).model_fields
        unset = {name for name in self.calibrated_settings if getattr(self.config, name) == fields[name].default}
        return unset | self.starting_settings


@dataclass(frozen=True)
class TrainingSetup:
    """Everything that determines the result of a training, apart from the backbone and the cases.

    config: an instance of the editor's `config_class`. options: one of its `options_class`, None if it has none.
    """

    kind: type[TrainedEditor]
    config: Any
    training: TrainingConfig
    options: BaseModel | None = None

    def to_dict(self) -> dict[str, Any]:
        """For JSON; "options" is left out if the editor has none."""
        parts = {"editor": self.config, "options": self.options, "training": self.training}
        chosen_later = set(self.kind.calibrated_settings)
        return {
            name: part.model_dump(mode="json", exclude=chosen_later if name == "editor" else None)
            for name, part in parts.items()
            if part is not None
        }


def training_setup(
    kind: type[TrainedEditor],
    backbone: Backbone,
    settings: Mapping[str, Any],
    form: Form = "improved",
    training: TrainingConfig | None = None,
) -> TrainingSetup:
    """Give each setting to the configuration that has a field of its name: of the editor, its options, or the training.

    settings: values by name. training: the schedule, which settings may change; by default that of the form.
    Raises `ConfigError` for unknown settings, invalid values, and a form that the editor does not have.
    """
    usual = kind.schedule(form)
    models: list[type[BaseModel]] = [kind.config_class, TrainingConfig]
    if kind.options_class is not None:
        models.append(kind.options_class)
    known = sorted({name for model in models for name in model.model_fields} - {"stages"} - kind.calibrated_settings)
    if unknown := sorted(settings.keys() - set(known)):
        raise ConfigError(f"There is no setting {', '.join(unknown)}. Give one of {', '.join(known)}.")

    def given(model: type[BaseModel]) -> dict[str, Any]:
        return {name: value for name, value in settings.items() if name in model.model_fields}

    paper = form == "paper"
    general = (training or usual).model_dump()
    options = None
    if kind.options_class is not None:
        chosen = {**(kind.paper_options if paper else {}), **given(kind.options_class)}
        options = checked_config(kind.options_class, chosen, f"The training of {kind.name}")
    return TrainingSetup(
        kind,
        kind.new_config(backbone, **{**((kind.paper_config or {}) if paper else {}), **given(kind.config_class)}),
        checked_config(TrainingConfig, {**general, **given(TrainingConfig)}, "A training"),
        options,
    )


@dataclass(frozen=True)
class TrainingResult:
    """The folder of a trained editor, its number of parameters, and its validation figures in percent."""

    folder: Path
    parameters: int
    validation: dict[str, float]


def train_editor(
    setup: TrainingSetup,
    backbone: Backbone,
    cases: Sequence[EditCase],
    folder: Path,
    report: TaskProgress = no_task_progress,
    processes: Processes = ALONE,
    data: str | None = None,
    states: HiddenStateCache | None = None,
) -> TrainingResult:
    """Train an editor into `folder`/editor; a later call with the same setup resumes an interrupted training.

    data: what the cases are, for the editor's card. states: as in `TrainedEditor.make_task`. Learning curves go to
    `folder`/curves.json. With several processes, each calls this; the first writes and reports, and a resumed training
    may have another number of them.

    Raises `CheckpointError` if the folder holds a training of another setup, `BackboneError` if the editor does not
    fit the backbone, `ConfigError` for too few cases or too small a batch.
    """
    check_cases(len(cases), setup.training, processes)
    modules = untrained_modules(setup, backbone)
    with processes.first_goes_ahead():
        named = {"kind": setup.kind.name, "backbone": backbone.name, "cases": len(cases)}
        check_resumable(folder / "training.json", {**named, **setup.to_dict()})
    task = setup.kind.make_task(backbone, setup.config, cases, folder, report, processes, setup.options, states)
    setup.kind.start(modules, task)
    validation = Trainer(folder, setup.training, task, report, processes).run(modules)
    if processes.is_first:
        with setup.kind(backbone, modules) as editor:
            editor.round_weights()
            editor.origin = {
                "backbone": backbone.name,
                "backbone_digest": backbone.digest(),
                "data": data,
                "cases": len(cases),
                "validation": validation,
            }
            editor.save_pretrained(folder / "editor")
    processes.wait()
    return TrainingResult(folder / "editor", sum(part.numel() for part in modules.parameters()), validation)


def untrained_modules(setup: TrainingSetup, backbone: Backbone) -> Any:
    """New modules on the backbone's device, in training mode.

    Their weights are drawn on the CPU, so that they are the same on every device. Raises `BackboneError` if they do
    not fit the backbone.
    """
    torch.manual_seed(setup.training.seed)
    modules = setup.kind.new_modules(backbone, setup.config)
    setup.kind(backbone, modules).detach()  # The constructor checks that they fit, and moves them to the device.
    return modules.train()


def trained_folder(editor: str, backbone: str) -> Path:
    """The folder of the trained editor for a backbone: shipped, or made here by `make editors`."""
    if backbone in BUILT_IN:
        try:
            return built_in_folder(f"{backbone}-{editor}")
        except NotFoundError:
            return cache_folder() / "editors" / f"{backbone}-{editor}" / "editor"
    return Path(f"{backbone}-{editor}")


def has_trained_editor(editor: str, backbone: str, source: str | Path | None = None) -> bool:
    """Whether there is a trained editor in `source`, by default the one of a built-in backbone."""
    folder = trained_folder(editor, backbone) if source is None else folder_of(source)
    return (folder / _CONFIG).is_file()


def _in_fewest_bytes(tensor: Tensor) -> Tensor:
    """The tensor in float16 if that changes no value."""
    half = tensor.half()
    return half if torch.equal(half.to(tensor.dtype), tensor) else tensor


def _of_training(origin: Mapping[str, Any]) -> str:
    """The cases of a training, in words."""
    if "cases" not in origin:
        return "not recorded"
    return f"{origin['cases']:,} edits" + (f" of {origin['data']}" if origin["data"] else "")


def train_command(editor: str, backbone: str) -> str:
    """The command that trains an editor for a backbone."""
    return f"liveedit train --editor {editor} --backbone {backbone} --out DIR"


def check_resumable(note: Path, settings: Mapping[str, Any]) -> None:
    """Write the settings of a training to `note`, or check that those found there are the same.

    Raises `CheckpointError` if they differ or cannot be read.
    """
    if not note.exists():
        write_json(note, dict(settings))
        return
    differing = [
        f"{name} = {before!r} there, {after!r} here" for name, before, after in _differences(_read_json(note), settings)
    ]
    if differing:
        raise CheckpointError(
            f"{note.parent} holds a training with other settings ({'; '.join(differing)}). Choose another "
            "folder, remove it, or give the settings that it was started with."
        )


def _differences(found: Mapping[str, Any], wanted: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any, Any]]:
    """(name, value found, value wanted) of every setting that differs."""
    differing = []
    for name in [*wanted, *(found.keys() - wanted.keys())]:
        before, after = found.get(name), wanted.get(name)
        if isinstance(before, dict) and isinstance(after, dict):
            differing += _differences(before, after, f"{prefix}{name}.")
        elif before != after:
            differing.append((f"{prefix}{name}", before, after))
    return differing


def _read_json(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{file} could not be read as settings ({error}). Remove it, or choose another folder."
        ) from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{file} holds no JSON object, but {found!r}. Remove it, or choose another folder.")
    return found
