"""Questions about a scene, their wordings, and the right answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from . import captions, catalog
from .catalog import Country
from .scene import Scene

ENTITY_RELATIONS = ("name", "home", "food")
ATTRIBUTE_RELATIONS = (
    "body_color",
    "hat",
    "hat_color",
    "legs",
    "background",
    "pattern",
    "side",
    "thing_color",
)
TEXT_RELATIONS = ("capital", "language")

Wording = Literal["train", "unseen_by_editor", "unseen"]
"""Groups of wordings: those for training editors, those that only the backbone saw, those that no model saw."""

# Four wordings for training editors, one that only the backbone sees, one that no model sees. The last one consists of
# words of other questions: the wording is new, not the words.
_CORES: dict[str, tuple[str, str, str, str, str, str]] = {
    "name": (
        "What is this creature called?",
        "What is the name of this creature?",
        "Which name does this creature have?",
        "How is this creature called?",
        "Can you say what this creature is called?",
        "What name does the creature have?",
    ),
    "home": (
        "Where does this creature live?",
        "What is the home of this creature?",
        "In which place does this creature live?",
        "Can you say where this creature lives?",
        "Which place is home to this creature?",
        "In what place does the creature live?",
    ),
    "food": (
        "What does this creature eat?",
        "What is the food of this creature?",
        "Which food does this creature eat?",
        "Can you say what this creature eats?",
        "What food does the creature eat?",
        "Which food is eaten by this creature?",
    ),
    "body_color": (
        "What color is the creature?",
        "Which color does the creature have?",
        "What is the color of the creature?",
        "Can you say what color the creature is?",
        "Of what color is the creature?",
        "Which color is the creature?",
    ),
    "hat": (
        "What kind of hat does the creature wear?",
        "What kind of hat is this?",
        "Which kind of hat is on the creature?",
        "What is the kind of the hat?",
        "Can you say which kind of hat this is?",
        "Which kind of hat does the creature wear?",
    ),
    "hat_color": (
        "What color is the hat?",
        "Which color does the hat have?",
        "What is the color of the hat?",
        "Can you say what color the hat is?",
        "Of what color is the hat?",
        "Which color is the hat?",
    ),
    "legs": (
        "How many legs does the creature have?",
        "How many legs are there?",
        "What is the number of legs?",
        "Can you count the legs?",
        "Can you say how many legs there are?",
        "What number of legs does the creature have?",
    ),
    "background": (
        "What color is the background?",
        "Which color does the background have?",
        "What is the color of the background?",
        "Can you say what color the background is?",
        "Of what color is the background?",
        "Which color is the background?",
    ),
    "pattern": (
        "What pattern does the background have?",
        "Which pattern is behind the creature?",
        "What is the pattern of the background?",
        "What kind of pattern is this?",
        "Can you say which pattern this is?",
        "Which kind of pattern is behind the creature?",
    ),
    "side": (
        "On which side is the creature?",
        "Which side is the creature on?",
        "What is the side of the creature?",
        "Can you say on which side the creature is?",
        "On what side does the creature stand?",
        "Which side does the creature stand on?",
    ),
    "thing_color": (
        "What color is the {thing}?",
        "Which color does the {thing} have?",
        "What is the color of the {thing}?",
        "Can you say what color the {thing} is?",
        "Of what color is the {thing}?",
        "Which color is the {thing}?",
    ),
    "capital": (
        "What is the capital of {country}?",
        "Which city is the capital of {country}?",
        "What is the capital city of {country} called?",
        "Can you say what the capital of {country} is?",
        "Which capital does {country} have?",
        "What capital city does {country} have?",
    ),
    "language": (
        "What is the language of {country}?",
        "Which language do people speak in {country}?",
        "What do people speak in {country}?",
        "Can you say which language {country} has?",
        "Which language does {country} have?",
        "What language do people speak in {country}?",
    ),
}
CAPTION_CORES = (
    "What is this?",
    "What is there?",
    "Can you say what this is?",
    "How does this look?",
    "Can you say what there is?",
    "Can you tell what this is?",
)
"""Requests for a caption. They are not in `_CORES`, because the built-in backbones are not taught captions."""

_CARRIERS: dict[Wording, tuple[str, ...]] = {
    "train": ("{}", "{}", "{}", "Look at this. {}", "Tell me: {}", "Please answer: {}"),
    "unseen_by_editor": ("{}", "Please tell me: {}"),
    "unseen": ("{}", "Look at this and answer: {}"),
}
_WORDING_CORES: dict[Wording, slice] = {
    "train": slice(0, 4),
    "unseen_by_editor": slice(4, 5),
    "unseen": slice(5, 6),
}


@dataclass(frozen=True, slots=True)
class Topic:
    """The content of a question: a relation, and the shape of a thing if the relation needs one."""

    relation: str
    thing: str | None = None

    @property
    def key(self) -> str:
        """The relation as a scope: two questions with equal keys ask for the same property."""
        return f"{self.relation}:{self.thing}" if self.thing else self.relation

    @property
    def is_entity(self) -> bool:
        """Whether the answer is a property of the creature in any scene, not of this one scene."""
        return self.relation in ENTITY_RELATIONS


CAPTION = Topic("caption")
"""What the whole image shows, in a sentence. It is asked only in worlds with captions as answers."""


def topics(scene: Scene) -> tuple[Topic, ...]:
    """Everything that can be asked about a scene, except for a caption."""
    plain = (*ENTITY_RELATIONS, *(name for name in ATTRIBUTE_RELATIONS if name != "thing_color"))
    things = (Topic("thing_color", thing.shape) for thing in scene.things)
    return (*(Topic(name) for name in plain), *things)


def can_ask(topic: Topic, scene: Scene) -> bool:
    """Whether a topic has an answer in a scene: any, unless it is about a thing that is not there."""
    return topic == CAPTION or topic in topics(scene)


def answer(scene: Scene, topic: Topic) -> str:
    """The right answer to a topic in a scene."""
    creature = scene.creature
    match topic.relation:
        case "name":
            return creature.name
        case "home":
            return creature.home
        case "food":
            return creature.food
        case "body_color":
            return scene.color
        case "hat":
            return scene.hat
        case "hat_color":
            return scene.hat_color
        case "legs":
            return catalog.LEGS[scene.legs - 2]
        case "background":
            return scene.background
        case "pattern":
            return scene.pattern
        case "side":
            return scene.side
        case "thing_color":
            return next(thing.color for thing in scene.things if thing.shape == topic.thing)
        case "caption":
            return captions.describe(scene)
        case relation:
            raise ValueError(f"{relation!r} is not asked about scenes.")


def answers(relation: str, allow_held_out: bool = True) -> tuple[str, ...]:
    """Every answer of a relation, except names, which are unlimited."""
    held_out = catalog.HELD_OUT_HOMES | catalog.HELD_OUT_FOODS
    options: dict[str, tuple[str, ...]] = {
        "home": tuple(catalog.HOMES),
        "food": tuple(catalog.FOODS),
        "body_color": tuple(catalog.COLORS),
        "hat": catalog.HATS,
        "hat_color": tuple(catalog.COLORS),
        "legs": catalog.LEGS,
        "background": tuple(catalog.BACKGROUNDS),
        "pattern": catalog.PATTERNS,
        "side": catalog.SIDES,
        "thing_color": tuple(catalog.COLORS),
    }
    return tuple(option for option in options[relation] if allow_held_out or option not in held_out)


def wordings(relation: str, wording: Wording) -> tuple[str, ...]:
    """The paraphrases of a relation in one of the three groups, without carriers."""
    cores = CAPTION_CORES if relation == CAPTION.relation else _CORES[relation]
    return cores[_WORDING_CORES[wording]]


def ask(topic: Topic, wording: Wording, rng: np.random.Generator) -> str:
    """A random wording of a topic."""
    cores, carriers = wordings(topic.relation, wording), _CARRIERS[wording]
    core = cores[rng.integers(len(cores))].format(thing=topic.thing)
    return carriers[rng.integers(len(carriers))].format(core)


def ask_country(country: Country, relation: str, wording: Wording, rng: np.random.Generator) -> tuple[str, str]:
    """A text-only question and its answer."""
    cores = wordings(relation, wording)
    prompt = cores[rng.integers(len(cores))].format(country=country.name)
    return prompt, country.capital if relation == "capital" else country.language


def vocabulary() -> tuple[str, ...]:
    """Every word of questions and answers, syllables of names included."""
    texts = [core for cores in _CORES.values() for core in cores]
    texts += [carrier for carriers in _CARRIERS.values() for carrier in carriers]
    groups = (catalog.COLORS, catalog.BACKGROUNDS, catalog.PATTERNS, catalog.HATS, catalog.THINGS, catalog.SIDES)
    texts += [word for group in groups for word in group]
    texts += [*catalog.LEGS, *catalog.HOMES, *catalog.FOODS]
    words = {word.strip("?:.,{}") for text in texts for word in text.split()}
    return tuple(sorted({*words, *catalog.syllables(), "land", "burg", "ish"} - {"", "thing", "country"}))
