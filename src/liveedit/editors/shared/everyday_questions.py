"""Questions as anybody asks them: their mean is what questions have in common."""

from __future__ import annotations

from typing import Final

EVERYDAY_QUESTIONS: Final = (
    "What is the capital of this country?",
    "Who wrote the book?",
    "Where was he born?",
    "When did the war end?",
    "What color is the car?",
    "How many people live in the city?",
    "Which team won the game?",
    "What language is spoken there?",
    "Who is the president?",
    "What is in the picture?",
    "What does the animal eat?",
    "Which river is the longest?",
    "What is the name of the company?",
    "Why is the sky blue?",
    "Who plays the main role in the film?",
    "In what year was it founded?",
)
"""Their mean is subtracted from features of questions: what all questions share, template words included, identifies
none."""
