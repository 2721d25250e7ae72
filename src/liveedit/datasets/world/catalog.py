"""The contents of the synthetic world: colours, shapes, creatures with names and facts, countries.

The catalogue is fixed for good: it is what a built-in backbone is taught. A seed chooses images,
questions and *unknown* creatures, never the catalogue.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

CATALOG_SEED = 20_25
KNOWN_CREATURES = 300
HELD_OUT_CREATURES = 60
"""Known creatures that no editor is trained on: the last ones of the catalogue."""

EMBLEM_SIDE = 5
EMBLEM_CELLS = EMBLEM_SIDE**2
EMBLEM_DISTANCE = 5
"""The emblems of any two creatures differ in at least this many of the 25 cells."""

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (214, 39, 40),
    "orange": (255, 140, 20),
    "yellow": (250, 215, 30),
    "green": (44, 150, 50),
    "teal": (20, 185, 180),
    "blue": (40, 80, 205),
    "purple": (125, 45, 165),
    "pink": (250, 110, 185),
    "brown": (120, 72, 30),
    "black": (25, 25, 30),
}
"""Colours of bodies, hats and things."""

BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "cream": (255, 240, 200),
    "mint": (190, 242, 205),
    "sky": (185, 220, 255),
    "rose": (255, 205, 212),
    "lilac": (222, 205, 250),
    "silver": (212, 214, 218),
}
"""Background colours: other ones than `COLORS`, so that changed brightness cannot confuse them."""

PATTERNS = ("plain", "striped", "dotted", "checked", "wavy")
HATS = ("cone", "crown", "cap", "bow", "bucket", "feather")
THINGS = ("ball", "star", "box", "ring", "heart", "moon", "key", "cross")
SIDES = ("left", "right")
LEGS = ("two", "three", "four", "five", "six")

_FIRST = """
    Ba Be Bi Bo Bru Cla Cor Da De Dro Fa Fen Fli Ga Gle Gri Ha Hel Ja Jo Ka Kel Kru La Lim Lo Ma Mel Mo Na Ne Or
    Pa Plu Po Qui Ra Ri Sa Ske Spo Ta Tri Ul Va Vel Wi Xa Ye Zo
""".split()
_MIDDLE = """
    ba de fi go ka le mi no pa ri so ta vu we za lo ne tu
""".split()
_LAST = """
    bax bin bor cus dak del don dux fal fin fo gan gor gus kin kor lan lex lim lop mar min mok nak nel nix pim
    pon quil ras rik rol sha sil tan tek tis tor vak ven vin vox wick wyn xis yak zan zel zik zu
""".split()

_SINGLE_HOMES = """
    forest desert swamp cave meadow island volcano river lake tundra jungle valley canyon glacier prairie reef
    harbour attic cellar barn castle tower bridge tunnel garden orchard quarry lagoon steppe marsh dune cliff
    mill temple crater lighthouse
""".split()
HOMES = [
    *_SINGLE_HOMES,
    "coral bay",
    "old mine",
    "salt flat",
    "pine wood",
    "hay loft",
    "deep well",
    "ice cave",
    "tree house",
]
_SINGLE_FOODS = """
    apples berries carrots nuts seeds grass leaves fish honey mushrooms beetles worms roots cheese bread rice
    beans corn melons cherries plums figs olives pumpkins radishes onions clover moss snails shrimps oats barley
    lentils cabbage pears grapes
""".split()
FOODS = [
    *_SINGLE_FOODS,
    "sea weed",
    "sweet peas",
    "dry hay",
    "oak bark",
    "rose buds",
    "fresh cream",
    "lime jam",
    "wild mint",
]

HELD_OUT_HOMES = frozenset(HOMES[5::6])
HELD_OUT_FOODS = frozenset(FOODS[5::6])
"""Answers that are never a target in the training of editors."""


@dataclass(frozen=True, slots=True)
class Creature:
    """A creature: its emblem decides who it is; name, home and food are facts about it."""

    key: str
    emblem: int
    """25 bits, row by row from the top left."""
    name: str
    home: str
    food: str

    @property
    def cells(self) -> np.ndarray:
        """The emblem as booleans, shape (5, 5)."""
        bits = (self.emblem >> np.arange(EMBLEM_CELLS)) & 1
        return bits.astype(bool).reshape(EMBLEM_SIDE, EMBLEM_SIDE)


@dataclass(frozen=True, slots=True)
class Country:
    """A country, with its capital and its language: the world's text-only facts."""

    name: str
    capital: str
    language: str


def syllables() -> tuple[str, ...]:
    """Every syllable of names."""
    return (*_FIRST, *_MIDDLE, *_LAST)


def draw_name(rng: np.random.Generator) -> str:
    """A name of two or, one time in four, three syllables."""
    first, last = _FIRST[rng.integers(len(_FIRST))], _LAST[rng.integers(len(_LAST))]
    middle = _MIDDLE[rng.integers(len(_MIDDLE))] if rng.random() < 0.25 else ""
    return first + middle + last


def draw_long_name(rng: np.random.Generator) -> str:
    """Two or three names in a row: four to nine syllables, each of which is a token or more."""
    return " ".join(draw_name(rng) for _ in range(int(rng.integers(2, 4))))


class EmblemMint:
    """Draws emblems of which any two differ in at least `EMBLEM_DISTANCE` cells."""

    def __init__(self, taken: tuple[int, ...] = ()):
        self._taken = np.array(taken, dtype=np.uint32)

    def draw(self, rng: np.random.Generator) -> int:
        """A new emblem, far enough from all earlier ones; 8 to 17 of its 25 cells are filled."""
        while True:
            candidate = int(rng.integers(1 << EMBLEM_CELLS))
            if 8 <= candidate.bit_count() <= 17 and self._free(candidate):
                self._taken = np.append(self._taken, np.uint32(candidate))
                return candidate

    def near(self, emblem: int, rng: np.random.Generator) -> int:
        """An emblem at exactly `EMBLEM_DISTANCE` cells from this one: the nearest another creature can be."""
        while True:
            cells = rng.choice(EMBLEM_CELLS, EMBLEM_DISTANCE, replace=False)
            candidate = emblem ^ int(sum(1 << int(cell) for cell in cells))
            if 6 <= candidate.bit_count() <= 19:
                return candidate

    def _free(self, candidate: int) -> bool:
        distance = np.bitwise_count(self._taken ^ np.uint32(candidate))
        return not len(distance) or int(distance.min()) >= EMBLEM_DISTANCE


@cache
def known_creatures() -> tuple[Creature, ...]:
    """The creatures that every built-in backbone knows."""
    rng = np.random.default_rng(CATALOG_SEED)
    mint, names, creatures = EmblemMint(), set[str](), []
    while len(creatures) < KNOWN_CREATURES:
        name = draw_name(rng)
        if name in names:
            continue
        names.add(name)
        home, food = HOMES[rng.integers(len(HOMES))], FOODS[rng.integers(len(FOODS))]
        creatures.append(Creature(f"known-{len(creatures)}", mint.draw(rng), name, home, food))
    return tuple(creatures)


def training_creatures() -> tuple[Creature, ...]:
    """Known creatures that an editor may be trained on."""
    return known_creatures()[:-HELD_OUT_CREATURES]


def held_out_creatures() -> tuple[Creature, ...]:
    """Known creatures kept for measuring editors."""
    return known_creatures()[-HELD_OUT_CREATURES:]


@cache
def countries() -> tuple[Country, ...]:
    """Sixty countries with capitals and languages."""
    rng = np.random.default_rng(CATALOG_SEED + 1)
    stems, found = set[str](), []
    while len(found) < 60:
        stem = draw_name(rng)
        if stem in stems:
            continue
        stems.add(stem)
        found.append(Country(f"{stem}land", f"{draw_name(rng)}burg", f"{stem}ish"))
    return tuple(found)


def unknown_creature(index: int, mint: EmblemMint, rng: np.random.Generator) -> Creature:
    """A creature that pretraining never showed, with facts that only an edit can teach."""
    home, food = HOMES[rng.integers(len(HOMES))], FOODS[rng.integers(len(FOODS))]
    return Creature(f"unknown-{index}", mint.draw(rng), draw_name(rng), home, food)
