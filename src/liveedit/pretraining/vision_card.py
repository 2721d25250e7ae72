"""The model card: what a built-in backbone answers on images and wordings it has never seen."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ..backbones.backbone import Backbone
from ..datasets.world import catalog, drawing, questions, scene
from ..datasets.world.questions import Wording
from ..samples import Question
from .models import BuiltIn

CARD_SEED = 990_001
"""Far from the seeds that anything is trained on."""

Accuracy = dict[str, dict[str, float]]
"""Exact match of free generation in percent, by question type and wording."""


def measure_backbone(
    backbone: Backbone, images: int = 400, batch: int = 128, progress: Callable[[int, int], None] = lambda d, t: None
) -> Accuracy:
    """Ask every topic of fresh images of known creatures, and every text-only fact, in all groups of wordings."""
    asked = [*_image_questions(images), *_text_questions()]
    right: dict[tuple[str, str], list[bool]] = defaultdict(list)
    for start in range(0, len(asked), batch):
        part = asked[start : start + batch]
        answers = backbone.generate(backbone.encode([item[2] for item in part], padding="left"), 12)
        for (relation, wording, _, truth), given in zip(part, answers, strict=True):
            right[relation, wording].append(given == truth)
        progress(min(start + batch, len(asked)), len(asked))
    found: Accuracy = defaultdict(dict)
    for (relation, wording), values in right.items():
        found[relation][wording] = round(100 * sum(values) / len(values), 2)
    return dict(found)


def write_card(built_in: BuiltIn, accuracy: Accuracy, facts: dict[str, object], folder: Path) -> None:
    """`model_card.json` for programs and `README.md` for people, beside the weights."""
    (folder / "model_card.json").write_text(json.dumps({"accuracy": accuracy, **facts}, indent=2) + "\n")
    header = "| question type | " + " | ".join(_COLUMNS.values()) + " |\n|---|" + "---|" * len(_COLUMNS)
    rows = [
        f"| {relation.replace('_', ' ')} | " + " | ".join(f"{values[wording]:.1f}" for wording in _COLUMNS) + " |"
        for relation, values in accuracy.items()
    ]
    notes = "\n".join(f"- {name.replace('_', ' ')}: {value}" for name, value in facts.items())
    text = _CARD.format(
        name=built_in.name, base=built_in.base, summary=built_in.summary, table="\n".join([header, *rows]), notes=notes
    )
    (folder / "README.md").write_text(text, encoding="utf-8")


_COLUMNS: dict[Wording, str] = {
    "train": "trained wordings",
    "unseen_by_editor": "wordings no editor is trained on",
    "unseen": "wordings never seen",
}
_CARD = """# {name}

transformers' `{base}` in small ({summary}), pretrained on the drawn world by `liveedit train-backbone {name}`.
Weights in fp16. It is good for the drawn world and for nothing else: real pictures and other questions are accepted,
and answered with words of that world.

Exact match of free generation in percent, on pictures drawn from a seed that nothing is trained on
(`liveedit train-backbone {name} --card`):

{table}

{notes}
"""


def _image_questions(images: int) -> list[tuple[str, Wording, Question, str]]:
    known, asked = catalog.known_creatures(), []
    for index in range(images):
        rng = np.random.default_rng([CARD_SEED, index])
        shown = scene.draw_scene(f"card-{index}", known[index % len(known)], rng)
        image = drawing.draw(shown, drawing.draw_pose(rng))
        for topic in questions.topics(shown):
            for wording in _COLUMNS:
                question = Question(questions.ask(topic, wording, rng), image)
                asked.append((topic.relation, wording, question, questions.answer(shown, topic)))
    return asked


def _text_questions() -> list[tuple[str, Wording, Question, str]]:
    rng, asked = np.random.default_rng(CARD_SEED), []
    for country in catalog.countries():
        for relation in questions.TEXT_RELATIONS:
            for wording in _COLUMNS:
                prompt, answer = questions.ask_country(country, relation, wording, rng)
                asked.append((relation, wording, Question(prompt), answer))
    return asked
