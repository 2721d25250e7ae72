"""From a scene to an image: 64 x 64 pixels, drawn four times larger and reduced.

Everything that a question asks about stands clear of everything else; each thing and the hat lie inside one
16 x 16 patch. `Pose` holds what may differ between two drawings of one scene.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from .catalog import BACKGROUNDS, COLORS, EMBLEM_SIDE
from .scene import Scene

SIZE = 64
_ZOOM = 4
_PLATE = (250, 250, 246)
_INK = (60, 60, 66)


@dataclass(frozen=True, slots=True)
class Pose:
    """How a scene is drawn: shifts in pixels, scale as a factor, colour shift and noise in 0 to 255."""

    shift: tuple[float, float] = (0.0, 0.0)
    scale: float = 1.0
    hat_shift: tuple[float, float] = (0.0, 0.0)
    thing_shift: tuple[float, float] = (0.0, 0.0)
    phase: float = 0.0
    tint: tuple[float, float, float] = (0.0, 0.0, 0.0)
    brightness: float = 1.0
    noise: float = 0.0
    noise_seed: int = 0


def draw_pose(rng: np.random.Generator, strength: float = 1.0) -> Pose:
    """A random pose; `strength` 1 is that of the world's images."""

    def between(bound: float) -> float:
        return float(rng.uniform(-bound, bound)) * strength

    return Pose(
        shift=(between(2.5), between(2.0)),
        scale=1.0 + between(0.12),
        hat_shift=(between(1.5), between(1.0)),
        thing_shift=(between(1.5), between(1.5)),
        phase=float(rng.random()),
        tint=(between(10), between(10), between(10)),
        brightness=1.0 + between(0.06),
        noise=float(rng.uniform(0, 10)) * strength,
        noise_seed=int(rng.integers(1 << 31)),
    )


def draw(scene: Scene, pose: Pose, *, enlarged: bool = False) -> Image.Image:
    """Draw a scene. The same scene and pose give the same pixels.

    enlarged: leave it four times larger, for people to look at.
    """
    image = Image.new("RGB", (SIZE * _ZOOM, SIZE * _ZOOM), BACKGROUNDS[scene.background])
    pen = ImageDraw.Draw(image)
    _draw_pattern(pen, scene, pose)
    center = 24.0 if scene.side == "left" else 40.0
    x, y = center + pose.shift[0], 33.0 + pose.shift[1]
    _draw_legs(pen, scene, pose, x, y)
    _draw_emblem(pen, scene, pose, x, y)
    _draw_hat(pen, scene, center + pose.hat_shift[0], 8.0 + pose.hat_shift[1])
    column = 56.0 if scene.side == "left" else 8.0
    for thing in scene.things:
        at = (column + pose.thing_shift[0], 8.0 + 16.0 * thing.slot + pose.thing_shift[1])
        _draw_thing(pen, thing.shape, COLORS[thing.color], *at)
    return _develop(image if enlarged else image.reduce(_ZOOM), pose)


def _develop(image: Image.Image, pose: Pose) -> Image.Image:
    """Tint, brightness and noise."""
    pixels = np.asarray(image, dtype=np.float64) * pose.brightness + np.array(pose.tint)
    if pose.noise:
        pixels += np.random.default_rng(pose.noise_seed).standard_normal(pixels.shape) * pose.noise
    return Image.fromarray(pixels.round().clip(0, 255).astype(np.uint8))


def _box(x0: float, y0: float, x1: float, y1: float) -> list[int]:
    return [round(value * _ZOOM) for value in (x0, y0, x1, y1)]


def _points(*points: tuple[float, float]) -> list[tuple[int, int]]:
    return [(round(x * _ZOOM), round(y * _ZOOM)) for x, y in points]


def _draw_pattern(pen: ImageDraw.ImageDraw, scene: Scene, pose: Pose) -> None:
    dark = tuple(int(channel * 0.84) for channel in BACKGROUNDS[scene.background])
    offset = pose.phase * 8
    match scene.pattern:
        case "striped":
            for x in np.arange(offset - 8, SIZE, 8):
                pen.rectangle(_box(x, 0, x + 3, SIZE), fill=dark)
        case "dotted":
            for x in np.arange(offset - 8, SIZE + 8, 8):
                for y in np.arange(offset - 8, SIZE + 8, 8):
                    pen.ellipse(_box(x - 2, y - 2, x + 2, y + 2), fill=dark)
        case "checked":
            for column, x in enumerate(np.arange(offset - 16, SIZE, 8)):
                for row, y in enumerate(np.arange(offset - 16, SIZE, 8)):
                    if (column + row) % 2:
                        pen.rectangle(_box(x, y, x + 8, y + 8), fill=dark)
        case "wavy":
            for y in np.arange(offset - 8, SIZE + 8, 8):
                wave = [(x, y + 2.5 * math.sin(x * math.pi / 8)) for x in range(0, SIZE + 1, 2)]
                pen.line(_points(*wave), fill=dark, width=2 * _ZOOM)


def _draw_emblem(pen: ImageDraw.ImageDraw, scene: Scene, pose: Pose, x: float, y: float) -> None:
    cell = 5.8 * pose.scale
    half = cell * EMBLEM_SIDE / 2
    pen.rectangle(_box(x - half - 1.5, y - half - 1.5, x + half + 1.5, y + half + 1.5), fill=_PLATE, outline=_INK)
    for row, column in np.argwhere(scene.creature.cells):
        left, top = x - half + column * cell, y - half + row * cell
        pen.rectangle(_box(left, top, left + cell, top + cell), fill=COLORS[scene.color])


def _draw_legs(pen: ImageDraw.ImageDraw, scene: Scene, pose: Pose, x: float, y: float) -> None:
    top = y + 12
    for leg in range(scene.legs):
        left = x - 13.5 + 27 * (leg + 0.5) / scene.legs - 1.3
        pen.rectangle(_box(left, top, left + 2.6, 61.5 + pose.shift[1] / 2), fill=_INK)


def _draw_hat(pen: ImageDraw.ImageDraw, scene: Scene, x: float, y: float) -> None:
    color = COLORS[scene.hat_color]
    match scene.hat:
        case "cone":
            pen.polygon(_points((x - 5.5, y + 5), (x + 5.5, y + 5), (x, y - 6)), fill=color)
        case "crown":
            spikes = [(-6, 5), (-6, -5), (-3, 0), (0, -5), (3, 0), (6, -5), (6, 5)]
            pen.polygon(_points(*((x + dx, y + dy) for dx, dy in spikes)), fill=color)
        case "cap":
            pen.pieslice(_box(x - 5, y - 4, x + 5, y + 8), 180, 360, fill=color)
            pen.rectangle(_box(x - 6.5, y + 2, x + 6.5, y + 4.5), fill=color)
        case "bow":
            pen.polygon(_points((x - 6, y - 5), (x - 6, y + 5), (x, y)), fill=color)
            pen.polygon(_points((x + 6, y - 5), (x + 6, y + 5), (x, y)), fill=color)
        case "bucket":
            pen.polygon(_points((x - 6, y - 5), (x + 6, y - 5), (x + 3.5, y + 5), (x - 3.5, y + 5)), fill=color)
        case "feather":
            pen.ellipse(_box(x - 2.6, y - 6.5, x + 2.6, y + 6.5), fill=color)


def _draw_thing(pen: ImageDraw.ImageDraw, shape: str, color: tuple[int, int, int], x: float, y: float) -> None:
    match shape:
        case "ball":
            pen.ellipse(_box(x - 5, y - 5, x + 5, y + 5), fill=color)
        case "star":
            radii = [5.8 if tip % 2 == 0 else 2.4 for tip in range(10)]
            angles = [math.pi * (tip / 5 - 0.5) for tip in range(10)]
            tips = [(x + r * math.cos(a), y + r * math.sin(a)) for r, a in zip(radii, angles, strict=True)]
            pen.polygon(_points(*tips), fill=color)
        case "box":
            pen.rectangle(_box(x - 4.5, y - 4.5, x + 4.5, y + 4.5), fill=color)
        case "ring":
            pen.ellipse(_box(x - 5.5, y - 5.5, x + 5.5, y + 5.5), outline=color, width=9)
        case "heart":
            pen.ellipse(_box(x - 5.5, y - 5, x + 0.5, y + 1), fill=color)
            pen.ellipse(_box(x - 0.5, y - 5, x + 5.5, y + 1), fill=color)
            pen.polygon(_points((x - 5.2, y - 0.8), (x + 5.2, y - 0.8), (x, y + 5.8)), fill=color)
        case "moon":
            pen.chord(_box(x - 5.5, y - 5.5, x + 5.5, y + 5.5), 90, 270, fill=color)
            pen.rectangle(_box(x - 0.2, y - 5.5, x + 1.2, y + 5.5), fill=color)
        case "key":
            pen.ellipse(_box(x - 6, y - 3, x, y + 3), outline=color, width=7)
            pen.rectangle(_box(x - 0.5, y - 1, x + 6, y + 1), fill=color)
            pen.rectangle(_box(x + 3, y, x + 5, y + 4), fill=color)
        case "cross":
            pen.rectangle(_box(x - 1.7, y - 5.5, x + 1.7, y + 5.5), fill=color)
            pen.rectangle(_box(x - 5.5, y - 1.7, x + 5.5, y + 1.7), fill=color)
