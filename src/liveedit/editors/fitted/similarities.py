"""The features by which fitted experts are found, and how they are compared."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from ...backbones import TokenBatch
from ..shared.reading import last_of_prompt
from ..shared.routing import QueryFeatures, Weighting
from .calibration import Calibration, Modality
from .config import FittedConfig
from .text_similarity import (
    NUMBER_SLOTS,
    TOKENS,
    has_numbers_of,
    main_tokens,
    number_slots,
    token_similarity,
)
from .whitening import content_of

_SHARPNESS: Final = 50.0
"""A prompt similarity of 0.02 above its threshold is a weight of 0.73."""

_READING_SHARE: Final = 0.5
"""Weight of the reading beside the content, where the nearest of several edits is taken."""

_COMPARED: Final = 0.4
"""Similarity of the contents of two texts from which their tokens are compared."""


@dataclass(frozen=True)
class _Routing:
    """Settings of routing that `route` reads: the weight of an expert is sigmoid(s)."""

    weighting: Weighting = "absolute"
    top_experts: int | None = None


@dataclass(frozen=True)
class _PromptFeature:
    """The parts of a prompt feature, which is one vector.

    rows: with an image, the reading in the first one; of a text, its main tokens. weights: of the tokens.
    numbers: those in a text. image: 1 with an image, 0 without.
    """

    rows: Float[Tensor, "*batch main width"]
    weights: Float[Tensor, "*batch main"]
    numbers: Float[Tensor, "*batch slots"]
    image: Float[Tensor, "*batch"]

    @staticmethod
    def length(width: int) -> int:
        """Length of the vector."""
        return TOKENS * (width + 1) + NUMBER_SLOTS + 1

    @property
    def vector(self) -> Tensor:
        """All parts, one after the other."""
        return torch.cat([self.rows.flatten(-2), self.weights, self.numbers, self.image[..., None]], -1)

    @classmethod
    def of(cls, vector: Tensor) -> _PromptFeature:
        """The parts of a vector, as views."""
        further = TOKENS + NUMBER_SLOTS + 1
        rows = vector[..., :-further].unflatten(-1, (TOKENS, -1))
        weights, numbers, image = vector[..., -further:].split([TOKENS, NUMBER_SLOTS, 1], -1)
        return cls(rows, weights, numbers, image[..., 0])


class StateSimilarities:
    """Features from hidden states alone, all whitened and of length 1.

    content c: the tokens of the image, or of a question without one, at the content layer, the most unusual ones most.
    reading r: the last token of the prompt at the reading layer, which has read image and question.

    Hard routing: a query may fire an edit if their contents are similar (the sentinel is the threshold). Questions with
    an image and questions without one never match.
    Soft routing, with an image: the readings are similar, r . r_e >= least_reading. Without one: the main tokens are
    similar (`token_similarity`), and the query has every number of the edit.

    read_text: the text of some token ids, for its numbers.
    """

    def __init__(self, calibration: Calibration, config: FittedConfig, read_text: Callable[[list[int]], str]):
        self.calibration, self.settings, self._read_text = calibration, config, read_text
        self.config = _Routing()
        self.visual_scale = 1.0

    def shapes(self, width: int) -> dict[str, tuple[int, ...]]:
        """The shapes of an expert's features by field name."""
        return {
            "visual_feature": (width + 3,),
            "prompt_feature": (_PromptFeature.length(width),),
            "query_feature": (2 * width,),
        }

    def query(
        self,
        tokens: TokenBatch,
        content_states: Float[Tensor, "batch tokens width"],
        reading_states: Float[Tensor, "batch tokens width"],
    ) -> QueryFeatures:
        """Features of queries, from the hidden states at the content layer and at the reading layer."""
        content, reading, prompt = self._features(tokens, content_states, reading_states)
        image = tokens.has_image.to(content.dtype)[:, None]
        least = content.new_tensor([self._least_content(found) for found in tokens.has_image.tolist()])[:, None]
        one, zeros = torch.ones_like(image), torch.zeros_like(content)
        return QueryFeatures(
            visual=torch.cat([content, image, 1 - image, one], -1),
            sentinel=torch.cat([zeros, 0 * image, 0 * image, 1 + least], -1),
            prompt=prompt,
            own=torch.cat([content, math.sqrt(_READING_SHARE) * reading], -1),
        )

    def edit_features(self, query: QueryFeatures) -> tuple[Tensor, Tensor, Tensor]:
        """visual_feature, prompt_feature and query_feature of edits, from the features of their own questions."""
        visual = query.visual.clone()
        visual[..., -1] = 0.0  # A query has 1 here, for the sentinel's threshold.
        return visual, query.prompt, query.compared

    def visual_score(self, query: Tensor, edit: Tensor) -> Tensor:
        """Similarity of contents, along the last dimension; 1 more if both or neither have an image."""
        return (query * edit).sum(-1)

    def prompt_score(self, query: Tensor, edit: Tensor) -> Tensor:
        """s: how far readings, or the tokens of texts, are within what is allowed, along the last dimension."""
        asked, edited = _PromptFeature.of(query), _PromptFeature.of(edit)
        # Row by row: how a matrix product rounds depends on how many edits are compared at once.
        products = [(asked.rows[..., [row], :] * edited.rows).sum(-1) for row in range(TOKENS)]
        cosines = torch.stack(products, -2)
        of_images = cosines[..., 0, 0] - self._least_reading
        similar = token_similarity(cosines, asked.weights, edited.weights) - self.calibration.text.least_similarity
        of_texts = torch.where(has_numbers_of(asked.numbers, edited.numbers), similar, -torch.ones_like(similar))
        return _SHARPNESS * torch.where(asked.image > 0, of_images, of_texts)

    # -- inside ------------------------------------------------------------------------------------------

    @property
    def _least_reading(self) -> float:
        if self.settings.least_reading is not None:
            return self.settings.least_reading
        return 0.0 if self.calibration.image is None else self.calibration.image.least_reading

    def _least_content(self, image: bool) -> float:
        return max(0.0, self._modality(True).least_similarity) if image else _COMPARED

    def _modality(self, image: bool) -> Modality:
        found = self.calibration.image if image else self.calibration.text
        assert found is not None, "an image reached a model that reads text alone"
        return found

    def _features(
        self, tokens: TokenBatch, content_states: Tensor, reading_states: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Content, reading, (batch, width) each, and prompt features."""
        last = last_of_prompt(reading_states, tokens.prompt_mask)
        inside = self.calibration.template.content_mask(tokens)
        found = []
        # Each row alone: no bit of a feature depends on the other questions of a batch.
        for row, has_image in enumerate(tokens.has_image.tolist()):
            modality = self._modality(has_image)
            reading = F.normalize(modality.reading(last[row]), dim=-1)
            whitened = modality.content(content_states[row][inside[row]])
            content = content_of(whitened)
            if has_image:
                prompt = _image_prompt(reading)
            else:
                prompt = self._text_prompt(whitened, tokens.input_ids[row][inside[row]])
            found.append((content, reading, prompt.vector))
        contents, readings, prompts = zip(*found, strict=True)
        return torch.stack(contents), torch.stack(readings), torch.stack(prompts)

    def _text_prompt(self, whitened: Tensor, input_ids: Tensor) -> _PromptFeature:
        rows, weights = main_tokens(whitened)
        numbers = number_slots(self._read_text(input_ids[input_ids >= 0].tolist()))
        return _PromptFeature(rows, weights, numbers.to(rows), rows.new_zeros(()))


def _image_prompt(reading: Tensor) -> _PromptFeature:
    rows = reading.new_zeros(TOKENS, len(reading))
    rows[0] = reading
    return _PromptFeature(rows, rows.new_zeros(TOKENS), rows.new_zeros(NUMBER_SLOTS), rows.new_ones(()))
