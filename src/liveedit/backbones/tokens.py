"""Questions as tensors: which tokens are image, prompt and answer."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor

from .prompt_transforms import PreparedQuestion


class Layout(Protocol):
    """What a decoder has to know of tokens besides their states; both `Inputs` and kept states are one."""

    @property
    def attention_mask(self) -> Tensor:
        """(batch, length) integers, 0 where padding is."""
        ...

    @property
    def image_mask(self) -> Tensor:
        """(batch, length) booleans."""
        ...

    @property
    def positions(self) -> Tensor | None:
        """(axes, batch, length) where the family has positions of its own, None where the decoder counts."""
        ...


@dataclass(frozen=True)
class Inputs:
    """A batch of questions, with or without answers.

    input_ids, attention_mask: (batch, length) integers.
    image_mask, prompt_mask, answer_mask: (batch, length) booleans, disjoint; padding is in none of them. The
        prompt mask covers every text token before the answer, those of the template included; the answer mask
        covers the answer and the end-of-sequence token behind it.
    asked: how each question reaches the model, where something stands between; empty where nothing does.
    extras: what the model takes besides, by the model's own names: pixels, image sizes, token types.
    positions: (axes, batch, length) integers, only for families whose positions are not a plain count.
    """

    input_ids: Tensor
    attention_mask: Tensor
    image_mask: Tensor
    prompt_mask: Tensor
    answer_mask: Tensor
    extras: Mapping[str, Tensor] = field(default_factory=dict)
    positions: Tensor | None = None
    asked: tuple[PreparedQuestion, ...] = ()

    @property
    def prefix_mask(self) -> Tensor:
        """(batch, length) booleans: tokens that stand for a soft prompt."""
        return self.attention_mask.bool() & ~(self.image_mask | self.prompt_mask | self.answer_mask)

    @property
    def pixel_values(self) -> Tensor | None:
        """Pixels in the shape of the family's image processor, None where no row has an image."""
        return self.extras.get("pixel_values")

    @property
    def has_image(self) -> Tensor:
        """(batch,) booleans: which rows have an image."""
        return self.image_mask.any(1)

    @property
    def text_mask(self) -> Tensor:
        """(batch, length) booleans: prompt and answer."""
        return self.prompt_mask | self.answer_mask

    @property
    def predicting(self) -> Tensor:
        """(batch, length) booleans: the positions before each answer token."""
        return before_each(self.answer_mask)

    def model_inputs(self) -> dict[str, Tensor]:
        """What the model's own forward and generate take."""
        return {"input_ids": self.input_ids, "attention_mask": self.attention_mask, **self.extras}

    def to(self, device: torch.device) -> Inputs:
        """The same batch on another device."""
        moved = {name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **moved, extras={name: value.to(device) for name, value in self.extras.items()})

    def __len__(self) -> int:
        return len(self.input_ids)


def before_each(mask: Tensor) -> Tensor:
    """(batch, length) booleans: the positions one before those of a mask."""
    return torch.cat([mask[:, 1:], torch.zeros_like(mask[:, :1])], 1)


def pad(rows: Sequence[Sequence[int]], fill: int, side: str) -> Tensor:
    """Ragged integer rows as (rows, longest), filled on one side."""
    longest = max(len(row) for row in rows)
    fills = [[fill] * (longest - len(row)) for row in rows]
    padded = [[*gap, *row] if side == "left" else [*row, *gap] for row, gap in zip(rows, fills, strict=True)]
    return torch.tensor(padded)


class ForwardContext(threading.local):
    """What each thread asks a backbone at the moment."""

    inputs: Inputs | None = None
