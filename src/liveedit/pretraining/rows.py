"""Rows for training: several questions about one image in one row, and the loss of their answers.

Every question sees the image and itself only, and its positions continue those of the image. The image is computed once
for all answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

Turn = tuple[str, str]
"""A prompt and its answer."""


@dataclass(frozen=True)
class Layout:
    """How prompts are laid out.

    tokenizer: with a token "<image>". image_head, text_head: what stands before every question, with and without an
    image, special tokens as text. question, answer: what a question and an answer become. image_tokens: tokens of an
    image.
    """

    tokenizer: Any
    image_head: str
    text_head: str
    question: str
    answer: str
    image_tokens: int


@dataclass(frozen=True)
class PackedRows:
    """Token ids, positions, segments (0: shared by all, -1: padding) and labels, each (rows, length)."""

    ids: Tensor
    positions: Tensor
    segments: Tensor
    labels: Tensor

    def attention_mask(self, dtype: torch.dtype) -> Tensor:
        """Additive mask (rows, 1, length, length): earlier tokens of segment 0 and of one's own segment."""
        own = self.segments[:, :, None] == self.segments[:, None, :]
        shared = (self.segments == 0)[:, None, :]
        length = self.ids.shape[1]
        seen = (own | shared) & torch.ones(length, length, dtype=torch.bool).tril()
        return torch.zeros(seen.shape, dtype=dtype).masked_fill(~seen, torch.finfo(dtype).min)[:, None]


class RowPacker:
    """Turns questions and answers into `PackedRows`, and caches each text's tokens."""

    def __init__(self, layout: Layout):
        self.layout, self.tokenizer = layout, layout.tokenizer
        self._image_id = self.tokenizer.convert_tokens_to_ids("<image>")
        self._tokens: dict[str, list[int]] = {}

    def pack(self, rows: Sequence[tuple[bool, Sequence[Turn]]]) -> PackedRows:
        """Rows of (has an image, turns)."""
        packed = [self._row(with_image, turns) for with_image, turns in rows]
        length = max(len(row[0]) for row in packed)
        fills = (self.tokenizer.pad_token_id, 0, -1, -100)
        columns = [
            torch.tensor([row[part] + [fill] * (length - len(row[part])) for row in packed])
            for part, fill in enumerate(fills)
        ]
        return PackedRows(*columns)

    def _row(self, with_image: bool, turns: Sequence[Turn]) -> tuple[list[int], ...]:
        head = self._head(with_image)
        ids, positions = list(head), list(range(len(head)))
        segments, labels = [0] * len(head), [-100] * len(head)
        for index, (prompt, answer) in enumerate(turns):
            asked = self._encode(self.layout.question.format(prompt))
            answered = [*self._encode(self.layout.answer.format(answer)), self.tokenizer.eos_token_id]
            ids += asked + answered
            positions += range(len(head), len(head) + len(asked) + len(answered))
            segments += [index + 1] * (len(asked) + len(answered))
            labels += [-100] * len(asked) + answered
        return ids, positions, segments, labels

    def _head(self, with_image: bool) -> list[int]:
        """The tokens before every question, image tokens included."""
        ids: list[int] = []
        for token in self._encode(self.layout.image_head if with_image else self.layout.text_head):
            ids += [token] * (self.layout.image_tokens if token == self._image_id else 1)
        return ids

    def _encode(self, text: str) -> list[int]:
        if text not in self._tokens:
            self._tokens[text] = self.tokenizer.encode(text, add_special_tokens=False)
        return self._tokens[text]


def answer_logits(
    language: Any, rows: PackedRows, image: Tensor, image_id: int, **options: Any
) -> tuple[Any, Tensor, Tensor]:
    """The decoder's output for packed rows, the logits where answers are predicted, and the tokens of the answers.

    Logits are (answer tokens, vocabulary). image: (images, image tokens, width), in the order of the rows that have
    one.
    """
    embeddings = language.embed_tokens(rows.ids)
    embeddings = embeddings.masked_scatter((rows.ids == image_id)[..., None], image.to(embeddings.dtype))
    output = language(
        inputs_embeds=embeddings,
        attention_mask=rows.attention_mask(embeddings.dtype),
        position_ids=rows.positions,
        use_cache=False,
        **options,
    )
    answered = rows.labels[:, 1:] >= 0
    logits = F.linear(output.last_hidden_state[:, :-1][answered], language.embed_tokens.weight)
    return output, logits.float(), rows.labels[:, 1:][answered]
