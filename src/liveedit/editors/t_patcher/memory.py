"""The memory: questions on whose queries no patch may become active."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice

import torch
from torch import Tensor

from ...backbones import BUILT_IN, Backbone
from ...datasets.facts import fact_cases
from ...datasets.world import world_cases
from ...datasets.world.cases import WorldProbe
from ...datasets.world.drawing import draw
from ...samples import Question
from .patches import PatchedFeedForward

MEMORY_SEED = 301
"""The seed of the training part of the world, or of the facts, that a built-in backbone's memory is drawn from."""
LONGEST_ANSWER = 16
"""Most tokens of the model's own answers, at which the memory's queries are read."""
_BATCH = 32

PLAIN_QUESTIONS = (
    "What is the capital of France?",
    "What is the capital of Japan?",
    "Who wrote Hamlet?",
    "Who painted the Mona Lisa?",
    "In which year did the Second World War end?",
    "What is the largest planet of the solar system?",
    "What is the chemical symbol of gold?",
    "How many legs does a spider have?",
    "What do bees make?",
    "What color is the sky on a clear day?",
    "What is 7 times 8?",
    "Which language is spoken in Brazil?",
    "On which continent does Egypt lie?",
    "What is the opposite of cold?",
    "How many days does a leap year have?",
    "Which animal is known as man's best friend?",
    "What does a thermometer measure?",
    "Who developed the theory of relativity?",
    "What is the tallest mountain on Earth?",
    "Which ocean lies between Europe and America?",
    "What is the currency of the United Kingdom?",
    "Name a fruit that is yellow.",
    "What is the past tense of 'go'?",
    "Translate 'good morning' into Spanish.",
    "Write a short sentence about the sea.",
    "Give a synonym of 'happy'.",
    "What is needed to make bread?",
    "Why do leaves fall in autumn?",
    "How does a bicycle stay upright?",
    "What happens when water boils?",
    "Explain in one sentence what a computer does.",
    "Tell me something about the moon.",
)
"""The memory of any other backbone, besides the questions given: give those that the model is usually asked."""


def default_memory(backbone: Backbone, count: int) -> list[Question]:
    """Questions that a backbone's memory is made of unless more are given.

    For a built-in backbone `count` questions of the drawn world, with and without images, or for a language model of
    the facts, from a training seed: none of them is ever measured. For other backbones `PLAIN_QUESTIONS`.
    """
    if backbone.name not in BUILT_IN:
        return [Question(text) for text in PLAIN_QUESTIONS]
    return list(islice(_of_the_world(count) if backbone.reads_images else _of_the_facts(count), count))


def _of_the_world(count: int) -> Iterator[Question]:
    kinds = ("text_locality", "modal_locality", "same_image_locality")
    for case in world_cases("train", MEMORY_SEED, -(-count // (1 + len(kinds)))):
        yield _question(case.edit)
        yield from (_question(probe) for probe in case.probes if probe.name in kinds)


def _of_the_facts(count: int) -> Iterator[Question]:
    for case in fact_cases("train", MEMORY_SEED, -(-count // 3)):
        yield case.edit.question
        yield from (probe.question for probe in case.named("text_locality"))


def _question(probe: WorldProbe) -> Question:
    image = probe.image
    return Question(probe.prompt, image and draw(image.scene, image.pose), probe.subject, probe.relation)


@torch.no_grad()
def memory_queries(backbone: Backbone, feed_forward: PatchedFeedForward, questions: Sequence[Question]) -> Tensor:
    """(queries, d) float32: what the last FFN is given where the unedited model writes its own answers."""
    with feed_forward.paused():
        return torch.cat(
            [
                _queries_of(backbone, feed_forward, questions[start : start + _BATCH])
                for start in range(0, len(questions), _BATCH)
            ]
        )


def _queries_of(backbone: Backbone, feed_forward: PatchedFeedForward, questions: Sequence[Question]) -> Tensor:
    answers = backbone.generate(backbone.encode(questions, padding="left"), LONGEST_ANSWER)
    inputs = backbone.encode(questions, answers)
    with feed_forward.keeping() as kept:
        backbone.logits(inputs)
    queries = kept[0].flatten(0, -2).float()
    return queries[inputs.predicting.flatten().to(queries.device)]
