"""What is known of the classes of photographs: name, group, and what a thing is for or where an animal lives.

`KNOWN` has the 99 classes of the Caltech-101 sample. A file of `--classes` adds entries or replaces them; a folder
without an entry is called what the folder is called, and nothing else is known of it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Final

from ...errors import InvalidInputError

_AN: Final = re.compile(r"(?!eu|ewe|uni(?!n)|us[ei]|ut[ei]|ufo|uku|one\b|once\b)[aeiou]|hour|heir|honest|honou?r", re.I)
"""Beginnings of words that are spoken with a vowel: an emu, an hourglass, but a euphonium, a unicycle."""


@dataclass(frozen=True, slots=True)
class PhotoClass:
    """A class of photographs.

    key: the name of its folder. group, use, home: None if not known; things have a use and living things a home.
    article: "a" or "an", and "" for a proper name, which has none; None: by the spelling of the name.
    """

    key: str
    name: str
    group: str | None = None
    use: str | None = None
    home: str | None = None
    article: str | None = None

    @property
    def indefinite(self) -> str:
        """The name with "a" or "an"; a proper name alone."""
        article = self.article
        if article is None:
            article = "an" if _AN.match(self.name) else "a"
        return f"{article} {self.name}".strip()

    @property
    def definite(self) -> str:
        """The name with "the"; a proper name alone."""
        return self.name if self.article == "" else f"the {self.name}"


def _living(group: str, home: str, *keys: str, **names: str) -> list[PhotoClass]:
    return [PhotoClass(key, name, group, home=home) for key, name in _named(keys, names)]


def _things(group: str, use: str, *keys: str, **names: str) -> list[PhotoClass]:
    return [PhotoClass(key, name, group, use) for key, name in _named(keys, names)]


def _named(keys: Iterable[str], names: Mapping[str, str]) -> Iterable[tuple[str, str]]:
    return [*((key, _plain(key)) for key in keys), *names.items()]


def _plain(key: str) -> str:
    return " ".join(key.replace("_", " ").split())


_LIVING: Final = [
    *_living("mammal", "in rivers", "beaver", "platypus"),
    *_living("mammal", "in the mountains", "llama", cougar_body="cougar", cougar_face="cougar face"),
    *_living("mammal", "in people's homes", "dalmatian"),
    *_living("mammal", "in the sea", "dolphin"),
    *_living("mammal", "on the savanna", "elephant", "gerenuk", rhino="rhinoceros"),
    *_living("mammal", "in hedges and gardens", "hedgehog"),
    *_living("mammal", "in dry grassland", "kangaroo"),
    *_living("mammal", "in the jungle", "okapi", Leopards="leopard"),
    *_living("mammal", "in bamboo forests", "panda"),
    *_living("mammal", "in the woods", "wild_cat"),
    *_living("bird", "in dry grassland", "emu"),
    *_living("bird", "in salt lakes", "flamingo", "flamingo_head"),
    *_living("bird", "in marshes", "ibis"),
    *_living("bird", "in city squares", "pigeon"),
    *_living("bird", "on a farm", "rooster"),
    *_living("reptile", "in rivers", "crocodile", "crocodile_head"),
    *_living("reptile", "on coral reefs", hawksbill="hawksbill turtle"),
    *_living("fish", "in lakes", "bass"),
    *_living("fish", "in sea grass", "sea_horse"),
    *_living("insect", "in an anthill", "ant"),
    *_living("insect", "in flower meadows", "butterfly"),
    *_living("insect", "near ponds", "dragonfly", "mayfly"),
    *_living("arachnid", "in the desert", "scorpion"),
    *_living("arachnid", "in long grass", "tick"),
    *_living("shellfish", "on the beach", "crab"),
    *_living("shellfish", "in streams", "crayfish"),
    *_living("shellfish", "on the sea floor", "lobster"),
    *_living("sea animal", "on the sea floor", "octopus", "starfish"),
    *_living("sea animal", "in the deep sea", "nautilus"),
    *_living("dinosaur", "on prehistoric plains", "brontosaurus", "stegosaurus"),
    *_living("fossil", "in ancient seas", "trilobite"),
    *_living("plant", "in a small pot", bonsai="bonsai tree"),
    *_living("plant", "in the desert", joshua_tree="Joshua tree"),
    *_living("plant", "in ponds", lotus="lotus flower", water_lilly="water lily"),
    *_living("plant", "in sunny fields", "sunflower"),
    *_living("cartoon character", "in Jon's house", garfield="Garfield"),
    *_living("cartoon character", "in a doghouse", snoopy="Snoopy"),
]
_THINGS: Final = [
    *_things("musical instrument", "playing music", "accordion", "electric_guitar", "euphonium", "grand_piano"),
    *_things("musical instrument", "playing music", "mandolin", "saxophone"),
    *_things("aircraft", "flying", "helicopter", airplanes="airplane"),
    *_things("ship", "carrying people across water", "ferry"),
    *_things("ship", "sailing", "ketch", "schooner"),
    *_things("vehicle", "driving on roads", Motorbikes="motorbike", car_side="car"),
    *_things("vehicle", "moving people who cannot walk", "wheelchair"),
    *_things("sports gear", "skating", "inline_skate"),
    *_things("sports gear", "playing soccer", "soccer_ball"),
    *_things("weapon", "shooting", "cannon", "revolver"),
    *_things("building", "calling people to prayer", "minaret"),
    *_things("building", "praying", "pagoda"),
    *_things("building", "burying kings", "pyramid"),
    *_things("statue", "praying", buddha="Buddha statue"),
    *_things("furniture", "sitting", "chair", windsor_chair="Windsor chair"),
    *_things("lighting", "giving light", "chandelier", "lamp"),
    *_things("lighting", "holding candles", "menorah"),
    *_things("container", "storing wine", "barrel"),
    *_things("container", "drinking", "cup"),
    *_things("container", "pouring water", "ewer"),
    *_things("tool", "cutting paper", scissors="pair of scissors"),
    *_things("tool", "fastening paper", "stapler"),
    *_things("tool", "turning bolts", "wrench"),
    *_things("tool", "holding a ship in place", "anchor"),
    *_things("optical device", "seeing far away", binocular="pair of binoculars"),
    *_things("optical device", "taking photos", "camera"),
    *_things("electronic device", "making calls", cellphone="cell phone"),
    *_things("electronic device", "hearing music", headphone="pair of headphones"),
    *_things("electronic device", "working and writing", "laptop"),
    *_things("machine", "cooling a room", "ceiling_fan"),
    *_things("machine", "playing records", "gramophone"),
    *_things("timepiece", "keeping the beat", "metronome"),
    *_things("timepiece", "telling the time", "watch"),
    *_things("accessory", "keeping off the rain", "umbrella"),
    *_things("money", "paying", "dollar_bill"),
    *_things("sign", "stopping cars", "stop_sign"),
    *_things("symbol", "showing balance", yin_yang="yin and yang symbol"),
    *_things("organ", "thinking", "brain"),
    *_things("food", "eating", "pizza"),
    *_things("fruit", "eating", "strawberry"),
]
_PROPER: Final = frozenset({"garfield", "snoopy"})

KNOWN: Final[dict[str, PhotoClass]] = {
    found.key: replace(found, article="") if found.key in _PROPER else found for found in (*_LIVING, *_THINGS)
}
"""The classes that are known by the name of their folder."""

_ENTRY_KEYS: Final = tuple(field.name for field in fields(PhotoClass) if field.name != "key")


def photo_classes(folders: Iterable[str], classes: Mapping[str, PhotoClass] | None = None) -> tuple[PhotoClass, ...]:
    """The class of each folder: of `classes`, otherwise of `KNOWN`, otherwise the folder's name with spaces.

    Raises `InvalidInputError` if two folders have the same name for people: questions could not tell them apart.
    """
    known = {**KNOWN, **(classes or {})}
    found = tuple(known.get(folder) or PhotoClass(folder, _plain(folder)) for folder in folders)
    first: dict[str, str] = {}
    for each in found:
        other = first.setdefault(each.name.casefold(), each.key)
        if other != each.key:
            raise InvalidInputError(
                f"The class folders {other!r} and {each.key!r} are both called {each.name!r}. Give them different "
                "names in a file of classes."
            )
    return found


def read_classes(file: Path) -> dict[str, PhotoClass]:
    """The entries of a JSON file {folder: {"name", "group", "use", "home", "article"}}, all keys optional.

    Raises `InvalidInputError` for a file that cannot be read, for unknown keys and for values that are not text.
    """
    try:
        entries = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InvalidInputError(f"{file} cannot be read as JSON ({error}). Give a file of classes.") from error
    if not isinstance(entries, dict):
        raise InvalidInputError(f"{file} holds no object. Give one entry per class folder: {_EXAMPLE}.")
    return {key: _entry(file, key, entry) for key, entry in entries.items()}


_EXAMPLE: Final = '{"wild_cat": {"name": "wild cat", "group": "mammal", "home": "in the woods"}}'


def _entry(file: Path, key: str, entry: Any) -> PhotoClass:
    if not isinstance(entry, dict) or not set(entry) <= set(_ENTRY_KEYS):
        raise InvalidInputError(f"{file}, class {key!r}: allowed are {', '.join(_ENTRY_KEYS)}, as in {_EXAMPLE}.")
    for name, value in entry.items():
        if not isinstance(value, str) or not (value.strip() or name == "article"):
            raise InvalidInputError(f"{file}, class {key!r}: {name} holds {value!r}. Give a text or leave it out.")
    if entry.get("article") not in (None, "", "a", "an"):
        raise InvalidInputError(
            f"{file}, class {key!r}: article holds {entry['article']!r}. Give 'a', 'an', or '' for a proper name."
        )
    return PhotoClass(key, **{"name": _plain(key), **entry})
