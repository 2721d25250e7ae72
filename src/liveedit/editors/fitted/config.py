"""Configuration of fitted experts. Layers have defaults that follow from the backbone's depth."""

from __future__ import annotations

import math
from typing import Final

from pydantic import Field

from ...backbones import Backbone
from ...errors import BackboneError
from ..shared.fitting import FittingConfig
from ..shared.routing import Combining

_EDIT_DEPTH: Final = 5 / 6
"""The edit layer, as a share of the depth: there, the last token of a prompt has read all of the question."""

_CONTENT_LAYER: Final = 1
"""The content layer: there, tokens have seen their neighbours in a word, and still say what they are."""

_READING_DEPTH: Final = 3 / 4
"""The reading layer, as a share of the depth, rounded up: there, the last token of a prompt holds what is asked, and
not yet the answer, which different questions may have in common."""


class FittedConfig(FittingConfig):
    """Where experts are fitted, how, and when they fire."""

    layer: int | None = Field(
        default=None,
        ge=0,
        description="Decoder layer whose output is edited, counted from 0. None: at 5/6 of the depth.",
    )
    content_layer: int | None = Field(
        default=None,
        ge=0,
        description="Layer at which the content of an image or a text is read, up to the edit layer. None: the second.",
    )
    reading_layer: int | None = Field(
        default=None,
        ge=0,
        description="Layer at which the end of a prompt is read, up to the edit layer. None: at 3/4 of the depth.",
    )
    gate_rate: float = Field(default=0.0, ge=0, description="Learning rate on U, relative to its spread.")
    wordings: int = Field(
        default=6, ge=2, description="Wordings of the prompt on which an expert is fitted, the prompt included."
    )
    rows: int = Field(default=3, ge=2, description="Wordings in one gradient step, the prompt among them.")
    false_firing: float = Field(
        default=0.01,
        gt=0,
        lt=1,
        description="Share of the calibration's hard questions, without an image, that would fire for an edit of the "
        "same question about something else.",
    )
    image_matches: float = Field(
        default=0.004,
        gt=0,
        lt=1,
        description="Share of the pairs of the calibration's images that pass for images of the same thing. Their "
        "readings must match too before an edit fires.",
    )
    reading_matches: float = Field(
        default=0.1,
        gt=0,
        lt=1,
        description="Share of the calibration's pairs of different questions about one image that pass for the same "
        "question.",
    )
    least_reading: float | None = Field(
        default=None,
        ge=-1,
        le=1,
        description="Least similarity of readings, for a question about an image. None: that of the calibration.",
    )

    @property
    def combining(self) -> Combining:
        """The nearest expert alone, wholly or not at all."""
        return Combining(combine="nearest", weight_threshold=0.5)

    def edit_layer(self, backbone: Backbone) -> int:
        """The edit layer on this backbone. Raises `BackboneError` if the model cannot be edited at `layer`."""
        depth = len(backbone.layers)
        chosen = round(_EDIT_DEPTH * depth) - 1 if self.layer is None else self.layer
        if self.layer is None:
            return min(max(chosen, backbone.first_edit_layer), depth - 2)
        if not backbone.first_edit_layer <= chosen <= depth - 2:
            raise BackboneError(
                f"layer={chosen} was given; {backbone.name} can be edited at layers {backbone.first_edit_layer} to "
                f"{depth - 2}."
            )
        return chosen

    def layer_of_content(self, backbone: Backbone) -> int:
        """The content layer on this backbone. Raises `BackboneError` if it follows the edit layer."""
        return self._up_to_edit_layer(backbone, "content_layer", _CONTENT_LAYER)

    def layer_of_reading(self, backbone: Backbone) -> int:
        """The reading layer on this backbone. Raises `BackboneError` if it follows the edit layer."""
        return self._up_to_edit_layer(backbone, "reading_layer", math.ceil(_READING_DEPTH * len(backbone.layers)) - 1)

    def _up_to_edit_layer(self, backbone: Backbone, name: str, default: int) -> int:
        given, edit_layer = getattr(self, name), self.edit_layer(backbone)
        if given is None:
            return min(default, edit_layer)
        if given > edit_layer:
            raise BackboneError(
                f"{name}={given} was given, but the edit layer is {edit_layer}: edits are found there, and a later "
                "layer has not run yet. Give a layer up to it."
            )
        return given
