"""`/v1/heat-maps`: where in its image a question looked, and which edits it met."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch
from fastapi import APIRouter
from PIL import Image
from pydantic import BaseModel, Field

from ..backbones import Backbone
from ..editors.heat_map import HeatMap
from ..editors.occlusion import change_map
from ..samples import Question
from .chat import FiredEdit, shown_edits
from .chat_messages import RequestModel, Text, Whole, is_empty
from .decoding import Style
from .error_responses import RefusalError
from .served_model import Query, ServedModel
from .service import Service

_MOST_CELLS = 8
"""Rows and columns of a map of changes at most: each of its cells is an image to run, while others wait."""


class HeatMapRequest(RequestModel):
    """A question about an image."""

    image: Text = Field(description="A data URI.")
    prompt: Text = Field(min_length=1)
    change_cells: Annotated[int, Field(ge=2, le=_MOST_CELLS), Whole] | None = Field(
        None, description="Rows and columns of the map of changes; none is made where this is missing."
    )


class Area(BaseModel):
    """The part of the image that a map lies over, in shares of its width and height: models cut off margins."""

    left: float = 0.0
    top: float = 0.0
    width: float = 1.0
    height: float = 1.0


class MapOfImage(BaseModel):
    """A map: rows from top to bottom. Over "tokens" it has one row, whose cells stand for no place in the image."""

    over: Literal["cells", "tokens"]
    values: list[list[float]] = Field(description="Attention: shares, together 1. Change: 0 is none.")
    note: str = Field(description="What was measured.")
    area: Area | None = Field(description="Where it lies; none over tokens.")


class HeatMaps(BaseModel):
    """What a question looked at. `edits`: those that would take part in its answer."""

    object: Literal["heat_maps"] = "heat_maps"
    attention: MapOfImage
    change: MapOfImage | None
    edits: list[FiredEdit]
    revision: int = Field(description="The revision of the edits in force.")


def heat_maps_router(service: Service) -> APIRouter:
    """The route of heat maps."""
    router = APIRouter()

    @router.post("/v1/heat-maps")
    async def make_heat_maps(request: HeatMapRequest) -> HeatMaps:
        """Where in the image this question looks. With `change_cells` that many squared images are run."""
        query = await _query(request, service)
        return await service.engine.act(lambda model: _look(model, query, request.change_cells), query.pixels)

    return router


async def _query(request: HeatMapRequest, service: Service) -> Query:
    settings = service.settings
    if is_empty(request.prompt):
        raise RefusalError(400, "prompt: this text is empty. Give a question.", "invalid_value", "prompt")
    if len(request.prompt) > settings.prompt_characters:
        raise RefusalError(400, "prompt: this text is too long. Shorten it.", "prompt_too_long", "prompt")
    image = await service.image(request.image)
    return Query(request.prompt, image, Style(1))


def _look(served: ServedModel, query: Query, change_cells: int | None) -> HeatMaps:
    """On a thread of the model. Raises what `Backbone.encode` raises where the question cannot be taken."""
    served.check(query)
    model, editor, image = served.model, served.model.editor, query.image
    assert image is not None
    model.refresh()
    question = Question(query.prompt, image)
    attention = editor.attention_map(question)
    assert attention is not None
    change = None if change_cells is None else change_map(editor, question, change_cells)
    with torch.inference_mode():
        model.backbone.logits(model.backbone.encode([question]))
    fired = (editor.fired() or [()])[0]
    return HeatMaps(
        attention=_placed(attention, seen_area(model.backbone, image)),
        change=None if change is None else _placed(change, Area()),
        edits=shown_edits(fired),
        revision=model.revision,
    )


def _placed(found: HeatMap, area: Area) -> MapOfImage:
    values = [list(row) for row in found.values]
    return MapOfImage(over=found.over, values=values, note=found.note, area=area if found.over == "cells" else None)


def seen_area(backbone: Backbone, image: Image.Image) -> Area:
    """The part of an image that the model is shown: all of it, or its middle where its processor crops."""
    processor: Any = getattr(backbone.processor, "image_processor", None)
    size, crop = getattr(processor, "size", None) or {}, getattr(processor, "crop_size", None) or {}
    if not getattr(processor, "do_center_crop", False) or not size.get("shortest_edge") or not crop.get("height"):
        return Area()
    scale = size["shortest_edge"] / min(image.width, image.height)
    width = min(1.0, crop["width"] / (image.width * scale))
    height = min(1.0, crop["height"] / (image.height * scale))
    return Area(left=(1 - width) / 2, top=(1 - height) / 2, width=width, height=height)
