"""Small edits and experts, and the stores that the tests keep them in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from safetensors.numpy import load, save

from liveedit.store.store import EditStore, NewEdit

BACKBONE, EDITOR = "b" * 64, "e" * 64


def make_expert(seed: int = 0, rank: int = 2) -> bytes:
    generator = np.random.default_rng(seed)
    shapes = {"u": (rank, 3), "v": (rank, 3), "visual_feature": (4,), "prompt_feature": (4,)}
    return save({name: generator.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()})


def part_bytes(expert: bytes, name: str = "u") -> bytes:
    """The numbers of one part of an expert, as they lie in it."""
    return load(expert)[name].tobytes()


def make_edit(answer: str = "red") -> NewEdit:
    return NewEdit(prompt="What colour is the car?", answer=answer, editor="liveedit")


def bound(location: Path | str, **options: float) -> EditStore:
    opened = EditStore(location, **options)
    opened.bind(BACKBONE, EDITOR, backbone="tiny-llava", editor="liveedit")
    return opened


def file_bytes(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}
