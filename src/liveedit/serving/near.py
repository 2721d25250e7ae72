"""`/v1/edits/{id}/near`: the active edits nearest to an edit, and which of them collide with it."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from fastapi import APIRouter, Query
from pydantic import BaseModel, Field

from ..edited.near import NearEdit
from ..edited.recheck import AskedAbout
from .error_responses import RefusalError
from .service import Service
from .stored_edits import EditCard, EditId, card_of, edit_of, edit_page

_MOST: Final = 50


class NearCard(EditCard):
    """An active edit near the edit that was asked for, which is "the edit" here. A weight that is not known is null."""

    similarity: float = Field(description="As the editor's router compares edits, in its units.")
    weight_here: float | None = Field(description="Its weight in the answer to the edit's question; or null.")
    weight_there: float | None = Field(
        description="The edit's weight in the answer to its question; null if not known."
    )
    is_estimate: bool = Field(
        description="Whether weight_there was estimated, because the image of its question was not kept."
    )
    asked_about: AskedAbout = Field(description="What its question was asked about, as in /v1/check.")
    collides: bool | None = Field(
        description="Whether one of the two fires for the other's question; null if that is not known."
    )
    answers_differ: bool


class NearList(BaseModel):
    """The active edits nearest to an edit, most similar first."""

    object: Literal["list"] = "list"
    data: list[NearCard]


def near_router(service: Service) -> APIRouter:
    """The route that finds near edits."""
    router = APIRouter()

    @router.get("/v1/edits/{edit_id}/near")
    async def list_near(
        edit_id: EditId,
        limit: Annotated[int, Query(ge=1, le=_MOST, description="At most this many edits.")] = 10,
    ) -> NearList:
        """List the active edits nearest to an edit, active or not, and say which collide with it.

        The questions of all of them are asked for that. 501 if the editor does not compare edits with each other.
        """
        edit = await service.read(lambda store: edit_of(store, edit_id))
        editor = service.served.model.editor
        if not editor.finds_neighbours:
            message = f"The editor {editor.name!r} does not compare edits with each other, so none is near another."
            raise RefusalError(501, message, "not_compared")
        found = await service.engine.act(lambda served: served.near(edit.id, limit))
        return NearList(data=[await _card(service, near) for near in found])

    return router


async def _card(service: Service, near: NearEdit) -> NearCard:
    page = await service.read(lambda store: edit_page(store, near.edit_id))
    card = vars(card_of(page.edits[0], page.with_thumbnail))
    names = NearCard.model_fields.keys() - EditCard.model_fields.keys() - {"collides"}
    return NearCard(**card, **{name: getattr(near, name) for name in names}, collides=near.collides)
