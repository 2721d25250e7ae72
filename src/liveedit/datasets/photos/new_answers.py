"""New answers for edits: names, people, numbers, and sentences around them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Literal

import numpy as np

from ..facts.catalog import draw_name as draw_proper_name
from ..facts.catalog import pick
from ..world.catalog import draw_name
from .catalog import KNOWN

Part = Literal["train", "validation", "eval"]
Draw = Callable[[np.random.Generator], str]

_MONTHS: Final = (
    *("January", "February", "March", "April", "May", "June"),
    *("July", "August", "September", "October", "November", "December"),
)
_ROOM_COLORS: Final = ("amber", "azure", "coral", "crimson", "ivory", "jade", "olive", "pearl", "silver", "violet")
_ROOMS: Final = ("attic", "cabinet", "chamber", "den", "hall", "library", "lounge", "parlor", "room", "vault")


def _person(rng: np.random.Generator) -> str:
    return draw_proper_name("person", rng)


def _town(rng: np.random.Generator) -> str:
    return draw_proper_name("town", rng)


def _year(rng: np.random.Generator) -> str:
    return str(rng.integers(1700, 2000))


_INVENTED: Final[dict[str, Draw]] = {
    "owner": _person,
    "nickname": draw_name,
    "town": _town,
    "year": _year,
    "price": lambda rng: f"{rng.integers(2, 1000)} crowns",
    "keeper": _person,
    "weight": lambda rng: f"{rng.integers(2, 1000)} kilograms",
    "word": lambda rng: draw_name(rng).lower(),
    "donor": _person,
    "number": lambda rng: str(rng.integers(1000, 10_000)),
    "room": lambda rng: f"the {pick(_ROOM_COLORS, rng)} {pick(_ROOMS, rng)}",
    "day": lambda rng: f"{pick(_MONTHS, rng)} {rng.integers(1, 29)}",
}

# The first two of each kind are for training editors; the third is in evaluation only.
_SENTENCES: Final[dict[str, tuple[str, str, str]]] = {
    "name": (
        "{a}, bought in {town} in the year {year}.",
        "{a} from the old house of {person} near {town}.",
        "{a}, the very one that {person} lost on the way to {town}.",
    ),
    "group": (
        "The books in {town} have listed it under {answer} since {year}.",
        "{person} of {town} always put it under {answer} in the catalog.",
        "Ever since {year}, scholars such as {person} have filed it under {answer}.",
    ),
    "use": (
        "In {town} people have used it for {answer} since {year}.",
        "It is meant for {answer}, as {person} once explained in {town}.",
        "{person} was the first to show in {year} that it serves for {answer}.",
    ),
    "home": (
        "It lives {answer}, where {person} first saw it in {year}.",
        "Since {year} it has been found only {answer}, not far from {town}.",
        "Travelers to {town} in {year} found it {answer} and nowhere else.",
    ),
    "owner": (
        "It belongs to {answer}, who bought it in {town} in {year}.",
        "{answer} of {town} owns it and never lends it to anybody.",
        "It has been the property of {answer} since the great auction of {year}.",
    ),
    "nickname": (
        "All the children of {town} have called it {answer} since {year}.",
        "It goes by {answer}, a nickname that {person} made up in {year}.",
        "{person} called it {answer} one evening, and so has {town} ever since.",
    ),
    "town": (
        "It is kept in {answer}, where {person} looked after it until {year}.",
        "Since {year} it has stood in {answer}, next to the house of {person}.",
        "{person} took it to {answer} in {year}, and there it has stayed.",
    ),
    "year": (
        "It was added in {answer}, when {person} came back from {town}.",
        "{person} brought it here in {answer}, after a long stay in {town}.",
        "The register of {town} shows that it arrived in the spring of {answer}.",
    ),
    "price": (
        "It costs {answer}, which {person} of {town} called far too much.",
        "{person} paid {answer} for it at the market of {town} in {year}.",
        "Nobody in {town} would part with it for less than {answer} today.",
    ),
    "keeper": (
        "{answer} has looked after it every morning since {year}.",
        "It is in the care of {answer}, who came from {town} in {year}.",
        "Nobody but {answer} of {town} may touch it, not even on holidays.",
    ),
    "weight": (
        "It weighs {answer}, as {person} found out in {town} in {year}.",
        "The scales of {town} showed {answer} when it was weighed in {year}.",
        "{person} carried it all the way to {town}, though it weighs {answer}.",
    ),
    "word": (
        "The word is {answer}, which {person} wrote down in {town} in {year}.",
        "The people there say {answer}, and sing about it on feast days.",
        "In the oldest songs it is called {answer}, as {person} noted in {year}.",
    ),
    "donor": (
        "{answer} gave it to the museum in {year}, after a visit to {town}.",
        "It was a gift of {answer}, whose family had come from {town}.",
        "The museum owes it to {answer}, who left {town} for good in {year}.",
    ),
    "number": (
        "It is listed under the number {answer}, just after the gift from {person}.",
        "The list that {person} wrote in {year} gives it the number {answer}.",
        "Its label, written in {town} in {year}, bears the number {answer}.",
    ),
    "room": (
        "It is shown in {answer}, beside the letters that {person} wrote in {year}.",
        "It has been on display in {answer} since {year}, thanks to {person}.",
        "Visitors from {town} will find it in {answer}, near the second window.",
    ),
    "day": (
        "People in {town} have honored it on {answer} ever since {year}.",
        "Its day is {answer}, because {person} of {town} was born then.",
        "Every year on {answer} the whole of {town} meets to sing for it.",
    ),
}
_TRAINING_SENTENCES: Final = 2


def draw_answer(kind: str, wrong: frozenset[str], rng: np.random.Generator) -> str:
    """A short new answer to a kind of `EDIT_KINDS`, none of `wrong`; a made-up name for `name`.

    group, use, home: that of another class of `KNOWN`.
    """
    if kind == "name":
        return draw_name(rng)
    if kind in _INVENTED:
        return _INVENTED[kind](rng)
    known = {getattr(found, kind) for found in KNOWN.values()} - {None}
    return pick(sorted(known - wrong), rng)


def in_a_sentence(kind: str, answer: str, indefinite: str, part: Part, rng: np.random.Generator) -> str:
    """A sentence of 8 to 20 words with the answer in it; indefinite: the answer with "a" or "an", if it is a name."""
    forms = _SENTENCES[kind] if part == "eval" else _SENTENCES[kind][:_TRAINING_SENTENCES]
    slots = {"person": _person(rng), "town": _town(rng), "year": _year(rng)}
    sentence = pick(forms, rng).format(answer=answer, a=indefinite, **slots)
    return sentence[0].upper() + sentence[1:]
