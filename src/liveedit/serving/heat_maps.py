"""`/v1/heat-maps`: which parts of an image a question depends on, and which edits fire for it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Annotated, Any, Final, Literal

import numpy as np
import torch
from fastapi import APIRouter
from PIL import Image
from pydantic import BaseModel, Field
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from ..answering import Answering
from ..answers import Fired
from ..backbones import Backbone
from ..editors.base import ExpertEditor
from ..samples import Question
from .chat import FiredEdit, shown_edits
from .chat_messages import RequestModel, Text, WholeNumber, checked_prompt
from .error_responses import RefusalError
from .served_model import ServedModel
from .service import Service

_MOST_CELLS: Final = 8
"""Most rows and columns of an occlusion map. Each cell costs one image, while other requests wait."""

_BATCH: Final = 17
"""Images in a batch: the whole image and 4 x 4 occluded ones."""


class HeatMapRequest(RequestModel):
    """A question about an image."""

    image: Text = Field(description="A data URI.")
    prompt: Text = Field(min_length=1)
    change_cells: Annotated[int, Field(ge=2, le=_MOST_CELLS), WholeNumber] | None = Field(
        None, description="Rows and columns of the occlusion map; null to make none."
    )


class Area(BaseModel):
    """The part of the image under a map, in fractions of width and height: some models crop the margins."""

    left: float = 0.0
    top: float = 0.0
    width: float = 1.0
    height: float = 1.0


class MapOfImage(BaseModel):
    """A map: rows from top to bottom. A map over "tokens" has one row, whose cells have no place in the image."""

    over: Literal["cells", "tokens"]
    values: list[list[float]] = Field(description="Attention: shares that sum to 1. Change: 0 is none, 1 the most.")
    note: str = Field(description="What was measured.")
    area: Area | None = Field(description="The part of the image under the map; null over tokens.")


class HeatMaps(BaseModel):
    """The maps of a question. `attention` is null if the editor has no attention map. `edits`: those that fire."""

    object: Literal["heat_maps"] = "heat_maps"
    attention: MapOfImage | None
    change: MapOfImage | None = Field(description="How much the answer changes if a cell is occluded.")
    edits: list[FiredEdit]
    revision: int = Field(description="The revision of the active edits.")


def heat_maps_router(service: Service) -> APIRouter:
    """The route of heat maps."""
    router = APIRouter()

    @router.post("/v1/heat-maps")
    async def make_heat_maps(request: HeatMapRequest) -> HeatMaps:
        """Map which parts of the image matter. `change_cells` squared images are run for an occlusion map.

        501 if the editor has no attention map and no occlusion map is asked for.
        """
        prompt = checked_prompt(request.prompt, service.settings, "prompt")
        image = await service.image(request.image)
        pixels = image.width * image.height
        return await service.engine.act(lambda served: _heat_maps(served, prompt, image, request.change_cells), pixels)

    return router


def _heat_maps(served: ServedModel, prompt: str, image: Image.Image, change_cells: int | None) -> HeatMaps:
    """On a worker thread. Raises as `Backbone.encode` does if the question cannot be encoded."""
    served.check(prompt)
    model = served.model
    model.refresh()
    question = Question(prompt, image)
    found = _attention_map(model.editor, question)
    if found is None and change_cells is None:
        raise RefusalError(
            501,
            f"The editor {model.editor.name!r} has no attention map. Give change_cells for an occlusion map, which "
            "works for every editor.",
            "no_attention_map",
            "change_cells",
        )
    fired, change = occlusion_map(model.answering, question, image, change_cells)
    return HeatMaps(
        attention=None if found is None else _placed(found, seen_area(model.backbone, image)),
        change=change,
        edits=shown_edits(fired),
        revision=model.revision,
    )


def _attention_map(editor: ExpertEditor[Any], question: Question) -> Any:
    """The editor's attention map of a question, or None if it has none."""
    if hasattr(editor, "attention_map"):
        return editor.attention_map(question)  # pyright: ignore[reportAttributeAccessIssue]
    from ..editors.liveedit import attribution
    from ..editors.liveedit import editor as liveedit

    return attribution.attention_map(editor, question) if isinstance(editor, liveedit.LiveEdit) else None


def occlusion_map(
    answering: Answering, question: Question, image: Image.Image, cells: int | None
) -> tuple[tuple[Fired, ...], MapOfImage | None]:
    """The edits that fire for a question, and how much its answer changes if a cell of the image is occluded.

    The change is the total variation distance, 0 to 1, between the distributions of the answer's first token with the
    whole image and with the cell filled with the image's mean colour. cells: rows and columns; None for no map.
    """
    occluded = () if cells is None else _occluded(image, cells)
    asked = [question, *(replace(question, image=each) for each in occluded)]
    first_token = _FirstToken()
    fired: list[tuple[Fired, ...]] = []
    for start in range(0, len(asked), _BATCH):
        inputs = answering.encode(asked[start : start + _BATCH])
        answers = answering.generate(inputs, 1, logits_processor=LogitsProcessorList([first_token]))
        fired += [answer.fired or () for answer in answers]
    if cells is None:
        return fired[0], None
    probabilities = torch.cat(first_token.probabilities)
    changes = (probabilities[1:] - probabilities[:1]).abs().sum(1) / 2
    note = "change of the answer's first token when the cell is occluded"
    values = changes.clamp(0, 1).view(cells, cells).tolist()
    return fired[0], MapOfImage(over="cells", values=values, note=note, area=Area())


class _FirstToken(LogitsProcessor):
    """Collects the distributions of the next token, each (batch, vocabulary); leaves the scores unchanged."""

    def __init__(self) -> None:
        self.probabilities: list[Tensor] = []

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        self.probabilities.append(scores.double().softmax(-1).cpu())
        return scores


def _occluded(image: Image.Image, cells: int) -> Iterator[Image.Image]:
    """The image with one cell filled with its mean colour, cell by cell, row by row."""
    pixels = np.asarray(image)
    mean = pixels.reshape(-1, 3).mean(0).round().astype(np.uint8)
    rows, columns = (np.linspace(0, size, cells + 1).round().astype(int) for size in pixels.shape[:2])
    for row in range(cells):
        for column in range(cells):
            changed = pixels.copy()
            changed[rows[row] : rows[row + 1], columns[column] : columns[column + 1]] = mean
            yield Image.fromarray(changed)


def _placed(found: Any, area: Area) -> MapOfImage:
    values = [list(row) for row in found.values]
    return MapOfImage(over=found.over, values=values, note=found.note, area=area if found.over == "cells" else None)


def seen_area(backbone: Backbone, image: Image.Image) -> Area:
    """The part of an image that the model receives: all of it, or the middle if its processor crops."""
    processor: Any = getattr(backbone.processor, "image_processor", None)
    size, crop = getattr(processor, "size", None) or {}, getattr(processor, "crop_size", None) or {}
    if not getattr(processor, "do_center_crop", False) or not size.get("shortest_edge") or not crop.get("height"):
        return Area()
    scale = size["shortest_edge"] / min(image.width, image.height)
    width = min(1.0, crop["width"] / (image.width * scale))
    height = min(1.0, crop["height"] / (image.height * scale))
    return Area(left=(1 - width) / 2, top=(1 - height) / 2, width=width, height=height)
