"""Model cards: what a built-in backbone answers on images and wordings that it has never seen."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple, Protocol

import numpy as np

from ..backbones.backbone import Backbone
from ..datasets.facts import catalog as people
from ..datasets.facts import questions as facts_asked
from ..datasets.world import catalog, drawing, questions, scene
from ..datasets.world.questions import Wording
from ..files import write_json, write_text
from ..progress import Progress, no_progress
from ..samples import Question

CARD_SEED: Final = 990_001
"""Seed of the images and wordings of a card for the drawn world. No training uses it."""

LANGUAGE_CARD_SEED: Final = 990_002
"""Seed of the wordings of a card for a language model."""

Accuracy = dict[str, dict[str, float]]
"""Exact match of free generation in percent, by question type and wording."""

_WORDINGS: Final[dict[Wording, str]] = {
    "train": "trained wordings",
    "unseen_by_editor": "wordings no editor is trained on",
    "unseen": "wordings never seen",
}
_NEW_TOKENS: Final = 12


class Pretrained(Protocol):
    """A built-in backbone, as far as a card names it."""

    @property
    def name(self) -> str:
        """The name of the backbone."""
        ...

    @property
    def base(self) -> str:
        """Its class in transformers."""
        ...

    @property
    def summary(self) -> str:
        """Its parts, in one phrase."""
        ...


class Asked(NamedTuple):
    """A question of a card, with its right answer."""

    relation: str
    wording: Wording
    question: Question
    answer: str


def measure_backbone(
    backbone: Backbone, images: int = 400, batch: int = 128, progress: Progress = no_progress
) -> Accuracy:
    """Ask every topic of new images of known creatures, and every text-only fact, in each group of wordings."""
    return accuracy_of(backbone, [*_image_questions(images), *_text_questions()], batch, progress)


def measure_language_model(backbone: Backbone, batch: int = 256, progress: Progress = no_progress) -> Accuracy:
    """Ask for every fact of every known subject, in each group of wordings."""
    return accuracy_of(backbone, _fact_questions(), batch, progress)


def accuracy_of(backbone: Backbone, asked: Sequence[Asked], batch: int, progress: Progress) -> Accuracy:
    """Exact match of free generation."""
    right: dict[tuple[str, str], list[bool]] = defaultdict(list)
    for start in range(0, len(asked), batch):
        part = asked[start : start + batch]
        answers = backbone.generate(backbone.encode([one.question for one in part], padding="left"), _NEW_TOKENS)
        for one, given in zip(part, answers, strict=True):
            right[one.relation, one.wording].append(given == one.answer)
        progress(min(start + batch, len(asked)), len(asked))
    found: Accuracy = defaultdict(dict)
    for (relation, wording), values in right.items():
        found[relation][wording] = round(100 * sum(values) / len(values), 2)
    return dict(found)


def write_card(built_in: Pretrained, accuracy: Accuracy, facts: dict[str, object], folder: Path) -> None:
    """Write the card of a backbone that is pretrained on the drawn world."""
    write_files(_CARD, built_in, accuracy, facts, folder)


def write_language_card(built_in: Pretrained, accuracy: Accuracy, facts: dict[str, object], folder: Path) -> None:
    """Write the card of a language model that is pretrained on made-up facts."""
    write_files(_LANGUAGE_CARD, built_in, accuracy, facts, folder)


def write_files(
    template: str, built_in: Pretrained, accuracy: Accuracy, facts: dict[str, object], folder: Path
) -> None:
    """Write `model_card.json` for programs and `README.md` for people, beside the weights.

    template: of the latter, with the fields name, base, summary, table and notes.
    """
    write_json(folder / "model_card.json", {"accuracy": accuracy, **facts}, indent=2)
    header = "| question type | " + " | ".join(_WORDINGS.values()) + " |\n|---|" + "---|" * len(_WORDINGS)
    rows = [
        f"| {relation.replace('_', ' ')} | " + " | ".join(f"{values[wording]:.1f}" for wording in _WORDINGS) + " |"
        for relation, values in accuracy.items()
    ]
    text = template.format(
        name=built_in.name,
        base=built_in.base,
        summary=built_in.summary,
        table="\n".join([header, *rows]),
        notes="\n".join(f"- {name.replace('_', ' ')}: {value}" for name, value in facts.items()),
    )
    write_text(folder / "README.md", text)


_CARD: Final = """# {name}

transformers' `{base}` in small ({summary}), pretrained on the drawn world by `liveedit train-backbone {name}`.
Weights in fp16. It answers about the drawn world only: real images and other questions are accepted, and answered with
words of that world.

Exact match of free generation in percent, on images drawn from a seed that nothing is trained on
(`liveedit train-backbone {name} --card`):

{table}

{notes}
"""
_LANGUAGE_CARD: Final = """# {name}

transformers' `{base}` in small ({summary}), pretrained on made-up facts about people and towns by
`liveedit train-backbone {name} --out DIR --card`. Weights in fp16. It knows those facts only: any other text is
accepted, up to 4,096 of its tokens, and answered with words of that world or with none.

Exact match of free generation in percent, over every fact that it was taught:

{table}

{notes}
"""


# -- what is asked -----------------------------------------------------------------------------------------


def _image_questions(images: int) -> list[Asked]:
    known, asked = catalog.known_creatures(), []
    for index in range(images):
        rng = np.random.default_rng([CARD_SEED, index])
        shown = scene.draw_scene(f"card-{index}", known[index % len(known)], rng)
        image = drawing.draw(shown, drawing.draw_pose(rng))
        for topic in questions.topics(shown):
            for wording in _WORDINGS:
                question = Question(questions.ask(topic, wording, rng), image)
                asked.append(Asked(topic.relation, wording, question, questions.answer(shown, topic)))
    return asked


def _text_questions() -> list[Asked]:
    rng, asked = np.random.default_rng(CARD_SEED), []
    for country in catalog.countries():
        for relation in questions.TEXT_RELATIONS:
            for wording in _WORDINGS:
                prompt, answer = questions.ask_country(country, relation, wording, rng)
                asked.append(Asked(relation, wording, Question(prompt), answer))
    return asked


def _fact_questions() -> list[Asked]:
    rng = np.random.default_rng(LANGUAGE_CARD_SEED)
    facts = [(subject, relation) for subject in people.known_subjects() for relation in subject.relations]
    return [
        Asked(
            relation,
            wording,
            Question(facts_asked.ask(subject.name, relation, wording, rng)),
            subject.answer(relation),
        )
        for wording in _WORDINGS
        for subject, relation in facts
    ]
