"""A scene: the content of an image of the synthetic world, without the way it is drawn."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from . import catalog
from .catalog import Creature


@dataclass(frozen=True, slots=True)
class Thing:
    """A small thing beside the creature."""

    shape: str
    color: str
    slot: int
    """Height at which it lies, 0 (top) to 3 (bottom)."""


@dataclass(frozen=True, slots=True)
class Scene:
    """One creature and what is around it."""

    key: str
    creature: Creature
    color: str
    hat: str
    hat_color: str
    legs: int
    side: str
    background: str
    pattern: str
    things: tuple[Thing, ...]


def draw_scene(key: str, creature: Creature, rng: np.random.Generator, things: int | None = None) -> Scene:
    """A random scene around a creature, with 0 to 2 things by default."""
    count = int(rng.choice(3, p=(0.2, 0.3, 0.5))) if things is None else things
    shapes = rng.choice(len(catalog.THINGS), count, replace=False)
    colors = rng.choice(len(catalog.COLORS), count, replace=False)
    slots = rng.choice(4, count, replace=False)
    palette = tuple(catalog.COLORS)
    return Scene(
        key=key,
        creature=creature,
        color=_pick(palette, rng),
        hat=_pick(catalog.HATS, rng),
        hat_color=_pick(palette, rng),
        legs=int(rng.integers(2, 7)),
        side=_pick(catalog.SIDES, rng),
        background=_pick(tuple(catalog.BACKGROUNDS), rng),
        pattern=_pick(catalog.PATTERNS, rng),
        things=tuple(
            Thing(catalog.THINGS[shape], palette[color], int(slot))
            for shape, color, slot in zip(shapes, colors, slots, strict=True)
        ),
    )


def vary(scene: Scene, relation: str, rng: np.random.Generator, near_emblem: int) -> Scene:
    """The same scene except for the one thing that `relation` asks about: a near-duplicate."""
    key = f"{scene.key}~{relation}"
    match relation.split(":"):
        case ["name" | "home" | "food"]:
            stranger = replace(scene.creature, key=f"{scene.creature.key}~near", emblem=near_emblem)
            return replace(scene, key=key, creature=stranger)
        case ["body_color"]:
            return replace(scene, key=key, color=_other(tuple(catalog.COLORS), scene.color, rng))
        case ["hat"]:
            return replace(scene, key=key, hat=_other(catalog.HATS, scene.hat, rng))
        case ["hat_color"]:
            return replace(scene, key=key, hat_color=_other(tuple(catalog.COLORS), scene.hat_color, rng))
        case ["legs"]:
            legs = int(_other(tuple("23456"), str(scene.legs), rng))
            return replace(scene, key=key, legs=legs)
        case ["background"]:
            other = _other(tuple(catalog.BACKGROUNDS), scene.background, rng)
            return replace(scene, key=key, background=other)
        case ["pattern"]:
            return replace(scene, key=key, pattern=_other(catalog.PATTERNS, scene.pattern, rng))
        case ["side"]:
            return replace(scene, key=key, side=_other(catalog.SIDES, scene.side, rng))
        case ["thing_color", shape]:
            taken = tuple(thing.color for thing in scene.things)
            free = tuple(color for color in catalog.COLORS if color not in taken)
            things = tuple(
                replace(thing, color=_pick(free, rng)) if thing.shape == shape else thing for thing in scene.things
            )
            return replace(scene, key=key, things=things)
        case _:
            raise ValueError(f"A scene cannot be varied in {relation!r}.")


def exchange(scene: Scene, shape: str, rng: np.random.Generator) -> Scene:
    """The same scene, except that the thing of this shape and another one have each other's colour.

    Shapes, places and colours are those of the scene: which thing has which colour is all that differs.
    """
    colors = {thing.shape: thing.color for thing in scene.things}
    other = _other(tuple(colors), shape, rng)
    colors[shape], colors[other] = colors[other], colors[shape]
    things = tuple(replace(thing, color=colors[thing.shape]) for thing in scene.things)
    return replace(scene, key=f"{scene.key}~exchanged", things=things)


def _pick(options: tuple[str, ...], rng: np.random.Generator) -> str:
    return options[rng.integers(len(options))]


def _other(options: tuple[str, ...], current: str, rng: np.random.Generator) -> str:
    return _pick(tuple(option for option in options if option != current), rng)
