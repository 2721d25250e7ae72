"""A question as one vector: the mean of what the decoder receives for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from .config import LemoeConfig

EVERYDAY_QUESTIONS: Final = (
    "What is the capital of this country?",
    "Who wrote the book?",
    "Where was he born?",
    "When did the war end?",
    "What color is the car?",
    "How many people live in the city?",
    "Which team won the game?",
    "What language is spoken there?",
    "Who is the president?",
    "What is in the picture?",
    "What does the animal eat?",
    "Which river is the longest?",
    "What is the name of the company?",
    "Why is the sky blue?",
    "Who plays the main role in the film?",
    "In what year was it founded?",
)
"""What questions have in common, the template's words among it, says nothing of which one is asked."""


def grey_picture() -> Image.Image:
    """What pictures have in common."""
    return Image.new("RGB", (448, 448), (128, 128, 128))


@dataclass(frozen=True)
class Means:
    """Means over a batch of questions.

    text: (batch, d) over the prompt's word embeddings; image: (batch, d) over the projected image tokens, 0 where
    there are none; pictured: (batch,) booleans.
    """

    text: Tensor
    image: Tensor
    pictured: Tensor

    @classmethod
    def of(cls, embeddings: Tensor, image: Tensor, prompt: Tensor) -> Means:
        """From what the decoder receives, (batch, length, d), and which tokens are image and prompt."""
        precise = embeddings.float()
        return cls(_mean(precise, prompt), _mean(precise, image), image.any(1))

    def to(self, device: torch.device) -> Means:
        """The same on another device."""
        return Means(self.text.to(device), self.image.to(device), self.pictured.to(device))


def _mean(embeddings: Tensor, mask: Tensor) -> Tensor:
    wanted = mask[..., None]
    # Not a product with the mask: what stands in padding may be anything, infinities included.
    total = torch.where(wanted, embeddings, 0.0).sum(1)
    return total / wanted.sum(1).clamp(min=1)


@dataclass(frozen=True)
class Origin:
    """What all questions share: the mean text of everyday ones, and the mean of a grey picture; (d,) each."""

    text: Tensor
    image: Tensor

    def anchors(self, means: Means, config: LemoeConfig) -> Tensor:
        """Anchors e of length 1: (batch, d) with `anchor="text"`, else (batch, 2 d), text part first.

        The paper's e is the plain mean over the instance. Ours has the text and the picture side by side, each told
        from its origin and of one length: image tokens are up to 50 times as long as words, and in one mean would
        drown them.
        """
        text, image = means.text, means.image
        if config.centered:
            text, image = text - self.text, image - self.image
        text = F.normalize(text, dim=-1)
        if config.anchor == "text":
            return text
        image = F.normalize(image, dim=-1) * means.pictured[:, None]
        return F.normalize(torch.cat([config.text_weight * text, image], -1), dim=-1)
