"""Extensions by name: editors, backbone families, vision towers and dataset readers, found by entry points.

The built-in ones are registered in this project's `pyproject.toml`, those of other packages in theirs, in the same way:

    [project.entry-points."liveedit.editors"]
    my-editor = "my_package:MyEditor"           # name of the editor = an `Editor` subclass

    [project.entry-points."liveedit.backbones"]
    my_model = "my_package:MyBackbone"          # model_type of config.json = a `Backbone` subclass

    [project.entry-points."liveedit.towers"]
    my_tower = "my_package:MyTower"             # model_type of a vision tower = the class that transformers registers

    [project.entry-points."liveedit.datasets"]
    my-format = "my_package:MY_FORMAT"          # name of the format = a `Reader`

A second name for the same object is a second line. Listing names imports nothing; an extension is imported when it is
used, so one that is broken does not disturb the others.
"""

from __future__ import annotations

from difflib import get_close_matches
from importlib import metadata
from pathlib import Path
from typing import Any, Final

from .errors import BackboneError, ExtensionError, NotFoundError

EDITORS: Final = "liveedit.editors"
BACKBONES: Final = "liveedit.backbones"
TOWERS: Final = "liveedit.towers"
DATASETS: Final = "liveedit.datasets"

BUILT_IN: Final = ("tiny-llava", "tiny-blip2", "tiny-minigpt4", "tiny-llama-lm", "tiny-mistral-lm")
"""Built-in backbones: the first comes with this package, the others with the distribution `liveedit-models`."""

MADE_HERE: Final = ("smol-llava",)
"""Backbones that `liveedit train-smol-llava` makes on this machine, and keeps in the cache folder."""

DEFAULT_EDITOR: Final = "liveedit-refine"
"""The editor of `EditedModel` and of the commands, for a backbone that it was trained for."""
UNTRAINED_EDITOR: Final = "fitted-experts"
"""The editor of `EditedModel` and of the commands for any other backbone: it needs no training."""
DEFAULT_TRAINED_EDITOR: Final = "liveedit"
"""The editor that `liveedit train` trains, unless another is given."""

_NOUNS: Final = {EDITORS: "editor", BACKBONES: "backbone family", TOWERS: "vision tower", DATASETS: "data format"}


def names(group: str) -> tuple[str, ...]:
    """Names of all installed extensions of a group, sorted. Imports none of them."""
    return tuple(sorted(metadata.entry_points(group=group).names))


def load(group: str, name: str) -> Any:
    """Import the extension of this name.

    Raises `NotFoundError` if there is none, and `ExtensionError` if two packages register the name for different
    objects, or if the import fails.
    """
    noun = _NOUNS.get(group, "extension")
    points = {point.value: point for point in metadata.entry_points(group=group, name=name)}
    if not points:
        raise NotFoundError(f"There is no {noun} {name!r}.{_suggestion(group, name)}")
    if len(points) > 1:
        found = " and ".join(sorted(_origin(point) for point in points.values()))
        raise ExtensionError(f"The {noun} {name!r} is registered by {found}. Uninstall all but one of these packages.")
    (point,) = points.values()
    try:
        return point.load()
    except Exception as error:
        reason = " ".join(str(error).split())
        raise ExtensionError(
            f"The {noun} {name!r} of {_origin(point)} cannot be imported ({type(error).__name__}: {reason}). "
            "Repair or uninstall this package."
        ) from error


def near_backbones(name: str) -> str:
    """A question that names the built-in backbones nearest to a wrong name, or ""."""
    close = get_close_matches(name.rsplit("/", 1)[-1].lower(), BUILT_IN + MADE_HERE, n=2, cutoff=0.6)
    return f" Did you mean {' or '.join(close)}?" if close else ""


def check_backbone_name(name: str) -> None:
    """Reject a name that is no folder and no name of a hub, but nearly that of a built-in backbone. Imports nothing."""
    if name in BUILT_IN + MADE_HERE or "/" in name or Path(name).exists():
        return
    if close := near_backbones(name):
        raise BackboneError(f"There is no backbone {name!r}.{close}")


def wrong_kind(group: str, name: str, found: object, expected: str) -> ExtensionError:
    """The error for an entry point that leads to something of the wrong kind."""
    return ExtensionError(
        f"The {_NOUNS.get(group, 'extension')} {name!r} is registered as {found!r}. Register {expected}."
    )


def _suggestion(group: str, name: str) -> str:
    installed = names(group)
    close = get_close_matches(name, installed, n=1)
    return f"{f' Did you mean {close[0]}?' if close else ''} Installed are: {', '.join(installed) or 'none'}."


def _origin(point: metadata.EntryPoint) -> str:
    package = point.dist.name if point.dist is not None else "an unknown package"
    return f"{package} ({point.value})"
