"""Images for a calibration where none are given: discs and rectangles of random colors."""

from __future__ import annotations

import random
from typing import Final

from PIL import Image, ImageDraw

_SIDE: Final = 224


def drawn_images(count: int) -> list[Image.Image]:
    """The same images every time, 224 x 224 pixels each."""
    return [_drawn(random.Random(number)) for number in range(count)]


def _drawn(chooser: random.Random) -> Image.Image:
    image = Image.new("RGB", (_SIDE, _SIDE), _color(chooser))
    pen = ImageDraw.Draw(image)
    for _ in range(chooser.randrange(1, 7)):
        x, y, size = chooser.randrange(_SIDE), chooser.randrange(_SIDE), chooser.randrange(12, 110)
        box = (x - size // 2, y - size // 2, x + size // 2, y + size // 2)
        draw = chooser.choice((pen.ellipse, pen.rectangle))
        draw(box, fill=_color(chooser))
    return image


def _color(chooser: random.Random) -> tuple[int, int, int]:
    return chooser.randrange(256), chooser.randrange(256), chooser.randrange(256)
