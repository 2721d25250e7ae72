"""Editors by name: the built-in ones and those of other packages, registered as `liveedit.editors` entry points."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .. import registry
from ..errors import ConfigError, ExtensionError, InvalidInputError
from ..registry import DEFAULT_EDITOR, DEFAULT_TRAINED_EDITOR, EDITORS, UNTRAINED_EDITOR
from .base import Editor, EditRecord, ExpertEditor
from .pretrained import PretrainedEditor
from .trained import TrainedEditor, has_trained_editor

__all__ = [
    "EditRecord",
    "Editor",
    "ExpertEditor",
    "PretrainedEditor",
    "TrainedEditor",
    "default_editor",
    "editor_class",
    "editor_names",
    "expert_editor_class",
    "expert_editor_names",
    "pretrained_editor_class",
    "trained_editor_class",
]


def editor_names() -> tuple[str, ...]:
    """Names of all installed editors."""
    return registry.names(EDITORS)


def expert_editor_names() -> tuple[str, ...]:
    """Names of the installed editors that make one expert per edit. Leaves out those that cannot be imported."""
    return _names_of(ExpertEditor)


def editor_class(name: str) -> type[Editor]:
    """The editor of this name. Raises `NotFoundError` with the installed names, `ExtensionError` if it is broken."""
    found = registry.load(EDITORS, name)
    if not isinstance(found, type) or not issubclass(found, Editor):
        raise registry.wrong_kind(EDITORS, name, found, "a subclass of liveedit.editors.Editor")
    return found


def expert_editor_class(name: str) -> type[ExpertEditor[Any]]:
    """The editor of this name. Raises as `editor_class`, and `InvalidInputError` if it makes no expert per edit."""
    kind = editor_class(name)
    if not issubclass(kind, ExpertEditor):
        raise InvalidInputError(
            f"The editor {name!r} makes no expert per edit, so single edits cannot be stored and undone. "
            f"Give one of {', '.join(expert_editor_names())}; the others run in the bench."
        )
    return kind


def default_editor(backbone: str, source: str | Path | None = None) -> str:
    """The editor of a backbone, if none is named: the default one if it is trained for it, else one without training.

    backbone: its name. source: the folder of a trained editor, or of a calibration.
    """
    return DEFAULT_EDITOR if has_trained_editor(DEFAULT_TRAINED_EDITOR, backbone, source) else UNTRAINED_EDITOR


def trained_editor_class(name: str) -> type[TrainedEditor]:
    """The editor of this name. Raises `ConfigError` if it has nothing to train, `NotFoundError` if there is none."""
    kind = editor_class(name)
    if not issubclass(kind, TrainedEditor):
        trained = ", ".join(_names_of(TrainedEditor))
        raise ConfigError(f"The editor {name!r} has nothing to train. Give one of {trained}.")
    return kind


def pretrained_editor_class(name: str) -> type[PretrainedEditor]:
    """The editor of this name. Raises `ConfigError` if it has no files to share, `NotFoundError` if there is none."""
    kind = editor_class(name)
    if not issubclass(kind, PretrainedEditor):
        shared = ", ".join(_names_of(PretrainedEditor))
        raise ConfigError(f"The editor {name!r} has no files to push. Give one of {shared}.")
    return kind


def _names_of(base: type[Editor]) -> tuple[str, ...]:
    """Names of the installed editors of this kind, without those that cannot be imported."""

    def is_one(name: str) -> bool:
        try:
            return issubclass(editor_class(name), base)
        except ExtensionError:
            return False

    return tuple(name for name in editor_names() if is_one(name))
