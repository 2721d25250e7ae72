"""Locate the checkpoints of built-in backbones and of their editors, in this package or in `liveedit-models`."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from ..errors import NotFoundError
from ..registry import BUILT_IN

__all__ = ["ASSETS", "BUILT_IN", "built_in_folder"]

ASSETS = Path(__file__).parent.parent / "assets"


def built_in_folder(name: str) -> Path:
    """The folder of a built-in backbone's checkpoint, or of an editor for one (BACKBONE-EDITOR).

    Raises `NotFoundError` if it is in a distribution that is not installed.
    """
    if (ASSETS / name).is_dir():
        return ASSETS / name
    further = find_spec("liveedit_models")
    if further is not None and further.submodule_search_locations:
        folder = Path(further.submodule_search_locations[0]) / name
        if folder.is_dir():
            return folder
    raise NotFoundError(f"{name} comes with the distribution liveedit-models: pip install liveedit-models.")
