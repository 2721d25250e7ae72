"""Editors by name: the built-in ones and those of other packages, found by the same entry points."""

from __future__ import annotations

from importlib import metadata

from ..errors import NotFoundError
from .base import Editor, EditRecord, ExpertEditor

ENTRY_POINTS = "liveedit.editors"

__all__ = ["EditRecord", "Editor", "ExpertEditor", "editor_class", "editor_names", "expert_editor_names"]


def editor_names() -> tuple[str, ...]:
    """Names of every editor that is installed."""
    return tuple(sorted({point.name for point in metadata.entry_points(group=ENTRY_POINTS)}))


def expert_editor_names() -> tuple[str, ...]:
    """Names of the installed editors that make one expert per edit."""
    return tuple(name for name in editor_names() if issubclass(editor_class(name), ExpertEditor))


def editor_class(name: str) -> type[Editor]:
    """The editor of this name. Raises `NotFoundError`, naming those there are."""
    for point in metadata.entry_points(group=ENTRY_POINTS):
        if point.name == name:
            return point.load()
    raise NotFoundError(f"There is no editor {name!r}. Installed are: {', '.join(editor_names())}.")
