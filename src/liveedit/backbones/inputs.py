"""Questions as tensors: which tokens are image, prompt and answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Inputs:
    """A batch of questions, with or without answers.

    input_ids, attention_mask: (batch, length) integers.
    image_mask, prompt_mask, answer_mask: (batch, length) booleans, disjoint; padding is in none of them. The
        prompt mask covers every text token before the answer, those of the template included; the answer mask
        covers the answer and the end-of-sequence token behind it.
    pixel_values: (pictures, channels, height, width), one for each row of `has_image`, or None.
    """

    input_ids: Tensor
    attention_mask: Tensor
    image_mask: Tensor
    prompt_mask: Tensor
    answer_mask: Tensor
    pixel_values: Tensor | None

    @property
    def has_image(self) -> Tensor:
        """(batch,) booleans: which rows have a picture."""
        return self.image_mask.any(1)

    @property
    def text_mask(self) -> Tensor:
        """(batch, length) booleans: prompt and answer."""
        return self.prompt_mask | self.answer_mask

    def model_inputs(self) -> dict[str, Tensor]:
        """What the model's own forward and generate take."""
        inputs = {"input_ids": self.input_ids, "attention_mask": self.attention_mask}
        return inputs if self.pixel_values is None else {**inputs, "pixel_values": self.pixel_values}

    def to(self, device: torch.device) -> Inputs:
        """The same batch on another device."""
        moved = {name: value.to(device) for name, value in vars(self).items() if value is not None}
        return replace(self, **moved)

    def __len__(self) -> int:
        return len(self.input_ids)


def pad(rows: Sequence[Sequence[int]], fill: int, side: str) -> Tensor:
    """Ragged integer rows as (rows, longest), filled on one side."""
    longest = max(len(row) for row in rows)
    fills = [[fill] * (longest - len(row)) for row in rows]
    padded = [[*gap, *row] if side == "left" else [*row, *gap] for row, gap in zip(rows, fills, strict=True)]
    return torch.tensor(padded)
