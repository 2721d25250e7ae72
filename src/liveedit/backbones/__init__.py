"""Frozen models by name: built-in, a local path, or a hub name."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from ..errors import BackboneError
from .backbone import Backbone
from .inputs import Inputs

ASSETS = Path(__file__).parent.parent / "assets"
BUILT_IN = ("tiny-llava",)
"""Backbones that ship with the package."""

__all__ = ["BUILT_IN", "Backbone", "Inputs", "built_in_folder", "load_backbone"]


def built_in_folder(name: str) -> Path:
    """Where the checkpoint of a built-in backbone lies."""
    return ASSETS / name


def load_backbone(
    name: str | Path, dtype: torch.dtype | None = None, device: str | torch.device | None = None
) -> Backbone:
    """Load a vision-language model for editing.

    `name` is a built-in name, a local folder, or a hub name; all take transformers' ordinary path. `dtype`
    defaults to float32 on CPUs and bfloat16 elsewhere. Raises `BackboneError` where nothing can be loaded.
    """
    target = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    precision = dtype or (torch.float32 if target.type == "cpu" else torch.bfloat16)
    source = built_in_folder(str(name)) if str(name) in BUILT_IN else name
    try:
        processor = AutoProcessor.from_pretrained(source)
        model = AutoModelForImageTextToText.from_pretrained(source, dtype=precision)
    except (OSError, ValueError, KeyError) as error:
        raise BackboneError(
            f"The backbone {str(name)!r} could not be loaded: {_first_line(error)} "
            f"Give a built-in name ({', '.join(BUILT_IN)}), a folder with a transformers checkpoint, or a hub name."
        ) from error
    return Backbone(str(name), cast(Any, model).to(target), processor)


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0].rstrip(".") + "."
