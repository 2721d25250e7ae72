"""What may stand between a question and the model: another wording, a soft prompt, or another model's answer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn

from ..samples import Question

if TYPE_CHECKING:
    from .tokens import Inputs


class SubstituteModel(Protocol):
    """Answers in the model's place."""

    def generate(self, questions: Sequence[Question], max_new_tokens: int) -> list[str]:
        """Greedy answers."""
        ...

    def logits(self, questions: Sequence[Question], inputs: Inputs, rows: Sequence[int]) -> Tensor:
        """(rows, length, vocabulary) of these rows of `inputs`; only those at `inputs.predicting` are looked at."""
        ...


@dataclass(frozen=True)
class PreparedQuestion:
    """How one question reaches the model.

    question: what the model is asked; its image may not be taken away or added. prefix: (tokens, width) embeddings
    before the first token. answerer: who answers instead of the model.
    """

    question: Question
    prefix: Tensor | None = None
    substitute: SubstituteModel | None = None


PromptTransform = Callable[[Sequence[Question]], Sequence[PreparedQuestion]]
"""Called by `Backbone.encode` with the questions of a batch."""


def unchanged(questions: Sequence[Question]) -> list[PreparedQuestion]:
    """What reaches the model where nothing stands between."""
    return [PreparedQuestion(question) for question in questions]


def substitutes(asked: Sequence[PreparedQuestion]) -> list[tuple[SubstituteModel, list[int]]]:
    """Each answerer with its rows, in the order of their first rows."""
    found: dict[int, tuple[SubstituteModel, list[int]]] = {}
    for row, item in enumerate(asked):
        if item.substitute is not None:
            found.setdefault(id(item.substitute), (item.substitute, []))[1].append(row)
    return list(found.values())


@contextmanager
def prefixes_embedded(embeddings: nn.Embedding, inputs: Inputs) -> Iterator[None]:
    """During a call, the word embeddings of a batch's prefix tokens are the soft prompts that it was encoded with."""
    prefixes = [item.prefix for item in inputs.asked if item.prefix is not None]
    if not prefixes:
        yield
        return
    values = torch.cat(prefixes)

    def embed(module: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        ids = arguments[0]
        if ids.ndim != 2 or ids.shape[1] < inputs.prefix_mask.shape[1] or len(ids) % len(inputs):
            return None  # A token that is decoded from the cache: the prompt has passed.
        repeated = len(ids) // len(inputs)  # Beams and several sequences repeat each question.
        mask = inputs.prefix_mask.repeat_interleave(repeated, 0)
        grown = torch.zeros(len(ids), ids.shape[1] - mask.shape[1], dtype=torch.bool, device=mask.device)
        mask = torch.cat([mask, grown], 1).to(output.device)
        rows = values if repeated == 1 else torch.cat([part for prefix in prefixes for part in [prefix] * repeated])
        return output.masked_scatter(mask[..., None], rows.to(output))

    handle = embeddings.register_forward_hook(embed)
    try:
        yield
    finally:
        handle.remove()
