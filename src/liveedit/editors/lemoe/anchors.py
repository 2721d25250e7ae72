"""A question as one vector: the hidden state at its last token, or the mean of its word embeddings."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from ..shared.reading import last_of_prompt
from .config import LemoeConfig


def grey_image() -> Image.Image:
    """An image without content: its embedding is what all images share."""
    return Image.new("RGB", (448, 448), (128, 128, 128))


@dataclass(frozen=True)
class QueryEmbedding:
    """Pooled embeddings of a batch of questions, from which anchors are made.

    text: (batch, d), the mean of the prompt's word embeddings, or the state at the prompt's last token. image:
    (batch, d), the mean of the projected image tokens, 0 for a question without an image. has_image: (batch,) booleans.
    """

    text: Tensor
    image: Tensor
    has_image: Tensor

    @classmethod
    def of(cls, embeddings: Tensor, image: Tensor, prompt: Tensor) -> QueryEmbedding:
        """From what the decoder receives, (batch, length, d), and the masks of image and prompt, (batch, length)."""
        precise = embeddings.float()
        return cls(_mean(precise, prompt), _mean(precise, image), image.any(1))

    def with_states(self, x: Tensor, prompt: Tensor) -> QueryEmbedding:
        """The same with the FFN's input at the prompt's last token, from (batch, length, d), as the text part.

        The last token of a prompt attends to all of it, and to no answer.
        """
        return replace(self, text=last_of_prompt(x, prompt).float().to(self.image.device))

    def to(self, device: torch.device) -> QueryEmbedding:
        """The same on another device."""
        return QueryEmbedding(self.text.to(device), self.image.to(device), self.has_image.to(device))


def _mean(embeddings: Tensor, mask: Tensor) -> Tensor:
    wanted = mask[..., None]
    # Not a product with the mask: padding may hold anything, infinities included.
    total = torch.where(wanted, embeddings, 0.0).sum(1)
    return total / wanted.sum(1).clamp(min=1)


@dataclass(frozen=True)
class CentringMean:
    """The mean of many questions, (d,) each: the text part without and with an image, and the image part."""

    text: Tensor
    has_image: Tensor
    image: Tensor

    def anchors(self, query: QueryEmbedding, config: LemoeConfig) -> Tensor:
        """Anchors e of length 1: (batch, d), or (batch, 2 d) with an image part, which comes second.

        The paper's e is the plain mean of embeddings over the instance. A mean knows neither the order of words nor
        which of them matter; the state at the last token is what the model itself made of the question, and changes
        little when it is reworded. The image part stands beside it, centred and scaled by itself: image tokens are up
        to 50 times as long as words, and would drown them in one mean.
        """
        text, image = query.text, query.image
        if config.centered:
            text = text - torch.where(query.has_image[:, None], self.has_image, self.text)
            image = image - self.image
        text = F.normalize(text, dim=-1)
        if not config.with_image:
            return text
        image = F.normalize(image, dim=-1) * query.has_image[:, None]
        return F.normalize(torch.cat([text, config.image_length * image], -1), dim=-1)
