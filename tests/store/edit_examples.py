"""Small edits and experts, and the files that the tests of the store keep them in."""

from __future__ import annotations

from pathlib import Path

import torch

from liveedit.experts import LowRankExpert
from liveedit.store.store import EditStore, NewEdit

BACKBONE, EDITOR = "b" * 64, "e" * 64


def make_expert(seed: int = 0, rank: int = 2) -> LowRankExpert:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"u": (rank, 3), "v": (rank, 3), "visual_feature": (4,), "prompt_feature": (4,)}
    return LowRankExpert(**{name: torch.randn(shape, generator=generator) for name, shape in shapes.items()})


def make_edit(answer: str = "red") -> NewEdit:
    return NewEdit(prompt="What colour is the car?", answer=answer, editor="liveedit")


def bits(expert: LowRankExpert) -> dict[str, tuple[tuple[int, ...], bytes]]:
    """Shapes and bytes, which tell -0.0 from 0.0 where `torch.equal` does not."""
    return {name: (tuple(part.shape), part.numpy().tobytes()) for name, part in expert.tensors.items()}


def bound(location: Path | str, **options: float) -> EditStore:
    opened = EditStore(location, **options)
    opened.bind(BACKBONE, EDITOR, backbone="tiny-llava", editor="liveedit")
    return opened


def file_bytes(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}
