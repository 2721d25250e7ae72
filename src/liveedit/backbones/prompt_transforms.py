"""Prompt transforms: another wording, a soft prompt, or another model in place of the backbone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ..errors import BackboneError
from ..samples import Question
from .tokens import PreparedQuestion, SubstituteModel, TokenBatch

PromptTransform = Callable[[Sequence[Question]], Sequence[PreparedQuestion]]
"""`Backbone.encode` calls it with the questions of a batch and encodes what it returns."""


class TransformedPrompts:
    """The part of a backbone that knows how questions reach the model."""

    name: str
    _transform: PromptTransform | None = None

    def prepared(self, questions: Sequence[Question]) -> tuple[PreparedQuestion, ...]:
        """How each question reaches the model; none if no prompt transform is set."""
        return () if self._transform is None else tuple(self._transform(questions))

    @contextmanager
    def transformed(self, transform: PromptTransform | None) -> Iterator[None]:
        """Inside, questions reach the model through `transform`, or unchanged if it is None."""
        before, self._transform = self._transform, transform
        try:
            yield
        finally:
            self._transform = before

    def set_transform(self, transform: PromptTransform) -> None:
        """From now on questions reach the model through `transform`, until `remove_transform`.

        Only `encode` applies it. Raises `BackboneError` if another transform is set.
        """
        if self._transform is not None and self._transform != transform:
            raise BackboneError(
                f"Another editor already transforms the prompts of {self.name}. Detach it before attaching the next."
            )
        self._transform = transform

    def remove_transform(self, transform: PromptTransform) -> None:
        """Remove a transform. Nothing happens if it is not the one that is set."""
        if self._transform == transform:
            self._transform = None


def unchanged(questions: Sequence[Question]) -> list[PreparedQuestion]:
    """The questions as they are."""
    return [PreparedQuestion(question) for question in questions]


def substitutes(prepared: Sequence[PreparedQuestion]) -> list[tuple[SubstituteModel, list[int]]]:
    """Each substitute model with the rows that it answers, in the order of their first rows."""
    found: dict[int, tuple[SubstituteModel, list[int]]] = {}
    for row, item in enumerate(prepared):
        if item.substitute is not None:
            found.setdefault(id(item.substitute), (item.substitute, []))[1].append(row)
    return list(found.values())


@contextmanager
def prefixes_embedded(embeddings: nn.Embedding, inputs: TokenBatch) -> Iterator[None]:
    """Inside, the embedding layer returns a batch's soft prompts in place of the embeddings of its prefix tokens."""
    prefixes = [item.prefix for item in inputs.prepared if item.prefix is not None]
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
        generated = torch.zeros(len(ids), ids.shape[1] - mask.shape[1], dtype=torch.bool, device=mask.device)
        mask = torch.cat([mask, generated], 1).to(output.device)
        rows = values if repeated == 1 else torch.cat([part for prefix in prefixes for part in [prefix] * repeated])
        return output.masked_scatter(mask[..., None], rows.to(output))

    handle = embeddings.register_forward_hook(embed)
    try:
        yield
    finally:
        handle.remove()
