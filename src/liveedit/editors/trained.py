"""Editors with trained parts: how they are made, trained, saved and loaded is the same for all."""

from __future__ import annotations

import hashlib
import json
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from pydantic import BaseModel
from torch import nn

from ..backbones import BUILT_IN, Backbone, built_in_folder
from ..datasets.sources import cache_folder
from ..errors import BackboneError, CheckpointError, NotFoundError
from ..samples import EditCase
from ..training.checkpoints import load_tensors, save_tensors
from ..training.distributed import ALONE, Processes
from ..training.trainer import StageConfig, Task, Trainer, TrainingConfig, check_cases
from .base import Editor, checked_config

_FILE, _CONFIG = "editor.safetensors", "editor.json"

Report = Callable[[str, int, int, dict[str, float]], None]
"""Called with what is going on, how much of it is done, how much there is, and figures."""


class TrainedEditor(Editor):
    """An editor whose `modules` are trained once for a backbone, and then make every edit.

    A kind of editor gives its configuration, its modules, what it trains on, and its stages; the rest is here.
    """

    config_class: ClassVar[type[BaseModel]]
    """Everything that decides what its modules are and how they are trained."""
    parts_of: ClassVar[str] = ""
    """The editor whose trained parts this one uses, where they are not its own."""
    has_forms: ClassVar[bool] = False
    """Whether it comes in the paper's form and an improved one, with losses and an estimate of its own."""
    training_cases: ClassVar[int] = 3_000
    """Cases of the drawn world that a training draws by default."""

    def __init__(self, backbone: Backbone, modules: Any):
        super().__init__(backbone)
        self.modules = modules.eval()
        self.config: Any = modules.config

    # -- what a kind of editor gives ---------------------------------------------------------------------

    @classmethod
    def backbone_settings(cls, backbone: Backbone) -> dict[str, Any]:
        """The settings that the backbone decides."""
        return {}

    @classmethod
    @abstractmethod
    def new_modules(cls, backbone: Backbone, config: Any) -> nn.Module:
        """Untrained modules with an attribute `config`. Raises `BackboneError` where they do not fit the backbone."""

    @classmethod
    @abstractmethod
    def default_stages(cls) -> tuple[StageConfig, ...]:
        """The stages of its training."""

    @classmethod
    def paper_stages(cls) -> tuple[StageConfig, ...]:
        """What trains the paper's own form, where the editor has one beside its own."""
        return cls.default_stages()

    @classmethod
    @abstractmethod
    def make_task(
        cls,
        backbone: Backbone,
        config: Any,
        cases: Sequence[EditCase],
        folder: Path,
        report: Report,
        processes: Processes = ALONE,
    ) -> Task:
        """What it is trained on, ready to be; states may be kept in `folder`."""

    # -- making, saving, loading -------------------------------------------------------------------------

    @classmethod
    def new_config(cls, backbone: Backbone, **settings: Any) -> Any:
        """The configuration for a backbone. Raises `ConfigError` for settings that it does not know or take."""
        return checked_config(cls.config_class, {**cls.backbone_settings(backbone), **settings}, cls.name)

    @classmethod
    def untrained(cls, backbone: Backbone, config: Any = None, seed: int = 0) -> Self:
        """An editor whose modules have their first weights."""
        torch.manual_seed(seed)
        return cls(backbone, cls.new_modules(backbone, config or cls.new_config(backbone)))

    @classmethod
    def load(cls, backbone: Backbone, source: str | None = None) -> Self:
        """The trained editor in `source`, or the one that ships with, or was made here for, a built-in backbone."""
        named = cls.parts_of or cls.name
        folder = Path(source) if source is not None else trained_folder(named, backbone.name)
        if not (folder / _CONFIG).is_file():
            inside = folder / "editor"
            hint = f" There is one in {str(inside)!r}." if (inside / _CONFIG).is_file() else ""
            raise NotFoundError(
                f"There is no trained editor {named!r} for {backbone.name!r} in {str(folder)!r}.{hint} Train one "
                f"with `{train_command(named, backbone.name)}` and give it with --editor-path DIR/editor."
            )
        return cls.from_pretrained(folder, backbone)

    @classmethod
    def from_pretrained(cls, folder: str | Path, backbone: Backbone) -> Self:
        """Load what `save_pretrained` wrote. Raises `CheckpointError` where the two files do not fit each other."""
        config = cls.new_config(backbone, **_read_json(Path(folder) / _CONFIG))
        tensors, metadata = load_tensors(Path(folder) / _FILE)
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
        return cls(backbone, modules)

    def save_pretrained(self, folder: str | Path, dtype: torch.dtype = torch.float16) -> None:
        """Write the weights as safetensors and the whole configuration as JSON."""
        folder = Path(folder)
        tensors = {name: tensor.to(dtype) for name, tensor in self.modules.state_dict().items()}
        save_tensors(folder / _FILE, tensors, {"trained_for": self.backbone.fingerprint})
        (folder / _CONFIG).write_text(self.config.model_dump_json(indent=2) + "\n", encoding="utf-8")

    def configuration(self) -> dict[str, Any]:
        """The whole configuration."""
        return self.config.model_dump(mode="json")

    def settings_for_digest(self) -> str:
        """The configuration as text; fields that came later are left out where they say what held before."""
        return self.config.model_dump_json()

    def digest(self) -> str:
        """SHA-256 of configuration and weights."""
        digest = hashlib.sha256(self.settings_for_digest().encode())
        for name, tensor in sorted(self.modules.state_dict().items()):
            digest.update(name.encode() + tensor.cpu().float().contiguous().numpy().tobytes())
        return digest.hexdigest()


@dataclass(frozen=True)
class TrainingResult:
    """What a training gave: the editor's folder, its size, and the validation figures in percent."""

    folder: Path
    parameters: int
    validation: dict[str, float]


def train_editor(
    kind: type[TrainedEditor],
    backbone: Backbone,
    cases: Sequence[EditCase],
    config: Any,
    training: TrainingConfig,
    folder: Path,
    report: Report = lambda what, done, total, figures: None,
    processes: Processes = ALONE,
    **options: BaseModel,
) -> TrainingResult:
    """Train an editor into `folder`/editor; a later call with the same settings goes on where one was cut off.

    `options` are further settings of the editor's task, as LiveEdit's losses. Learning curves go to
    `folder`/curves.json. Under several processes each calls this; the first writes and reports.
    Raises `CheckpointError` where the folder holds a training with other settings, `BackboneError` where the editor
    does not fit the backbone, `ConfigError` for too few cases or too small a batch.
    """
    check_cases(len(cases), training, processes)
    modules = untrained_modules(kind, backbone, config, training.seed)
    parts = {"editor": config, "training": training, **options}
    with processes.first_goes_ahead():
        named = {"kind": kind.name, "backbone": backbone.name, "cases": len(cases)}
        check_resumable(folder / "training.json", named, parts)
    task = kind.make_task(backbone, config, cases, folder, report, processes, **options)
    validation = Trainer(folder, training, task, report, processes).run(modules)
    if processes.is_first:
        with kind(backbone, modules) as editor:
            editor.save_pretrained(folder / "editor")
    processes.wait()
    return TrainingResult(folder / "editor", sum(part.numel() for part in modules.parameters()), validation)


def untrained_modules(kind: type[TrainedEditor], backbone: Backbone, config: Any, seed: int) -> Any:
    """Modules on the backbone's device, the same on every one: their weights are drawn on the CPU.

    Raises `BackboneError` where they do not fit the backbone.
    """
    torch.manual_seed(seed)
    modules = kind.new_modules(backbone, config)
    kind(backbone, modules).detach()  # Refuses what would not fit when the training is over, and moves them.
    return modules.train()


def trained_folder(editor: str, backbone: str) -> Path:
    """Where the trained parts of an editor for a backbone lie: shipped, or made here by `make editors`."""
    if backbone in BUILT_IN:
        try:
            return built_in_folder(f"{backbone}-{editor}")
        except NotFoundError:
            return cache_folder() / "editors" / f"{backbone}-{editor}" / "editor"
    return Path(f"{backbone}-{editor}")


def train_command(editor: str, backbone: str) -> str:
    """The command that trains an editor for a backbone."""
    return f"liveedit train --editor {editor} --backbone {backbone} --out DIR"


def check_resumable(note: Path, named: dict[str, Any], parts: Mapping[str, BaseModel]) -> None:
    """Write down what this folder trains, or make sure that it is the same. Raises `CheckpointError`.

    A setting that did not exist when the note was written had what is now its default.
    """
    settings = {**named, **{name: part.model_dump(mode="json") for name, part in parts.items()}}
    if not note.exists():
        note.parent.mkdir(parents=True, exist_ok=True)
        note.write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
        return
    try:
        found = json.loads(note.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{note} could not be read ({error}). Remove it or choose another folder.") from error
    found = {"kind": "liveedit", **found}  # The only editor that was trained before others were.
    for name, part in parts.items():
        fields = type(part).model_fields.items()
        later = {field: info.default for field, info in fields if not info.is_required() and info.default is not None}
        found[name] = {**later, **(found.get(name) or {})}
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


def _read_json(file: Path) -> dict[str, Any]:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{file} could not be read as a configuration ({error}).") from error
