"""Questions whose only purpose is to show how a model's hidden states vary: nobody edits them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

Grid = tuple[tuple[tuple[str, ...], ...], ...]
"""(relations, subjects, wordings): questions of one relation differ in what they are about."""

_SUBJECTS: Final[dict[str, tuple[str, ...]]] = {
    "person": ("Marie Curie", "Johann Sebastian Bach", "Ada Lovelace", "Nelson Mandela", "Frida Kahlo", "Alan Turing"),
    "place": ("Lake Victoria", "Kyoto", "Patagonia", "Bavaria", "Mount Kenya", "Lisbon"),
    "product": ("the Walkman", "Linux", "the Fiat 500", "Polaroid", "Concorde", "Tetris"),
    "work": ("Don Quixote", "Swan Lake", "Metropolis", "Guernica", "The Odyssey", "Casablanca"),
}

_RELATIONS: Final[dict[str, tuple[tuple[str, ...], ...]]] = {
    "person": (
        ("Where was {} born?", "What is the birthplace of {}?", "The town where {} was born is"),
        ("What is the native language of {}?", "Which language did {} grow up with?", "The mother tongue of {} is"),
        ("What was the profession of {}?", "What did {} do for a living?", "{} worked as a"),
    ),
    "place": (
        ("In which country is {}?", "Which country does {} belong to?", "{} is located in"),
        ("How many people live in {}?", "What is the population of {}?", "The number of people in {} is"),
        ("What is {} known for?", "Why do people visit {}?", "{} is famous for its"),
    ),
    "product": (
        ("Who made {}?", "Which company does {} come from?", "{} was created by"),
        ("When was {} introduced?", "In what year did {} first appear?", "The year in which {} came out is"),
        ("What is {} used for?", "What is the purpose of {}?", "People use {} to"),
    ),
    "work": (
        ("Who created {}?", "Which artist is {} by?", "The author of {} is"),
        ("In what year was {} finished?", "When was {} completed?", "{} was first shown in"),
        ("What is {} about?", "What is the subject of {}?", "The story of {} is about"),
    ),
}

_HARD_SUBJECTS: Final[dict[str, tuple[str, ...]]] = {
    "country": ("France", "Spain", "Japan", "Brazil", "Egypt", "Norway"),
    "animal": ("the horse", "the whale", "the sparrow", "the ant", "the salmon", "the frog"),
    "substance": ("water", "iron", "gold", "sugar", "mercury", "salt"),
    "name": ("Mary Jones", "John Smith", "Peter Brown", "Anna Schmidt", "David Lee", "Maria Garcia"),
    "company": ("Apple", "Microsoft", "Toyota", "Siemens", "Nokia", "Lufthansa"),
}

_HARD_RELATIONS: Final[dict[str, tuple[tuple[str, ...], ...]]] = {
    "country": (
        ("What is the capital of {}?", "Which city is the capital of {}?", "The capital of {} is"),
        ("What is the currency of {}?", "What money do people use in {}?", "People in {} pay with"),
        ("Who is the president of {}?", "Who leads {}?", "The leader of {} is"),
    ),
    "animal": (
        ("What does {} eat?", "What is the food of {}?", "{} feeds on"),
        ("How long does {} live?", "What is the lifespan of {}?", "The age that {} reaches is"),
        ("Where does {} live?", "What is the home of {}?", "{} is found in"),
    ),
    "substance": (
        ("What is the boiling point of {}?", "At what temperature does {} boil?", "{} boils at"),
        ("What color is {}?", "Which color does {} have?", "The color of {} is"),
        ("What is {} made of?", "What does {} consist of?", "{} consists of"),
    ),
    "name": (
        ("How old is {}?", "What age is {}?", "The age of {} is"),
        ("Where does {} work?", "Who employs {}?", "{} works for"),
        ("Who is the wife of {}?", "Whom did {} marry?", "{} is married to"),
    ),
    "company": (
        ("Who is the CEO of {}?", "Who heads {}?", "The head of {} is"),
        ("Where is {} based?", "In which city is the head office of {}?", "{} has its head office in"),
        ("What does {} make?", "What are the products of {}?", "{} sells"),
    ),
}


def _grid(subjects: Mapping[str, tuple[str, ...]], relations: Mapping[str, tuple[tuple[str, ...], ...]]) -> Grid:
    return tuple(
        tuple(tuple(wording.format(subject) for wording in wordings) for subject in subjects[kind])
        for kind, asked in relations.items()
        for wordings in asked
    )


NEUTRAL_QUESTIONS: Final = _grid(_SUBJECTS, _RELATIONS)
"""Questions about things with names of their own: their hidden states show how texts vary."""

HARD_QUESTIONS: Final = _grid(_HARD_SUBJECTS, _HARD_RELATIONS)
"""Questions about things with common names of one or two words, which are hard to distinguish: how similar two of them
are sets the threshold from which texts count as being about the same thing."""

IMAGE_QUESTIONS: Final = (
    ("What is it called?", "What is the name of this?", "How is this called?"),
    ("What color is it?", "Which color does it have?", "In what color is it?"),
    ("How many are there?", "What is the number of things here?", "How many can be seen?"),
    ("Where is it?", "In what place is this?", "Which place is shown?"),
    ("Who made this?", "Who is the maker of it?", "By whom was it made?"),
    ("Who owns this?", "Whose is it?", "Who does it belong to?"),
    ("How old is it?", "What age is this?", "How many years old is it?"),
    ("How big is it?", "What size is it?", "How large is this?"),
    ("What does it cost?", "How much is it?", "What is the price of this?"),
    ("What is it used for?", "What is its purpose?", "What do people do with it?"),
    ("What is it made of?", "Which material is it?", "What does it consist of?"),
    ("What does it eat?", "What is its food?", "What does it feed on?"),
    ("What is on the left?", "What is to the left of it?", "What can be seen on the left?"),
    ("What is in the background?", "What is behind it?", "What can be seen behind it?"),
)
"""(questions, wordings): questions that can be asked about any image, each in three wordings."""
