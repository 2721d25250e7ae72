"""Routes that read stored edits: lists, single edits, thumbnails, histories. They do not wait for the model."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter, Path, Query
from pydantic import BaseModel, Field
from starlette.responses import Response

from ..edited.receipt import Receipt
from ..errors import EditPurgedError, NotFoundError
from ..store.evidence import Collision
from ..store.records import EditPage, EventKind, State, StoredEdit
from ..store.store import EditStore
from .service import Service

MOST_LISTED: Final = 100

ID_SCHEMA: Final[dict[str, Any]] = {"pattern": "^[0-9a-f]{8}$"}
"""Only in the schema: any other text is answered like an unknown id, with 404."""

EditId = Annotated[str, Path(description="The whole id of an edit.", json_schema_extra=ID_SCHEMA)]
After = Annotated[
    str | None, Query(description="The id of an edit: the page starts after it.", json_schema_extra=ID_SCHEMA)
]
Search = Annotated[
    str | None,
    Query(max_length=200, description="Only edits with this text in their prompt, answer, author or note."),
]

_ID = re.compile(ID_SCHEMA["pattern"].strip("^$"))
_CACHED: Final = {"Cache-Control": "private, max-age=3600"}
"""A thumbnail never changes, but it can be purged."""


class EditCard(BaseModel):
    """A stored edit. Times are in ISO 8601, UTC. The texts of a purged edit are empty."""

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


_Broken = Annotated[
    bool | None,
    Field(description="Whether the answer is neither the edit's nor the one before it; null if that is not known."),
]


class RephrasedCard(BaseModel):
    """The model's answers to another wording of the edit's question."""

    prompt: str
    answer_before: str
    answer_after: str
    took: bool
    broken: _Broken


class LocalityCard(BaseModel):
    """The model's answers to a question that the edit should not change."""

    prompt: str
    image_sha256: str | None
    answer_before: str
    answer_after: str
    kept: bool
    broken: _Broken


class EarlierCard(BaseModel):
    """The model's answers to the question of an edit that was active before."""

    edit_id: str
    answer_before: str
    answer_after: str
    kept: bool
    broken: _Broken


class EditEvidence(BaseModel):
    """What an edit did when it was made."""

    answer_before: str
    answer_after: str
    took: bool = Field(description="Whether the model now gives the edit's answer.")
    rephrasings: list[RephrasedCard]
    locality: list[LocalityCard]
    earlier_edits: list[EarlierCard] = Field(description="Active edits that were asked again.")
    collisions: list[Collision]
    supersedes: list[str] = Field(description="Ids of the edits that this edit superseded.")
    milliseconds: float = Field(description="Time to make the edit, without its trial.")
    refine_steps: int
    store_bytes: int
    rank: int | None = Field(description="Rank of the expert, which grows with the answer; null if it has none.")


class EditDetail(EditCard):
    """A stored edit with its evidence; null if the evidence was not kept or was purged."""

    evidence: EditEvidence | None


class EditList(BaseModel):
    """A page of edits. For the next page, give `last_id` as `after`."""

    object: Literal["list"] = "list"
    data: list[EditCard]
    first_id: str | None
    last_id: str | None
    has_more: bool


class HistoryLine(BaseModel):
    """A change. `revision`: the revision of the edits that it made."""

    revision: int
    at: str
    kind: EventKind
    edit_id: str
    author: str | None
    note: str | None


class EditHistory(BaseModel):
    """The history of an edit, oldest change first."""

    object: Literal["list"] = "list"
    data: list[HistoryLine]


def stored_edits_router(service: Service) -> APIRouter:
    """The routes that read stored edits."""
    router = APIRouter()

    @router.get("/v1/edits")
    async def list_edits(
        state: Annotated[
            State, Query(description="Active edits, undone ones, or all including purged ones.")
        ] = "active",
        order: Annotated[Literal["asc", "desc"], Query(description="Oldest or newest first.")] = "asc",
        limit: Annotated[int, Query(ge=1, le=MOST_LISTED)] = 20,
        after: After = None,
        search: Search = None,
    ) -> EditList:
        """List the edits page by page. Without a search, a page costs the same however many edits there are."""
        return _listed(await service.read(lambda store: page_of(store, state, order, after, limit, search)))

    @router.get("/v1/edits/{edit_id}")
    async def get_edit(edit_id: EditId) -> EditDetail:
        """Get an edit, active or not, with its evidence."""
        page = await service.read(lambda store: edit_page(store, edit_id))
        (edit,) = page.edits
        evidence = None if edit.evidence is None else evidence_of(Receipt.of(edit))
        return EditDetail(**vars(card_of(edit, page.with_thumbnail)), evidence=evidence)

    @router.get(
        "/v1/edits/{edit_id}/thumbnail",
        response_class=Response,
        responses={200: {"content": {"image/png": {"schema": {"type": "string", "format": "binary"}}}}},
    )
    async def get_thumbnail(edit_id: EditId) -> Any:
        """Get the thumbnail of an edit's image as PNG; 404 if the edit has no image, 410 if it was purged."""
        thumbnail = await service.read(lambda store: _thumbnail(store, edit_id))
        return Response(thumbnail, media_type="image/png", headers=_CACHED)

    @router.get("/v1/edits/{edit_id}/history")
    async def get_history(edit_id: EditId) -> EditHistory:
        """Get all changes of an edit with their authors, oldest first."""
        events = await service.read(lambda store: store.history(edit_of(store, edit_id).id))
        return EditHistory(data=[HistoryLine.model_validate(event, from_attributes=True) for event in events])

    return router


def page_of(
    store: EditStore,
    state: State,
    order: Literal["asc", "desc"],
    after: str | None,
    limit: int,
    search: str | None = None,
) -> EditPage:
    """A page of edits. Raises `NotFoundError` if `after` is not the whole id of an edit."""
    after = None if after is None else _checked_id(after)
    return store.page(state, newest_first=order == "desc", after=after, limit=limit, search=search)


def edit_page(store: EditStore, edit_id: str) -> EditPage:
    """A page with the edit of this id, active or not. Raises `NotFoundError` if this is not the whole id of an edit."""
    return store.one(_checked_id(edit_id))


def edit_of(store: EditStore, edit_id: str) -> StoredEdit:
    """The edit of this id. Raises as `edit_page` does.

    Other methods of the store read all ids to explain that one is unknown; this costs the same for any number of edits.
    """
    (edit,) = edit_page(store, edit_id).edits
    return edit


def card_of(stored: StoredEdit, with_thumbnail: Collection[str]) -> EditCard:
    """An edit for a response. with_thumbnail: ids of edits that have a thumbnail."""
    further = {"active": stored.is_active, "has_thumbnail": stored.id in with_thumbnail}
    return EditCard.model_validate({**vars(stored), **further})


def evidence_of(receipt: Receipt) -> EditEvidence:
    """The evidence of a stored edit for a response."""
    evidence = receipt.evidence.to_dict(receipt.answer)
    return EditEvidence.model_validate({**vars(receipt), **evidence, "took": receipt.took})


def _checked_id(edit_id: str) -> str:
    """The id if it is whole: the store also takes the beginning of an id, which would be risky over HTTP."""
    if _ID.fullmatch(edit_id) is None:
        raise NotFoundError(f"There is no edit {edit_id!r}. Give a whole id, as GET /v1/edits lists them.")
    return edit_id


def _thumbnail(store: EditStore, edit_id: str) -> bytes:
    edit = edit_of(store, edit_id)
    if edit.purged_at is not None:
        raise EditPurgedError(f"The edit {edit_id!r} and its thumbnail were purged at {edit.purged_at}.")
    if edit.thumbnail is None:
        raise NotFoundError(f"The edit {edit_id!r} has no image.")
    return edit.thumbnail


def _listed(page: EditPage) -> EditList:
    cards = [card_of(stored, page.with_thumbnail) for stored in page.edits]
    ends = (cards[0].id, cards[-1].id) if cards else (None, None)
    return EditList(data=cards, first_id=ends[0], last_id=ends[1], has_more=page.has_more)
