"""Small drawn images that stand in folders of classes, as photographs do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

FolderMaker = Callable[..., Path]

COLORS = {
    "Leopards": (200, 150, 60),
    "wild_cat": (205, 145, 65),
    "crocodile": (60, 110, 60),
    "crocodile_head": (65, 115, 55),
    "ant": (40, 30, 30),
    "tick": (50, 30, 35),
    "grand_piano": (20, 20, 90),
    "umbrella": (30, 20, 100),
    "scissors": (170, 170, 180),
    "garden_gnome": (200, 60, 60),
    "pizza": (220, 90, 70),
    "garfield": (150, 30, 200),
}
"""Classes with the mean colours of their photographs; all but the gnome are known classes."""

PHOTOS = 16
"""Photographs of each of these classes: 9 for pretraining, 3 for editors, 4 for evaluation."""


def draw_photo(file: Path, color: tuple[int, int, int], seed: int) -> None:
    """A 24 x 24 image of this colour with noise; every seed gives another one."""
    noise = np.random.default_rng(seed).normal(scale=12, size=(24, 24, 3))
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.clip(np.array(color) + noise, 0, 255).astype(np.uint8)).save(file)


def draw_classes(folder: Path) -> Path:
    """`PHOTOS` photographs of each class of `COLORS`."""
    for place, (key, color) in enumerate(COLORS.items()):
        for index in range(PHOTOS):
            draw_photo(folder / key / f"image_{index:04d}.png", color, 1000 * place + index)
    return folder
