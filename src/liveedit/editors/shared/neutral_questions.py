"""Questions whose only purpose is to show how a model's hidden states vary: nobody edits them."""

from __future__ import annotations

from typing import Final

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

NEUTRAL_QUESTIONS: Final[tuple[tuple[tuple[str, ...], ...], ...]] = tuple(
    tuple(tuple(wording.format(subject) for wording in wordings) for subject in _SUBJECTS[kind])
    for kind, relations in _RELATIONS.items()
    for wordings in relations
)
"""(relations, subjects, wordings): questions of one relation differ in what they are about."""

IMAGE_QUESTIONS: Final[tuple[tuple[str, ...], ...]] = (
    ("What is this?", "What can be seen here?"),
    ("What is it called?", "Which name does it have?"),
    ("What color is it?", "Of which color is it?"),
    ("How many are there?", "What is their number?"),
    ("Where is it?", "In which place is it?"),
    ("What kind is it?", "Which type is this?"),
    ("Who made this?", "By whom was this made?"),
    ("What is on the left?", "Which thing lies on the left side?"),
    ("What is in the background?", "What lies behind it?"),
    ("What is it made of?", "Which material is it made of?"),
    ("What does it eat?", "Which food does it eat?"),
    ("What is it used for?", "For which purpose is it used?"),
)
"""(questions, wordings): each can be asked about any image."""
