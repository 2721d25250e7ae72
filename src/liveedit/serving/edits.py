"""`/v1/edits`: correcting the model, and taking corrections back."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Header, Request
from pydantic import BaseModel, Field

from ..experts.records import StoredEdit
from .chat_messages import RequestModel, Text, is_empty
from .idempotency import LONGEST_KEY
from .problems import RefusalError
from .reading import EditCard, EditId, card_of
from .served_model import Correction, Evidence, ServedModel
from .service import Service

IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=LONGEST_KEY,
        description="The same key with the same body does nothing twice.",
    ),
]


class EditRequest(RequestModel):
    """From now on, `prompt` about `image` (and what it shows) is answered with `answer`."""

    prompt: Text = Field(min_length=1)
    answer: Text = Field(min_length=1, max_length=4096)
    image: Text | None = Field(None, description="A data URI; none for a question without a picture.")
    rephrasings: list[Text] = Field(default=[], description="Other wordings that the edit is checked on.")
    author: Text | None = Field(None, max_length=200, description="Who makes it; the API key's name by default.")
    note: Text | None = Field(None, max_length=4096, description="Why.")


class RephrasingEvidence(BaseModel):
    """What the model says to another wording, before and after."""

    prompt: str
    answer_before: str
    answer_after: str
    took: bool


class EditEvidence(BaseModel):
    """What the edit did. `milliseconds`: making it, without the answers around it."""

    answer_before: str
    answer_after: str
    took: bool = Field(description="Whether the model now gives the answer that was asked for.")
    rephrasings: list[RephrasingEvidence]
    milliseconds: float
    refine_steps: int
    store_bytes: int


class CreatedEdit(BaseModel):
    """An edit that was made and is on disk."""

    id: str
    object: Literal["edit"] = "edit"
    prompt: str
    answer: str
    author: str | None
    note: str | None
    evidence: EditEvidence


def edits_router(service: Service) -> APIRouter:
    """The routes of correcting."""
    router = APIRouter()

    @router.post("/v1/edits", status_code=201)
    async def create_edit(request: Request, wanted: EditRequest, idempotency_key: IdempotencyKey = None) -> CreatedEdit:
        """Make an edit; answered once it is on disk and every answer follows it."""
        correction = await _correction(wanted, wanted.author or _author(request), service)

        async def run() -> CreatedEdit:
            return await _create(correction, service)

        owner = f"{_owner(request)} POST /v1/edits"
        return await service.idempotency.once(owner, idempotency_key, await request.body(), run)

    @router.post("/v1/edits/{edit_id}/undo")
    async def undo_edit(request: Request, edit_id: EditId, idempotency_key: IdempotencyKey = None) -> EditCard:
        """Take an edit back: the model is, bit for bit, as if it had never been made."""
        return await _changed(service, request, idempotency_key, lambda model: model.undo(edit_id, _author(request)))

    @router.post("/v1/edits/{edit_id}/redo")
    async def redo_edit(request: Request, edit_id: EditId, idempotency_key: IdempotencyKey = None) -> EditCard:
        """Put an undone edit into force again, as it was."""
        return await _changed(service, request, idempotency_key, lambda model: model.redo(edit_id, _author(request)))

    return router


async def _changed(
    service: Service, request: Request, idempotency_key: str | None, change: Callable[[ServedModel], StoredEdit]
) -> EditCard:
    """The edit after a change, which happens once for an Idempotency-Key."""

    async def run() -> EditCard:
        changed = await service.engine.act(change)
        with_thumbnail = (await service.read(lambda model: model.one(changed.id))).with_thumbnail
        return card_of(changed, with_thumbnail)

    owner = f"{_owner(request)} POST {request.url.path}"
    return await service.idempotency.once(owner, idempotency_key, await request.body(), run)


async def _correction(wanted: EditRequest, author: str | None, service: Service) -> Correction:
    settings = service.settings
    if len(wanted.rephrasings) > settings.rephrasings:
        raise RefusalError(
            400,
            f"{len(wanted.rephrasings)} rephrasings were given; at most {settings.rephrasings} are checked.",
            "too_many_rephrasings",
            "rephrasings",
        )
    for name, texts in (("prompt", [wanted.prompt]), ("answer", [wanted.answer]), ("rephrasings", wanted.rephrasings)):
        for text in texts:
            if is_empty(text):
                raise RefusalError(400, f"{name}: this text is empty. Give some.", "invalid_value", name)
            if len(text) > settings.prompt_characters:
                raise RefusalError(400, f"{name}: this text is too long. Shorten it.", "prompt_too_long", name)
    image = None
    if wanted.image is not None:
        image = await service.picture(wanted.image)
    return Correction(wanted.prompt, wanted.answer, image, tuple(wanted.rephrasings), author, wanted.note)


async def _create(correction: Correction, service: Service) -> CreatedEdit:
    started = time.monotonic()
    evidence = await service.engine.act(lambda model: model.edit(correction), correction.pixels)
    service.engine.metrics.edit_seconds.observe(time.monotonic() - started)
    return CreatedEdit(
        id=evidence.receipt.id,
        prompt=correction.prompt,
        answer=correction.answer,
        author=evidence.author,
        note=evidence.note,
        evidence=_evidence(evidence),
    )


def _evidence(evidence: Evidence) -> EditEvidence:
    receipt = evidence.receipt
    return EditEvidence(
        answer_before=receipt.answer_before,
        answer_after=receipt.answer_after,
        took=receipt.took,
        rephrasings=[RephrasingEvidence(**vars(rephrased)) for rephrased in evidence.rephrasings],
        milliseconds=receipt.milliseconds,
        refine_steps=receipt.refine_steps,
        store_bytes=receipt.store_bytes,
    )


def _author(request: Request) -> str | None:
    key = request.scope.get("liveedit.key")
    return None if key is None else key.name


def _owner(request: Request) -> Any:
    key = request.scope.get("liveedit.key")
    return "" if key is None else key.id
