"""Editors by name: the built-in ones and those of other packages, found by the same entry points."""

from __future__ import annotations

from importlib import metadata

from ..errors import NotFoundError
from .base import SMALLEST_SHARE, Editor, EditRecord, Fired, taking_part

ENTRY_POINTS = "liveedit.editors"

__all__ = ["SMALLEST_SHARE", "EditRecord", "Editor", "Fired", "editor_class", "editor_names", "taking_part"]


def editor_names() -> tuple[str, ...]:
    """Names of every editor that is installed."""
    return tuple(sorted({point.name for point in metadata.entry_points(group=ENTRY_POINTS)}))


def editor_class(name: str) -> type[Editor]:
    """The editor of this name. Raises `NotFoundError`, naming those there are."""
    for point in metadata.entry_points(group=ENTRY_POINTS):
        if point.name == name:
            return point.load()
    raise NotFoundError(f"There is no editor {name!r}. Installed are: {', '.join(editor_names())}.")
