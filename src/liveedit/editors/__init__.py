"""Editors by name. Built-in ones and those of other packages are found through the same entry points."""

from __future__ import annotations

from importlib import metadata

from ..errors import ConfigError, NotFoundError
from .base import Editor, EditRecord, ExpertEditor
from .trained import TrainedEditor

ENTRY_POINTS = "liveedit.editors"

__all__ = [
    "EditRecord",
    "Editor",
    "ExpertEditor",
    "TrainedEditor",
    "editor_class",
    "editor_names",
    "expert_editor_names",
    "trained_editor_class",
]


def editor_names() -> tuple[str, ...]:
    """Names of all installed editors."""
    return tuple(sorted({point.name for point in metadata.entry_points(group=ENTRY_POINTS)}))


def expert_editor_names() -> tuple[str, ...]:
    """Names of the installed editors that make one expert per edit."""
    return tuple(name for name in editor_names() if issubclass(editor_class(name), ExpertEditor))


def editor_class(name: str) -> type[Editor]:
    """The editor of this name. Raises `NotFoundError`."""
    for point in metadata.entry_points(group=ENTRY_POINTS):
        if point.name == name:
            return point.load()
    raise NotFoundError(f"There is no editor {name!r}. Installed are: {', '.join(editor_names())}.")


def trained_editor_class(name: str) -> type[TrainedEditor]:
    """The editor of this name. Raises `ConfigError` if it has nothing to train, `NotFoundError` if there is none."""
    kind = editor_class(name)
    if not issubclass(kind, TrainedEditor):
        trained = [other for other in editor_names() if issubclass(editor_class(other), TrainedEditor)]
        raise ConfigError(f"The editor {name!r} has nothing to train. Give one of {', '.join(trained)}.")
    return kind
