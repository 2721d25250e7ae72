"""`/v1/check`: do the edits in force still hold?"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter
from pydantic import BaseModel, Field

from ..answers import above_threshold
from ..edited.recheck import AskedAbout, CheckedEdit
from .chat_messages import RequestModel, Whole
from .reading import ID_SCHEMA, MOST_LISTED
from .service import Service

_ASKED_AT_ONCE = 8
"""Questions of others wait for so many at most."""


class CheckRequest(RequestModel):
    """Which of the edits in force are asked again: so many, oldest first, behind the one named."""

    limit: Annotated[int, Field(ge=1, le=MOST_LISTED), Whole] = 20
    after: str | None = Field(None, description="The id of an edit: begin behind it.", json_schema_extra=ID_SCHEMA)


class OtherEdit(BaseModel):
    """Another edit that took part in the answer, as in answers."""

    id: str
    weight: float


class CheckedCard(BaseModel):
    """What the model says now to the question of an edit."""

    id: str
    prompt: str
    answer: str = Field(description="What the edit asked for.")
    answer_now: str | None
    holds: bool | None = Field(description="Whether both agree; null where the edit could not be asked again.")
    asked_about: AskedAbout = Field(
        description="text: a question without an image. image: the edit's image. thumbnail: a smaller copy of it. "
        "nothing: the image was not kept, and the edit is not asked."
    )
    others: list[OtherEdit]


class CheckList(BaseModel):
    """Some of the edits in force, asked again. Give `last_id` as `after` for the next ones."""

    object: Literal["list"] = "list"
    data: list[CheckedCard]
    holding: int
    failing: int
    unknown: int
    last_id: str | None
    has_more: bool


def checking_router(service: Service) -> APIRouter:
    """The route of checking."""
    router = APIRouter()

    @router.post("/v1/check")
    async def check_edits(wanted: CheckRequest) -> CheckList:
        """Ask edits in force again, a few at a time between others' questions; those undone meanwhile are left out."""
        page = await service.read(lambda model: model.page("active", False, wanted.after, wanted.limit))
        checked: list[CheckedEdit] = []
        for start in range(0, len(page.edits), _ASKED_AT_ONCE):
            some = page.edits[start : start + _ASKED_AT_ONCE]
            checked += await service.engine.act(lambda model, some=some: model.check_edits(some))
        cards = [_card(edit) for edit in checked]
        return CheckList(
            data=cards,
            holding=sum(card.holds is True for card in cards),
            failing=sum(card.holds is False for card in cards),
            unknown=sum(card.holds is None for card in cards),
            last_id=page.edits[-1].id if page.edits else None,
            has_more=page.has_more,
        )

    return router


def _card(edit: CheckedEdit) -> CheckedCard:
    others: list[Any] = [{"id": other.edit_id, "weight": other.weight} for other in above_threshold(edit.others)]
    return CheckedCard.model_validate({**vars(edit), "id": edit.edit_id, "holds": edit.holds, "others": others})
