"""Editors by name: the built-in ones and those of other packages, registered as `liveedit.editors` entry points."""

from __future__ import annotations

from .. import registry
from ..errors import ExtensionError
from ..registry import EDITORS
from .base import Editor, EditRecord, ExpertEditor

__all__ = ["EditRecord", "Editor", "ExpertEditor", "editor_class", "editor_names", "expert_editor_names"]


def editor_names() -> tuple[str, ...]:
    """Names of all installed editors."""
    return registry.names(EDITORS)


def expert_editor_names() -> tuple[str, ...]:
    """Names of the installed editors that make one expert per edit. Leaves out those that cannot be imported."""
    return tuple(name for name in editor_names() if _makes_experts(name))


def editor_class(name: str) -> type[Editor]:
    """The editor of this name. Raises `NotFoundError` with the installed names, `ExtensionError` if it is broken."""
    found = registry.load(EDITORS, name)
    if not isinstance(found, type) or not issubclass(found, Editor):
        raise registry.wrong_kind(EDITORS, name, found, "a subclass of liveedit.editors.Editor")
    return found


def _makes_experts(name: str) -> bool:
    try:
        return issubclass(editor_class(name), ExpertEditor)
    except ExtensionError:
        return False
