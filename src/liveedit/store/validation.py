"""Checks of what is about to be stored: the fields of an edit, texts, and the bytes of an expert."""

from __future__ import annotations

import math
import re
from pathlib import PureWindowsPath
from typing import Final

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load

from ..errors import InvalidInputError
from .evidence import evidence_to_json
from .records import NewEdit

_SHA256: Final = re.compile(r"[0-9a-f]{64}")


def check_edit(edit: NewEdit) -> None:
    """Raise `InvalidInputError` if a field cannot be stored."""
    for name, text in vars(edit).items():
        if isinstance(text, str):
            check_text(f"An edit's {name}", text)
    for name in ("prompt", "answer", "editor"):
        if not getattr(edit, name):
            raise InvalidInputError(f"An edit's {name} is empty. Give some text.")
    if not (math.isfinite(edit.milliseconds) and edit.milliseconds >= 0):
        raise InvalidInputError(f"An edit took {edit.milliseconds} milliseconds. Give a number from 0 up.")
    if edit.evidence is not None:
        evidence_to_json(edit.evidence)
    if edit.refine_steps < 0:
        raise InvalidInputError(f"An edit took {edit.refine_steps} refine steps. Give a number from 0 up.")
    if edit.image_sha256 is not None and not _SHA256.fullmatch(edit.image_sha256):
        raise InvalidInputError(f"The image's digest is {edit.image_sha256!r}. Give 64 lower-case hexadecimal digits.")
    # A Windows path is split at both kinds of slash.
    if edit.image_name is not None and PureWindowsPath(edit.image_name).name != edit.image_name:
        raise InvalidInputError(
            f"The image's name is {edit.image_name!r}. Give the file name only: folders are not stored."
        )


def check_text(what: str, text: str) -> None:
    """Raise `InvalidInputError` for text that is not valid Unicode."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InvalidInputError(
            f"{what} holds half of a surrogate pair at position {error.start}: it is not valid "
            "Unicode. Give text that can be written as UTF-8."
        ) from error


def check_expert(data: bytes) -> None:
    """Raise `InvalidInputError` unless these bytes are an expert."""
    if (problem := expert_problem(data)) is not None:
        raise InvalidInputError(
            f"The expert of {len(data)} bytes cannot be stored: {problem}. Make the bytes with `expert_to_bytes`."
        )


def expert_problem(data: bytes) -> str | None:
    """Why these bytes are no expert (safetensors with one or more finite float32 tensors), or None if they are one."""
    try:
        parts = load(data)
    except (SafetensorError, KeyError) as error:  # KeyError: a type that numpy does not have.
        return f"it is not safetensors that can be read: {error}"
    if not parts:
        return "it has no tensors"
    for name, part in parts.items():
        if part.dtype != np.float32:
            return f"its {name} is {part.dtype}, not float32"
        if not np.isfinite(part).all():
            return f"its {name} holds NaN or infinity"
    return None


def expert_store_bytes(data: bytes) -> int:
    """Size of the tensors of a stored expert in bytes, without the safetensors header."""
    return len(data) - 8 - int.from_bytes(data[:8], "little")
