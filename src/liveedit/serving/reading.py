"""Looking at edits: lists, one of them, its thumbnail, its history. All of it beside the threads of the model."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Query
from pydantic import BaseModel, Field
from starlette.responses import Response

from ..edited.model import Receipt
from ..store.records import EditPage, EventKind, State, StoredEdit
from .evidence import EditEvidence, evidence_of
from .service import Service

MOST_LISTED = 100

ID_SCHEMA: dict[str, Any] = {"pattern": "^[0-9a-f]{8}$"}
"""Said in the schema alone: whatever else is given is answered as an unknown id is, with 404."""

EditId = Annotated[str, Path(description="The whole id of an edit.", json_schema_extra=ID_SCHEMA)]

After = Annotated[str | None, Query(description="The id of an edit: begin behind it.", json_schema_extra=ID_SCHEMA)]

_KEPT = {"Cache-Control": "private, max-age=3600"}
"""A thumbnail never changes; but it may be purged."""


class EditCard(BaseModel):
    """An edit as it stands in the file; times in ISO 8601, UTC. Of a purged one the texts are gone."""

    id: str
    object: Literal["edit"] = "edit"
    prompt: str
    answer: str
    answer_before: str | None
    answer_after: str | None
    active: bool
    has_thumbnail: bool
    image_sha256: str | None = Field(description="SHA-256 of the image's size and pixels.")
    editor: str
    author: str | None
    note: str | None
    created_at: str
    undone_at: str | None
    purged_at: str | None


class EditDetail(EditCard):
    """An edit with what came out of trying it; null where that was not kept, or was purged."""

    evidence: EditEvidence | None


class EditList(BaseModel):
    """A page of edits. Give `last_id` as `after` for the next one."""

    object: Literal["list"] = "list"
    data: list[EditCard]
    first_id: str | None
    last_id: str | None
    has_more: bool


class HistoryLine(BaseModel):
    """A change, numbered by the revision of the edits that it made."""

    revision: int
    at: str
    kind: EventKind
    edit_id: str
    author: str | None
    note: str | None


class EditHistory(BaseModel):
    """What happened to an edit, oldest first."""

    object: Literal["list"] = "list"
    data: list[HistoryLine]


def reading_router(service: Service) -> APIRouter:
    """The routes of looking at edits."""
    router = APIRouter()

    @router.get("/v1/edits")
    async def list_edits(
        state: Annotated[State, Query(description="In force, undone, or all, purged ones too.")] = "active",
        order: Annotated[Literal["asc", "desc"], Query(description="Oldest or newest first.")] = "asc",
        limit: Annotated[int, Query(ge=1, le=MOST_LISTED)] = 20,
        after: Annotated[
            str | None, Query(description="The id of an edit: begin behind it.", json_schema_extra=ID_SCHEMA)
        ] = None,
    ) -> EditList:
        """The edits, page by page; each page costs the same however many there are."""
        return _listed(await service.read(lambda model: model.page(state, order == "desc", after, limit)))

    @router.get("/v1/edits/{edit_id}")
    async def get_edit(edit_id: EditId) -> EditDetail:
        """One edit, in force or not, with its evidence."""
        page = await service.read(lambda model: model.one(edit_id))
        (edit,) = page.edits
        evidence = None if edit.evidence is None else evidence_of(Receipt.of(edit))
        return EditDetail(**vars(card_of(edit, page.with_thumbnail)), evidence=evidence)

    @router.get(
        "/v1/edits/{edit_id}/thumbnail",
        response_class=Response,
        responses={200: {"content": {"image/png": {"schema": {"type": "string", "format": "binary"}}}}},
    )
    async def get_thumbnail(edit_id: EditId) -> Any:
        """The image of an edit, small, as PNG; 404 where it has none, 410 where it was purged."""
        thumbnail = await service.read(lambda model: model.thumbnail(edit_id))
        return Response(thumbnail, media_type="image/png", headers=_KEPT)

    @router.get("/v1/edits/{edit_id}/history")
    async def get_history(edit_id: EditId) -> EditHistory:
        """Everything that was done to an edit, by whom, oldest first."""
        events = await service.read(lambda model: model.history(edit_id))
        return EditHistory(data=[HistoryLine.model_validate(event, from_attributes=True) for event in events])

    return router


def card_of(stored: StoredEdit, with_thumbnail: Collection[str]) -> EditCard:
    """An edit as it is shown. with_thumbnail: ids of edits that have one."""
    further = {"active": stored.is_active, "has_thumbnail": stored.id in with_thumbnail}
    return EditCard.model_validate({**vars(stored), **further})


def _listed(page: EditPage) -> EditList:
    cards = [card_of(stored, page.with_thumbnail) for stored in page.edits]
    ends = (cards[0].id, cards[-1].id) if cards else (None, None)
    return EditList(data=cards, first_id=ends[0], last_id=ends[1], has_more=page.has_more)
