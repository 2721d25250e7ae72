"""The model card of a built-in language model: what it answers in wordings it has and has not seen."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ..backbones.backbone import Backbone
from ..datasets.facts import catalog, questions
from ..datasets.facts.questions import Wording
from ..samples import Question
from .language_models import BuiltInLanguageModel
from .vision_card import Accuracy

CARD_SEED = 990_002
"""Seed of the wordings that the card asks in."""


def measure_language_model(
    backbone: Backbone, batch: int = 256, progress: Callable[[int, int], None] = lambda d, t: None
) -> Accuracy:
    """Ask for every fact of every known subject, in each group of wordings; exact match of free generation."""
    rng = np.random.default_rng(CARD_SEED)
    facts = [(subject, relation) for subject in catalog.known_subjects() for relation in subject.relations]
    asked = [
        (relation, wording, questions.ask(subject.name, relation, wording, rng), subject.answer(relation))
        for wording in _COLUMNS
        for subject, relation in facts
    ]
    right: dict[tuple[str, str], list[bool]] = defaultdict(list)
    for start in range(0, len(asked), batch):
        part = asked[start : start + batch]
        inputs = backbone.encode([Question(prompt) for _, _, prompt, _ in part], padding="left")
        for (relation, wording, _, truth), given in zip(part, backbone.generate(inputs, 12), strict=True):
            right[relation, wording].append(given == truth)
        progress(min(start + batch, len(asked)), len(asked))
    found: Accuracy = defaultdict(dict)
    for (relation, wording), values in right.items():
        found[relation][wording] = round(100 * sum(values) / len(values), 2)
    return dict(found)


def write_language_card(
    built_in: BuiltInLanguageModel, accuracy: Accuracy, facts: dict[str, object], folder: Path
) -> None:
    """`model_card.json` for programs and `README.md` for people, beside the weights."""
    (folder / "model_card.json").write_text(json.dumps({"accuracy": accuracy, **facts}, indent=2) + "\n")
    header = "| question type | " + " | ".join(_COLUMNS.values()) + " |\n|---|" + "---|" * len(_COLUMNS)
    rows = [
        f"| {relation} | " + " | ".join(f"{values[wording]:.1f}" for wording in _COLUMNS) + " |"
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

transformers' `{base}` in small ({summary}), pretrained on made-up facts about people and towns by
`liveedit train-backbone {name} --out DIR --card`. Weights in fp16. It knows those facts and no others: any other text
is accepted, up to 4,096 of its tokens, and answered with words of that world or with none.

Exact match of free generation in percent, over every fact that it was taught:

{table}

{notes}
"""
