"""The features by which fitted experts are found, and how they are compared."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from ...backbones import HiddenTokens
from ..shared.routing import QueryFeatures, Weighting
from .calibration import Calibration, Modality, reading_margin, text_content
from .config import FittedConfig
from .reading import last_of_prompt, mean_of_image

_SHARPNESS: Final = 50.0
"""A prompt similarity of 0.02 above its threshold is a weight of 0.73."""

_READING_SHARE: Final = 0.5
"""Weight of the reading beside the content, where the nearest of several edits is taken."""


@dataclass(frozen=True)
class _Routing:
    """Settings of routing that `route` reads: the weight of an expert is sigmoid(s)."""

    weighting: Weighting = "absolute"
    top_experts: int | None = None


class StateSimilarities:
    """Features from hidden states alone, all whitened and of length 1.

    content c: of a question with an image, the mean of the image at the edit layer; of a text, its tokens at the text
    layer, those of rare words most. reading r: the last token of the prompt at the edit layer, which has read image and
    question.

    A query may fire an edit if their contents are similar (hard routing; the sentinel is the threshold of the
    calibration) and, with an image, if the readings do not differ more than the images explain (soft routing):

        r . r_e >= least_reading    and    1 - r . r_e <= tolerance + slope (1 - c . c_e)

    Questions with an image and questions without one never match.
    """

    def __init__(self, calibration: Calibration, config: FittedConfig):
        self.calibration, self.settings = calibration, config
        self.config = _Routing()
        self.visual_scale = 1.0

    def shapes(self, width: int) -> dict[str, tuple[int, ...]]:
        """The shapes of an expert's features by field name."""
        return {"visual_feature": (width + 3,), "prompt_feature": (2 * width + 1,), "query_feature": (2 * width,)}

    def query(self, tokens: HiddenTokens, text_states: Float[Tensor, "batch tokens width"]) -> QueryFeatures:
        """Features of queries. text_states: hidden states at the text layer."""
        content, reading = self._features(tokens, text_states)
        image = tokens.has_image.to(content.dtype)[:, None]
        least = content.new_tensor([self._least(bool(found)) for found in tokens.has_image])[:, None]
        one, zeros = torch.ones_like(image), torch.zeros_like(content)
        return QueryFeatures(
            visual=torch.cat([content, image, 1 - image, one], -1),
            sentinel=torch.cat([zeros, 0 * image, 0 * image, 1 + least], -1),
            prompt=torch.cat([reading, content, image], -1),
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
        """s: how far the readings are within what is allowed, along the last dimension; constant for texts."""
        width = query.shape[-1] // 2
        product = query * edit
        reading, content = product[..., :width].sum(-1), product[..., width : 2 * width].sum(-1)
        inside = reading_margin(reading, content, self.settings)
        return _SHARPNESS * torch.where(query[..., -1] > 0, inside, torch.ones_like(inside))

    # -- inside ------------------------------------------------------------------------------------------

    def _least(self, image: bool) -> float:
        return max(0.0, self._modality(image).least_content)

    def _modality(self, image: bool) -> Modality:
        found = self.calibration.image if image else self.calibration.text
        assert found is not None, "an image reached a model that reads text alone"
        return found

    def _features(self, tokens: HiddenTokens, text_states: Tensor) -> tuple[Tensor, Tensor]:
        """Content and reading, (batch, width) each."""
        images, last = mean_of_image(tokens), last_of_prompt(tokens)
        asked = self.calibration.template.question_mask(tokens)
        contents, readings = [], []
        # Each row alone: no bit of a feature depends on the other questions of a batch.
        for row, has_image in enumerate(tokens.has_image.tolist()):
            modality = self._modality(has_image)
            readings.append(F.normalize(modality.reading(last[row]), dim=-1))
            if has_image:
                contents.append(F.normalize(modality.content(images[row]), dim=-1))
            else:
                contents.append(text_content(text_states[row][asked[row]], modality.content))
        return torch.stack(contents), torch.stack(readings)
