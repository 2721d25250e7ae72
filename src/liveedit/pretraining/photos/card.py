"""The card of `smol-llava`: what it answers about photographs and in wordings that it has never seen."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import torch
from torch.nn import functional as F

from ...backbones import Backbone
from ...datasets.photos import looks, questions
from ...datasets.photos.catalog import PhotoClass
from ...datasets.photos.folder import PhotoFolder
from ...datasets.photos.wordings import GROUPS, Wording
from ...editors.shared.neutral_questions import HARD_QUESTIONS
from ...progress import TaskProgress, no_task_progress, progress_of
from ...samples import Question
from ..cards import Accuracy, Asked, accuracy_of, write_files
from .tower_features import TowerFeatures
from .turns import LONGEST_TEXT, answers_to, is_known

CARD_SEED: Final = 990_003
"""Seed of the wordings of the card. No training uses it."""


def measure_photo_model(
    backbone: Backbone,
    photos: PhotoFolder,
    classes: Sequence[PhotoClass],
    most: int | None = None,
    report: TaskProgress = no_task_progress,
) -> Accuracy:
    """Ask every kind of question about photographs for evaluation, in each group of wordings.

    most: photographs of each class; by default all of them.
    """
    asked = list(_asked(photos, classes, most))
    return accuracy_of(backbone, asked, 32, progress_of(report, "model card"))


def _asked(photos: PhotoFolder, classes: Sequence[PhotoClass], most: int | None) -> Iterator[Asked]:
    for number, (found, shown) in enumerate(zip(photos.classes, classes, strict=True)):
        others = [other for place, other in enumerate(classes) if place != number]
        for place, photo in enumerate(found.evaluation[:most]):
            rng, image = np.random.default_rng([CARD_SEED, number, place]), photos.path / photo
            for wording in GROUPS:
                for kind in (*questions.TRUE_KINDS, *questions.IMAGE_KINDS):
                    if is_known(shown, kind):
                        yield _question(kind, shown, others, wording, image, rng)


def _question(
    kind: str, shown: PhotoClass, others: Sequence[PhotoClass], wording: Wording, image: Path, rng: np.random.Generator
) -> Asked:
    if kind in questions.IMAGE_KINDS:
        return Asked(
            kind, wording, Question(questions.ask(kind, wording, rng), image), looks.answer_from_pixels(kind, image)
        )
    prompt, answer = questions.true_question(kind, shown, others, wording, rng)
    return Asked(kind, wording, Question(prompt, image), answer)


def text_agreement(model: Backbone, language: Backbone, report: TaskProgress = no_task_progress) -> dict[str, float]:
    """How often the model answers texts as its language model does on its own, in %.

    texts: how many were asked, those with short answers. same_answers: equal texts. same_tokens: equal most probable
    tokens, after the same beginning of the answer. The questions are in no training.
    """
    prompts = [wording for relation in HARD_QUESTIONS for asked in relation for wording in asked]
    own = answers_to(language, prompts, report)
    asked, answers = [Question(prompt) for prompt, _ in own], [answer for _, answer in own]
    same, right, count = 0, 0, 0
    for start in range(0, len(own), 24):
        part = slice(start, start + 24)
        given = model.generate(model.encode(asked[part], padding="left"), LONGEST_TEXT)
        same += sum(map(str.__eq__, given, answers[part]))
        with torch.no_grad():
            tokens = [backbone.encode(asked[part], answers[part]) for backbone in (model, language)]
            found = [
                backbone.logits(each)[each.predicting].argmax(-1)
                for backbone, each in zip((model, language), tokens, strict=True)
            ]
        right, count = right + int((found[0] == found[1]).sum()), count + len(found[0])
        report("texts", min(start + 24, len(own)), len(own))
    if not own:
        return {"texts": 0}
    shares = {"same_answers": same / len(own), "same_tokens": right / count}
    return {"texts": len(own)} | {name: round(100 * share, 2) for name, share in shares.items()}


def tower_bound(known: TowerFeatures, held_out: TowerFeatures) -> float:
    """Share of held-out photographs, in %, whose class is the nearest by the means of what the tower sees.

    About what a connector can name at most: it has nothing but this.
    """
    means, asked = (each.features[0].float().mean(1) for each in (known, held_out))
    mean, deviation = means.mean(0), means.std(0).clamp(min=1e-6)
    means, asked = (F.normalize((features - mean) / deviation, dim=-1) for features in (means, asked))
    of_class = [means[known.of_class(number)].mean(0) for number in range(len(known.folder.classes))]
    nearest = (asked @ F.normalize(torch.stack(of_class), dim=-1).T).argmax(-1)
    wanted = torch.tensor([number for number, _ in held_out.places])
    return round(100 * float((nearest == wanted).float().mean()), 2)


def write_photo_card(accuracy: Accuracy, facts: dict[str, object], folder: Path) -> None:
    """Write the card beside the weights."""
    write_files(_CARD, _SmolLlava(), accuracy, facts, folder)


class _SmolLlava(NamedTuple):
    name: str = "smol-llava"
    base: str = "LlavaForConditionalGeneration"
    summary: str = "EfficientNet-Lite0, a two-layer connector, SmolLM2-135M-Instruct"


_CARD: Final = """# {name}

transformers' `{base}` ({summary}), joined on photographs by `liveedit train-{name} --photos FOLDER`. Weights in
fp16. The vision tower was trained on ImageNet, the language model on text from the web, each by others.

Exact match of free generation in percent, on photographs that nothing is trained on (`--card`):

{table}

{notes}
"""
