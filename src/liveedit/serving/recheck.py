"""`/v1/check`: do the active edits still hold?"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter
from pydantic import BaseModel, Field

from ..answers import above_threshold
from ..edited.recheck import AskedAbout, CheckedEdit
from .chat_messages import RequestModel, WholeNumber
from .service import Service
from .stored_edits import ID_SCHEMA, MOST_LISTED, page_of

_EDITS_AT_ONCE: Final = 8
"""Edits asked in one go. Other requests wait that long at most."""


class CheckRequest(RequestModel):
    """Which active edits are asked again: up to `limit`, oldest first, starting after `after`."""

    limit: Annotated[int, Field(ge=1, le=MOST_LISTED), WholeNumber] = 20
    after: str | None = Field(
        None, description="The id of an edit: the check starts after it.", json_schema_extra=ID_SCHEMA
    )


class OtherEdit(BaseModel):
    """Another edit that fired."""

    id: str
    weight: float


class CheckedCard(BaseModel):
    """The model's present answer to the question of an edit."""

    id: str
    prompt: str
    answer: str = Field(description="The edit's answer.")
    answer_now: str | None
    holds: bool | None = Field(description="Whether both answers agree; null if the edit could not be asked again.")
    answer_before: str | None = Field(description="The model's answer before the edit was made; null if unknown.")
    broken: bool | None = Field(
        description="Whether the answer is neither the edit's nor the one before it; null if that is not known."
    )
    asked_about: AskedAbout = Field(
        description="text: a question without an image. image: the edit's image. thumbnail: a smaller copy of it. "
        "nothing: the image was not kept, so the edit was not asked."
    )
    others: list[OtherEdit]


class CheckList(BaseModel):
    """Some active edits, asked again. For the next ones, give `last_id` as `after`."""

    object: Literal["list"] = "list"
    data: list[CheckedCard]
    holding: int
    failing: int
    broken: int = Field(description="How many of those that fail have a broken answer.")
    unknown: int
    last_id: str | None
    has_more: bool


def checking_router(service: Service) -> APIRouter:
    """The route that checks edits."""
    router = APIRouter()

    @router.post("/v1/check")
    async def check_edits(wanted: CheckRequest) -> CheckList:
        """Ask active edits again, a few at a time between other requests. Edits undone meanwhile are left out."""
        page = await service.read(lambda store: page_of(store, "active", "asc", wanted.after, wanted.limit))
        checked: list[CheckedEdit] = []
        for start in range(0, len(page.edits), _EDITS_AT_ONCE):
            some = page.edits[start : start + _EDITS_AT_ONCE]
            checked += await service.engine.act(lambda served, some=some: served.check_edits(some))
        cards = [_card(edit) for edit in checked]
        return CheckList(
            data=cards,
            holding=sum(card.holds is True for card in cards),
            failing=sum(card.holds is False for card in cards),
            broken=sum(card.broken is True for card in cards),
            unknown=sum(card.holds is None for card in cards),
            last_id=page.edits[-1].id if page.edits else None,
            has_more=page.has_more,
        )

    return router


def _card(edit: CheckedEdit) -> CheckedCard:
    others: list[Any] = [{"id": other.edit_id, "weight": other.weight} for other in above_threshold(edit.others)]
    found = {"id": edit.edit_id, "holds": edit.holds, "broken": edit.broken, "others": others}
    return CheckedCard.model_validate({**vars(edit), **found})
