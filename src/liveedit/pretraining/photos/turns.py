"""What `smol-llava` is trained to say: true answers about photographs, and to text what the language model says."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np

from ...backbones import Backbone
from ...datasets.facts.catalog import pick
from ...datasets.photos import looks, questions
from ...datasets.photos.catalog import PhotoClass
from ...datasets.photos.wordings import Wording
from ...editors.shared.neutral_questions import NEUTRAL_QUESTIONS
from ...files import write_json
from ...progress import TaskProgress
from ...samples import Question
from ..rows import Turn

LONGEST_TEXT: Final = 48
"""Longest answer to a text, in tokens: a longer one is left out, because its end is not known."""
_BATCH: Final = 24
_HARD: Final = 0.5
"""Share of the wrong classes in a question that are among the most similar ones."""

IMAGE_ANSWERS: Final = "looks.json"
TEXT_ANSWERS: Final = "texts.json"


def photo_turns(
    shown: PhotoClass,
    similar: Sequence[PhotoClass],
    others: Sequence[PhotoClass],
    looked: Mapping[str, str],
    count: int,
    rng: np.random.Generator,
) -> list[Turn]:
    """`count` questions about one photograph, of different kinds first. One asks for what nobody knows.

    similar, others: classes that questions may name besides. looked: answers to questions about the photograph itself.
    """
    kinds = [kind for kind in questions.TRUE_KINDS if is_known(shown, kind)]
    kinds += [pick(group, rng) for group in (questions.IMAGE_KINDS, questions.INVENTED_KINDS)]
    kinds = [*rng.permutation(kinds)]
    kinds = [*kinds, "name", "yes_no", "choice", "name"][:count]
    return [_turn(str(kind), shown, similar, others, looked, rng) for kind in kinds]


def is_known(shown: PhotoClass, kind: str) -> bool:
    """Whether the true answer to a kind is known."""
    return kind not in questions.FACT_KINDS or getattr(shown, kind) is not None


def _turn(
    kind: str,
    shown: PhotoClass,
    similar: Sequence[PhotoClass],
    others: Sequence[PhotoClass],
    looked: Mapping[str, str],
    rng: np.random.Generator,
) -> Turn:
    wording: Wording = "train" if rng.random() < 0.8 else "unseen_by_editor"
    if kind in questions.IMAGE_KINDS:
        return questions.ask(kind, wording, rng), looked[kind]
    named = similar if rng.random() < _HARD else others
    return questions.true_question(kind, shown, named, wording, rng)


def looks_of(folder: Path, photos: Sequence[str], out: Path, report: TaskProgress) -> dict[str, dict[str, str]]:
    """Answers to the questions about each photograph itself, kept in `out`."""
    file = out / IMAGE_ANSWERS
    if file.exists():
        return json.loads(file.read_text(encoding="utf-8"))
    found = {}
    for number, photo in enumerate(photos, start=1):
        found[photo] = {kind: looks.answer_from_pixels(kind, folder / photo) for kind in questions.IMAGE_KINDS}
        report("looking at photographs", number, len(photos))
    write_json(file, found)
    return found


def own_answers(language: Backbone, out: Path, report: TaskProgress) -> list[Turn]:
    """Questions without an image, with what the language model answers before any training, kept in `out`."""
    file = out / TEXT_ANSWERS
    if not file.exists():
        prompts = [wording for relation in NEUTRAL_QUESTIONS for asked in relation for wording in asked]
        write_json(file, answers_to(language, prompts, report))
    return [tuple(turn) for turn in json.loads(file.read_text(encoding="utf-8"))]


def answers_to(backbone: Backbone, prompts: Sequence[str], report: TaskProgress) -> list[Turn]:
    """Prompts with the answers that end within `LONGEST_TEXT` tokens."""
    found: list[Turn] = []
    for start in range(0, len(prompts), _BATCH):
        part = prompts[start : start + _BATCH]
        answers = backbone.generate(
            backbone.encode([Question(prompt) for prompt in part], padding="left"), LONGEST_TEXT
        )
        for prompt, answer in zip(part, answers, strict=True):
            if answer and len(backbone.tokenize([answer])[0]) < LONGEST_TEXT - 1:
                found.append((prompt, answer))
        report("answers to texts", min(start + _BATCH, len(prompts)), len(prompts))
    return found
