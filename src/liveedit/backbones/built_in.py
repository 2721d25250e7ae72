"""Locate the checkpoints of built-in backbones and of their editors, in this package or in `liveedit-models`."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from ..errors import NotFoundError
from ..files import cache_folder
from ..registry import BUILT_IN, MADE_HERE

__all__ = ["ASSETS", "BUILT_IN", "MADE_HERE", "built_in_folder", "made_here"]

ASSETS = Path(__file__).parent.parent / "assets"


def made_here(name: str) -> Path:
    """The folder in the cache in which one of `MADE_HERE` is trained; the finished model lies in its folder `model`."""
    return cache_folder() / "backbones" / name


def built_in_folder(name: str) -> Path:
    """The folder of a built-in backbone's checkpoint, or of an editor for one (BACKBONE-EDITOR).

    Raises `NotFoundError` if it is in a distribution that is not installed, or is still to be made.
    """
    if (ASSETS / name).is_dir():
        return ASSETS / name
    if name in MADE_HERE:
        return _finished(name)
    further = find_spec("liveedit_models")
    if further is not None and further.submodule_search_locations:
        folder = Path(further.submodule_search_locations[0]) / name
        if folder.is_dir():
            return folder
    raise NotFoundError(f"{name} comes with the distribution liveedit-models: pip install liveedit-models.")


def _finished(name: str) -> Path:
    folder = made_here(name) / "model"
    if not (folder / "config.json").is_file():
        raise NotFoundError(
            f"{name} is made on this machine, from photographs of yours: liveedit train-{name} --photos FOLDER."
        )
    return folder
