"""People and towns with names, and the facts about them that language models are taught.

The catalogue is fixed for good. A seed chooses edits and *unknown* subjects, never the catalogue.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Final, Literal, TypeVar

import numpy as np

Kind = Literal["person", "town"]
Item = TypeVar("Item")

CATALOG_SEED: Final = 20_26
KNOWN: Final[dict[Kind, int]] = {"person": 320, "town": 120}
"""Subjects whose facts every built-in language model knows."""
HELD_OUT: Final[dict[Kind, int]] = {"person": 120, "town": 45}
"""Known subjects that no editor is trained on: the last ones of the catalogue."""

RELATIONS: Final[dict[Kind, tuple[str, ...]]] = {
    "person": ("home", "trade", "food", "instrument", "pet", "teacher"),
    "town": ("ruler", "founder", "river", "goods", "year"),
}
"""The relations of a subject."""
NAME_RELATIONS: Final = frozenset({"teacher", "ruler", "founder"})
"""Relations whose answers are the names of people."""
YEARS: Final = (1100, 1900)
"""Towns were founded from the first of these years on, and before the second."""

_GIVEN = """
    Ada Alric Anton Astrid Bela Berta Bruno Carla Cecil Clara Conrad Dora Edgar Edith Elsa Emil Felix Flora Frida
    Georg Greta Hanna Hugo Ida Irma Ivo Jasper Jutta Karin Kaspar Lena Leo Lotte Magda Martha Max Nadia Nils Olga
    Oskar Paula Petra Rosa Rufus Selma Tilda Viktor Wanda
""".split()
_FIRST = """
    Bar Bel Bor Cal Cor Dal Dor Dun Fal Fen Gar Gil Hal Hol Jor Kel Kir Lan Lor Mal Mer Nor Orm Pel Quin Ros Sal
    Sel Tar Thorn Ul Val Wen Yar Zel
""".split()
_SURNAME_LAST = """
    bek cker dahl dis fer gard gren hart ing kas kov lin man mier nak nell quist rath rick sen ska stam strom tag
    ther vald vik wald wyn zer
""".split()
_TOWN_LAST = """
    beck bridge burn bury cliff dale fell field ford gate ham haven holm hurst ley mere minster moor mouth port
    stead stow thorpe ton wick worth
""".split()

TRADES: Final = (
    *"""
    baker barber brewer butcher carpenter clerk cobbler cook dyer farmer ferryman fisher gardener glazier hatter
    hunter judge locksmith mason miller miner nurse painter potter printer saddler sailor sculptor shepherd smith
    surgeon tailor tanner thatcher weaver
    """.split(),
    "bell founder",
    "book binder",
    "clock maker",
    "rope maker",
    "ship builder",
)
FOODS: Final = (
    *"""
    almonds apples bacon barley beans bread butter cabbage carrots cheese cherries chestnuts dumplings eggs figs
    garlic grapes ham herring honey lentils mushrooms mussels olives onions oysters pancakes peaches pears plums
    porridge pumpkin radishes rice salmon
    """.split(),
    "apple cake",
    "black bread",
    "goose liver",
    "pea soup",
    "sweet corn",
)
INSTRUMENTS: Final = (
    *"""
    accordion bagpipes banjo bassoon bugle cello clarinet cornet cymbals drum fiddle flute gong guitar harp horn
    lute lyre mandolin oboe organ piano recorder trombone trumpet tuba viola zither
    """.split(),
    "glass harp",
    "tin whistle",
)
ANIMALS: Final = (
    *"""
    badger beaver canary crow donkey duck falcon ferret fox frog gecko goat goose hamster hare hedgehog hen horse
    lizard magpie mouse otter owl parrot pigeon pony rabbit raven snake squirrel swan toad tortoise
    """.split(),
    "grey cat",
    "sheep dog",
    "wild boar",
)
GOODS: Final = (
    *"""
    amber barrels bells bricks brooms candles carpets chairs clocks coal copper gloves gunpowder hats ink iron ivory
    kettles knives lace lamps leather linen marble mirrors nails paper pearls pottery rope salt silk silver soap
    spoons swords tiles tobacco varnish wool
    """.split(),
    "blue glass",
    "church bells",
    "fur coats",
    "sail cloth",
)
RIVERS: Final = (
    *"""
    Aldra Arne Bura Cress Danna Elm Esker Farra Glim Hesse Isk Jarn Kolva Lagan Lune Mirra Nara Orle Pell Rhone
    Sarn Tove Ulm Vesk Wend Yarra
    """.split(),
    "Great Ouse",
    "Little Danna",
    "Old Tove",
    "White Elm",
)

_OPTIONS: dict[str, tuple[str, ...]] = {
    "trade": TRADES,
    "food": FOODS,
    "instrument": INSTRUMENTS,
    "pet": ANIMALS,
    "goods": GOODS,
    "river": RIVERS,
}
HELD_OUT_ANSWERS: Final = frozenset(option for options in _OPTIONS.values() for option in options[5::6])
"""Answers that are never a target in the training of editors."""


@dataclass(frozen=True, slots=True)
class Subject:
    """A person or a town, and the answer to each of its relations."""

    name: str
    kind: Kind
    answers: tuple[str, ...]
    """In the order of `RELATIONS[kind]`."""

    @property
    def relations(self) -> tuple[str, ...]:
        """Its relations."""
        return RELATIONS[self.kind]

    def answer(self, relation: str) -> str:
        """The answer to a relation."""
        return self.answers[self.relations.index(relation)]


def draw_name(kind: Kind, rng: np.random.Generator) -> str:
    """A name: "Ada Kelstrom" for a person, "Kelhaven" for a town."""
    if kind == "person":
        return f"{pick(_GIVEN, rng)} {pick(_FIRST, rng)}{pick(_SURNAME_LAST, rng)}"
    return pick(_FIRST, rng) + pick(_TOWN_LAST, rng)


def draw_answer(relation: str, rng: np.random.Generator, held_out: bool = True) -> str:
    """Any answer to a relation; without `held_out` none of `HELD_OUT_ANSWERS`.

    Names of people are those of the catalogue half of the time, and otherwise new; towns are those of the catalogue.
    """
    if relation == "year":
        return str(rng.integers(*YEARS))
    if relation == "home":
        return pick(_known_names("town"), rng)
    if relation in NAME_RELATIONS:
        return pick(_known_names("person"), rng) if rng.random() < 0.5 else draw_name("person", rng)
    return pick([option for option in _OPTIONS[relation] if held_out or option not in HELD_OUT_ANSWERS], rng)


def draw_subject(name: str, kind: Kind, rng: np.random.Generator, held_out: bool = True) -> Subject:
    """A subject of this name with facts of its own."""
    return Subject(name, kind, tuple(draw_answer(relation, rng, held_out) for relation in RELATIONS[kind]))


@cache
def known_subjects() -> tuple[Subject, ...]:
    """All people and towns that the built-in language models know: people first, then towns."""
    rng = np.random.default_rng([CATALOG_SEED, 1])
    return tuple(draw_subject(name, kind, rng) for kind in KNOWN for name in _known_names(kind))


def training_subjects() -> tuple[Subject, ...]:
    """Known subjects that an editor may be trained on."""
    return tuple(subject for subject in known_subjects() if subject.name not in _held_out_names())


def held_out_subjects() -> tuple[Subject, ...]:
    """Known subjects kept for measuring editors."""
    return tuple(subject for subject in known_subjects() if subject.name in _held_out_names())


def unknown_name(kind: Kind, taken: set[str], rng: np.random.Generator) -> str:
    """A name that is neither in the catalogue nor taken."""
    while True:
        name = draw_name(kind, rng)
        if name not in taken and name not in _known_names(kind):
            return name


def name_parts() -> tuple[str, ...]:
    """All parts of names."""
    return (*_GIVEN, *_FIRST, *_SURNAME_LAST, *_TOWN_LAST)


def answer_words() -> tuple[str, ...]:
    """Every word of answers, except names and years."""
    return tuple({word: None for options in _OPTIONS.values() for option in options for word in option.split()})


def pick(options: Sequence[Item], rng: np.random.Generator) -> Item:
    """A random item."""
    return options[int(rng.integers(len(options)))]


@cache
def _known_names(kind: Kind) -> tuple[str, ...]:
    rng = np.random.default_rng([CATALOG_SEED, 2 + list(KNOWN).index(kind)])
    names: dict[str, None] = {}
    while len(names) < KNOWN[kind]:
        names[draw_name(kind, rng)] = None
    return tuple(names)


@cache
def _held_out_names() -> frozenset[str]:
    return frozenset(name for kind, count in HELD_OUT.items() for name in _known_names(kind)[-count:])
