"""The wordings of questions about facts."""

from __future__ import annotations

from typing import Literal

import numpy as np

from .catalog import RELATIONS, answer_words, name_parts, pick

Wording = Literal["train", "unseen_by_editor", "unseen"]
"""Groups of wordings: those for training editors, those that only the backbone saw, those that no model saw."""

# Five wordings for training editors, one that only the backbone sees, one that no model sees. The last one consists of
# words of other questions: the wording is new, not the words.
_CORES: dict[str, tuple[str, str, str, str, str, str, str]] = {
    "home": (
        "Where does {} live?",
        "What is the home of {}?",
        "In which town does {} live?",
        "Which town is the home of {}?",
        "Can you say where {} lives?",
        "Which town does {} live in?",
        "In what town does {} live?",
    ),
    "trade": (
        "What is the trade of {}?",
        "What does {} work as?",
        "Which trade does {} have?",
        "What kind of work does {} do?",
        "Can you say which trade {} has?",
        "In which trade does {} work?",
        "What kind of trade does {} have?",
    ),
    "food": (
        "What does {} like to eat?",
        "What is the favourite food of {}?",
        "Which food does {} like?",
        "What kind of food does {} eat?",
        "Can you say what {} likes to eat?",
        "Which food does {} like to eat?",
        "What food does {} like?",
    ),
    "instrument": (
        "Which instrument does {} play?",
        "What does {} play?",
        "What is the instrument of {}?",
        "What kind of instrument does {} play?",
        "Can you say which instrument {} plays?",
        "What instrument does {} like to play?",
        "Which kind of instrument does {} play?",
    ),
    "pet": (
        "Which animal does {} keep?",
        "What is the pet of {}?",
        "What pet does {} have?",
        "What kind of animal does {} keep?",
        "Can you say which pet {} has?",
        "Which pet does {} keep?",
        "What animal does {} keep?",
    ),
    "teacher": (
        "Who taught {}?",
        "Who is the teacher of {}?",
        "Who was {} taught by?",
        "Which teacher did {} have?",
        "Can you say who taught {}?",
        "By whom was {} taught?",
        "Who was the teacher of {}?",
    ),
    "ruler": (
        "Who rules {}?",
        "Who is the ruler of {}?",
        "Which ruler does {} have?",
        "Who is {} ruled by?",
        "Can you say who rules {}?",
        "By whom is {} ruled?",
        "Which person rules {}?",
    ),
    "founder": (
        "Who founded {}?",
        "Who is the founder of {}?",
        "Which person founded {}?",
        "Who was {} founded by?",
        "Can you say who founded {}?",
        "By whom was {} founded?",
        "Who was the founder of {}?",
    ),
    "river": (
        "Which river flows through {}?",
        "What is the river of {}?",
        "On which river does {} lie?",
        "What river runs through {}?",
        "Can you say which river flows through {}?",
        "Which river does {} lie on?",
        "Which river runs through {}?",
    ),
    "goods": (
        "What does {} sell?",
        "What are the goods of {}?",
        "Which goods does {} sell?",
        "What kind of goods come from {}?",
        "Can you say what {} sells?",
        "Which goods come from {}?",
        "What goods does {} sell?",
    ),
    "year": (
        "When was {} founded?",
        "In which year was {} founded?",
        "What is the founding year of {}?",
        "Which year was {} founded in?",
        "Can you say when {} was founded?",
        "What year was {} founded in?",
        "In what year was {} founded?",
    ),
}
_CARRIERS: dict[Wording, tuple[str, ...]] = {
    "train": ("{}", "{}", "{}", "Hello. {}", "Tell me: {}", "Please answer: {}"),
    "unseen_by_editor": ("{}", "Please tell me: {}"),
    "unseen": ("{}", "Hello. Please answer: {}"),
}
_WORDING_CORES: dict[Wording, slice] = {
    "train": slice(0, 5),
    "unseen_by_editor": slice(5, 6),
    "unseen": slice(6, 7),
}


def wordings(relation: str, wording: Wording) -> tuple[str, ...]:
    """The paraphrases of a relation in one of the three groups, without carriers; {} is the subject."""
    return _CORES[relation][_WORDING_CORES[wording]]


def ask(name: str, relation: str, wording: Wording, rng: np.random.Generator) -> str:
    """A random wording of a question about the subject of this name."""
    core = pick(wordings(relation, wording), rng).format(name)
    return pick(_CARRIERS[wording], rng).format(core)


def vocabulary() -> tuple[str, ...]:
    """Every word of questions and answers, parts of names included."""
    texts = [core for kind in RELATIONS.values() for relation in kind for core in _CORES[relation]]
    texts += [carrier for carriers in _CARRIERS.values() for carrier in carriers]
    words = {word.strip("?:.,{}") for text in texts for word in text.split()}
    return tuple(sorted({*words, *answer_words(), *name_parts()} - {""}))
