"""What a photograph looks like, read off its pixels: brightness, colour of the edge, colour or black and white."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np

from ...images import open_image

_SIDE: Final = 32
"""Photographs are reduced to this many pixels a side before they are described."""
_BRIGHT: Final = 128.0
"""A photograph whose mean luminance (0 to 255) is at least this is bright."""
_COLORED: Final = 12.0
"""A photograph with a tenth of its pixels this colourful, by the range of their channels (0 to 255), is in colour."""

EDGE_COLORS: Final[dict[str, tuple[int, int, int]]] = {
    "white": (245, 245, 245),
    "gray": (128, 128, 128),
    "black": (15, 15, 15),
    "red": (180, 40, 40),
    "yellow": (215, 190, 60),
    "green": (80, 125, 60),
    "blue": (70, 120, 190),
    "brown": (120, 85, 55),
}
"""The colours that an edge is called, by the nearest of these RGB values."""


def thumbnail(photo: Path, side: int = _SIDE) -> np.ndarray:
    """The photograph reduced to (side, side, 3) values of 0 to 255. Raises `ImageError` if it cannot be opened."""
    return np.asarray(open_image(photo).resize((side, side)), dtype=np.float64)


def answer_from_pixels(kind: str, photo: Path) -> str:
    """The answer to one of `IMAGE_KINDS`. Raises `ImageError` if the photograph cannot be opened."""
    pixels = thumbnail(photo)
    if kind == "brightness":
        return "bright" if (pixels @ (0.299, 0.587, 0.114)).mean() >= _BRIGHT else "dark"
    if kind == "coloring":
        return "color" if np.percentile(np.ptp(pixels, axis=-1), 90) >= _COLORED else "black and white"
    if kind == "background":
        edge = np.concatenate([pixels[:2], pixels[-2:], pixels[:, :2].swapaxes(0, 1), pixels[:, -2:].swapaxes(0, 1)])
        color = np.median(edge.reshape(-1, 3), axis=0)
        return min(EDGE_COLORS, key=lambda name: float(np.linalg.norm(color - EDGE_COLORS[name])))
    raise ValueError(f"{kind!r} is not asked about photographs themselves.")
