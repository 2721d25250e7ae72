"""`/v1/edits`: correcting the model, and taking corrections back."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Annotated, Any, Final, Literal, TypeVar

from fastapi import APIRouter, Header, Request, Response
from PIL import Image
from pydantic import BaseModel, Field

from ..store.idempotency import LONGEST_KEY, ChangeRequest
from ..store.records import StoredEdit
from .chat_messages import RequestModel, Text, is_empty
from .error_responses import RefusalError
from .evidence import EditEvidence, evidence_of
from .idempotency import Done
from .reading import EditCard, EditId, card_of
from .served_model import Correction, ServedModel
from .service import Service

_Body = TypeVar("_Body", bound=BaseModel)

IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=LONGEST_KEY,
        description="The same key with the same body does nothing twice.",
    ),
]

REPLAYED: Final = "Idempotent-Replayed"
_MAY_BE_REPLAYED: Final[dict[str, Any]] = {
    "headers": {
        REPLAYED: {
            "description": "There where a request with the same Idempotency-Key did it before: nothing was done now.",
            "schema": {"type": "string", "enum": ["true"]},
        }
    }
}


class EditRequest(RequestModel):
    """From now on, `prompt` about `image` (and what it shows) is answered with `answer`."""

    prompt: Text = Field(min_length=1)
    answer: Text = Field(min_length=1, max_length=4096)
    image: Text | None = Field(None, description="A data URI; none for a question without an image.")
    rephrasings: list[Text] = Field(default=[], description="Other wordings that the edit is checked on.")
    author: Text | None = Field(None, max_length=200, description="Who makes it; the API key's name by default.")
    note: Text | None = Field(None, max_length=4096, description="Why.")
    locality: list[LocalityQuestion] = Field(default=[], description="Questions whose answers should stay.")
    supersede: bool = Field(True, description="Whether edits in force of the same image and prompt leave.")
    must_take: bool = Field(
        False, description="Whether an edit that does not take is refused (422) and nothing stored; rephrasings aside."
    )


class LocalityQuestion(RequestModel):
    """A question that an edit should leave alone."""

    prompt: Text = Field(min_length=1)
    image: Text | None = Field(None, description="A data URI; none for a question without an image.")


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

    @router.post("/v1/edits", status_code=201, responses={201: _MAY_BE_REPLAYED})
    async def create_edit(
        request: Request, response: Response, wanted: EditRequest, idempotency_key: IdempotencyKey = None
    ) -> CreatedEdit:
        """Make an edit; answered once it is on disk and every answer follows it."""
        correction = await _correction(wanted, wanted.author or _author(request), service)
        sent = await _sent(request, idempotency_key, service)
        return _told(response, await service.idempotency.once(sent, lambda: _create(correction, sent, service)))

    @router.post("/v1/edits/{edit_id}/undo", responses={200: _MAY_BE_REPLAYED})
    async def undo_edit(
        request: Request, response: Response, edit_id: EditId, idempotency_key: IdempotencyKey = None
    ) -> EditCard:
        """Take an edit back: the model is, bit for bit, as if it had never been made."""
        sent, author = await _sent(request, idempotency_key, service), _author(request)
        return _told(response, await _changed(service, sent, lambda model: model.undo(edit_id, author, sent)))

    @router.post("/v1/edits/{edit_id}/redo", responses={200: _MAY_BE_REPLAYED})
    async def redo_edit(
        request: Request, response: Response, edit_id: EditId, idempotency_key: IdempotencyKey = None
    ) -> EditCard:
        """Put an undone edit into force again, as it was."""
        sent, author = await _sent(request, idempotency_key, service), _author(request)
        return _told(response, await _changed(service, sent, lambda model: model.redo(edit_id, author, sent)))

    return router


def _told(response: Response, done: Done[_Body]) -> _Body:
    """The body of a response, which is marked where nothing was done anew."""
    if done.is_replay:
        response.headers[REPLAYED] = "true"
    return done.result


async def _changed(
    service: Service, sent: ChangeRequest | None, change: Callable[[ServedModel], StoredEdit]
) -> Done[EditCard]:
    """The edit after a change, which happens once for an Idempotency-Key."""

    async def run() -> Done[EditCard]:
        changed = await service.engine.act(change)
        with_thumbnail = (await service.read(lambda model: model.one(changed.id))).with_thumbnail
        return Done(card_of(changed, with_thumbnail), changed.is_replay)

    return await service.idempotency.once(sent, run)


async def _sent(request: Request, idempotency_key: str | None, service: Service) -> ChangeRequest | None:
    """A request with a key, as the store remembers it."""
    if idempotency_key is None:
        return None
    owner = f"{_owner(request)} POST {request.url.path}"
    return ChangeRequest(owner, idempotency_key, await request.body(), service.settings.kept_idempotency_keys)


async def _correction(wanted: EditRequest, author: str | None, service: Service) -> Correction:
    settings = service.settings
    _check_number("rephrasings", len(wanted.rephrasings), settings.rephrasings)
    _check_number("locality", len(wanted.locality), settings.locality)
    given = {
        "prompt": [wanted.prompt],
        "answer": [wanted.answer],
        "rephrasings": wanted.rephrasings,
        "locality": [question.prompt for question in wanted.locality],
    }
    for name, texts in given.items():
        for text in texts:
            if is_empty(text):
                raise RefusalError(400, f"{name}: this text is empty. Give some.", "invalid_value", name)
            if len(text) > settings.prompt_characters:
                raise RefusalError(400, f"{name}: this text is too long. Shorten it.", "prompt_too_long", name)
    image = await _image(wanted.image, service)
    locality = tuple([(await _image(asked.image, service), asked.prompt) for asked in wanted.locality])
    return Correction(
        wanted.prompt,
        wanted.answer,
        image,
        tuple(wanted.rephrasings),
        author,
        wanted.note,
        locality,
        wanted.supersede,
        wanted.must_take,
    )


def _check_number(name: str, given: int, most: int) -> None:
    if given > most:
        raise RefusalError(400, f"{given} {name} were given; at most {most} are checked.", f"too_many_{name}", name)


async def _image(uri: str | None, service: Service) -> Image.Image | None:
    return None if uri is None else await service.image(uri)


async def _create(correction: Correction, sent: ChangeRequest | None, service: Service) -> Done[CreatedEdit]:
    started = time.monotonic()
    receipt = await service.engine.act(lambda model: model.edit(correction, sent), correction.pixels)
    service.engine.metrics.edit_seconds.observe(time.monotonic() - started)
    created = CreatedEdit.model_validate({**vars(receipt), "evidence": evidence_of(receipt)})
    return Done(created, receipt.replayed)


def _author(request: Request) -> str | None:
    key = request.scope.get("liveedit.key")
    return None if key is None else key.name


def _owner(request: Request) -> Any:
    key = request.scope.get("liveedit.key")
    return "" if key is None else key.id
