"""`/v1/heat-maps`: which parts of an image a question depends on, and which edits fire for it."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter
from PIL import Image
from pydantic import BaseModel, Field

from ..backbones import Backbone
from ..editors.heat_map import HeatMap
from ..editors.occlusion import change_map
from ..samples import Question
from .chat import FiredEdit, shown_edits
from .chat_messages import RequestModel, Text, WholeNumber, checked_prompt
from .error_responses import RefusalError
from .served_model import ServedModel
from .service import Service

_MOST_CELLS: Final = 8
"""Most rows and columns of an occlusion map. Each cell costs one image, while other requests wait."""


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
    values: list[list[float]] = Field(description="Attention: shares that sum to 1. Change: 0 is none.")
    note: str = Field(description="What was measured.")
    area: Area | None = Field(description="The part of the image under the map; null over tokens.")


class HeatMaps(BaseModel):
    """The maps of a question. `attention` is null if the editor has no attention map. `edits`: those that fire."""

    object: Literal["heat_maps"] = "heat_maps"
    attention: MapOfImage | None
    change: MapOfImage | None = Field(description="The effect of occluding each cell. `note` names what was compared.")
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
    found = model.editor.attention_map(question)
    if found is None and change_cells is None:
        raise RefusalError(
            501,
            f"The editor {model.editor.name!r} has no attention map. Give change_cells for an occlusion map, which "
            "works for every editor.",
            "no_attention_map",
            "change_cells",
        )
    change = None if change_cells is None else change_map(model.editor, question, change_cells)
    answering = model.answering
    (generated,) = answering.generate(answering.encode([question]), 1)
    return HeatMaps(
        attention=None if found is None else _placed(found, seen_area(model.backbone, image)),
        change=None if change is None else _placed(change, Area()),
        edits=shown_edits(generated.answer.fired or ()),
        revision=model.revision,
    )


def _placed(found: HeatMap, area: Area) -> MapOfImage:
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
