"""Routes that change edits: `/v1/edits`, undo and redo."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Annotated, Any, Final, Generic, Literal, TypeVar

from fastapi import APIRouter, Header, Request, Response
from PIL import Image
from pydantic import BaseModel, Field

from ..edited.model import EditedModel
from ..store.idempotency import LONGEST_KEY, ChangeRequest
from ..store.records import StoredEdit
from .chat_messages import RequestModel, Text, checked_prompt
from .error_responses import RefusalError
from .served_model import Correction
from .service import Service
from .stored_edits import EditCard, EditEvidence, EditId, card_of, edit_of, edit_page, evidence_of

_Result = TypeVar("_Result")

IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=LONGEST_KEY,
        description="A request with the same key and the same body is carried out once.",
    ),
]

REPLAYED: Final = "Idempotent-Replayed"
_MAY_BE_REPLAYED: Final[dict[str, Any]] = {
    "headers": {
        REPLAYED: {
            "description": "Present if an earlier request with this Idempotency-Key made the change.",
            "schema": {"type": "string", "enum": ["true"]},
        }
    }
}


class EditRequest(RequestModel):
    """From now on, `prompt` about `image` (and what it shows) is answered with `answer`."""

    prompt: Text = Field(min_length=1)
    answer: Text = Field(min_length=1, max_length=4096)
    image: Text | None = Field(None, description="A data URI; null for a question without an image.")
    rephrasings: list[Text] = Field(default=[], description="Other wordings that the edit is tried on.")
    author: Text | None = Field(None, max_length=200, description="Who makes it; the API key's name by default.")
    note: Text | None = Field(None, max_length=4096, description="Why it is made.")
    locality: list[LocalityQuestion] = Field(default=[], description="Questions whose answers should stay.")
    supersede: bool = Field(True, description="Whether the edit replaces active edits of the same image and prompt.")
    must_take: bool = Field(
        True,
        description="Whether an edit that does not take is refused (422) and not stored. Rephrasings do not count.",
    )


class LocalityQuestion(RequestModel):
    """A question whose answer should stay."""

    prompt: Text = Field(min_length=1)
    image: Text | None = Field(None, description="A data URI; null for a question without an image.")


class CreatedEdit(BaseModel):
    """An edit that was made and is on disk."""

    id: str
    object: Literal["edit"] = "edit"
    prompt: str
    answer: str
    author: str | None
    note: str | None
    evidence: EditEvidence


@dataclass(frozen=True)
class ChangeResult(Generic[_Result]):
    """The result of a change. is_replay: an earlier request with the same key made the change."""

    result: _Result
    is_replay: bool


class ConcurrentChanges:
    """Joins a request with an equal one that is in progress. For one event loop.

    The store remembers completed requests, for all processes and across restarts. A request that is repeated after
    the first one has completed runs again, and the store returns the earlier result.
    """

    def __init__(self) -> None:
        self._in_progress: dict[str, tuple[ChangeRequest, asyncio.Future[ChangeResult[Any]]]] = {}

    async def once(
        self, request: ChangeRequest | None, run: Callable[[], Awaitable[ChangeResult[_Result]]]
    ) -> ChangeResult[_Result]:
        """The result of `run`, or of the equal request in progress. A request of None equals no other.

        Raises `ConflictError` if the request in progress has another body. Once started, `run` completes even if the
        caller disconnects.
        """
        if request is None:
            return await asyncio.shield(asyncio.ensure_future(run()))
        digest = request.sha256
        is_first = digest not in self._in_progress
        if is_first:
            task = asyncio.ensure_future(run())
            self._in_progress[digest] = request, task
            task.add_done_callback(lambda _: self._in_progress.pop(digest))
        first, task = self._in_progress[digest]
        request.check_same(first.body_sha256)
        done = await asyncio.shield(task)
        return done if is_first else replace(done, is_replay=True)


def edits_router(service: Service) -> APIRouter:
    """The routes that change edits."""
    router = APIRouter()
    changes = ConcurrentChanges()

    @router.post("/v1/edits", status_code=201, responses={201: _MAY_BE_REPLAYED})
    async def create_edit(
        request: Request, response: Response, wanted: EditRequest, idempotency_key: IdempotencyKey = None
    ) -> CreatedEdit:
        """Make an edit. The response is sent once the edit is on disk and active for all later answers."""
        correction = await _correction(wanted, wanted.author or _author(request), service)
        sent = await _change_request(request, idempotency_key, service)
        return _marked(response, await changes.once(sent, lambda: _create(correction, sent, service)))

    @router.post("/v1/edits/{edit_id}/undo", responses={200: _MAY_BE_REPLAYED})
    async def undo_edit(
        request: Request, response: Response, edit_id: EditId, idempotency_key: IdempotencyKey = None
    ) -> EditCard:
        """Undo an edit: the model is bit for bit as if the edit had never been made."""
        sent, author = await _change_request(request, idempotency_key, service), _author(request)

        def undo(model: EditedModel) -> StoredEdit:
            return model.undo(edit_of(model.store, edit_id).id, author=author, request=sent)

        return _marked(response, await changes.once(sent, lambda: _change(service, undo)))

    @router.post("/v1/edits/{edit_id}/redo", responses={200: _MAY_BE_REPLAYED})
    async def redo_edit(
        request: Request, response: Response, edit_id: EditId, idempotency_key: IdempotencyKey = None
    ) -> EditCard:
        """Make an undone edit active again."""
        sent, author = await _change_request(request, idempotency_key, service), _author(request)

        def redo(model: EditedModel) -> StoredEdit:
            return model.redo(edit_of(model.store, edit_id).id, author=author, request=sent)

        return _marked(response, await changes.once(sent, lambda: _change(service, redo)))

    return router


def _marked(response: Response, done: ChangeResult[_Result]) -> _Result:
    """The body of a response, which gets a header if it is a replay."""
    if done.is_replay:
        response.headers[REPLAYED] = "true"
    return done.result


async def _change(service: Service, change: Callable[[EditedModel], StoredEdit]) -> ChangeResult[EditCard]:
    changed = await service.engine.act(lambda served: change(served.model))
    with_thumbnail = (await service.read(lambda store: edit_page(store, changed.id))).with_thumbnail
    return ChangeResult(card_of(changed, with_thumbnail), changed.is_replay)


async def _create(correction: Correction, sent: ChangeRequest | None, service: Service) -> ChangeResult[CreatedEdit]:
    started = time.monotonic()
    receipt = await service.engine.act(lambda served: served.edit(correction, sent), correction.pixels)
    service.engine.metrics.edit_seconds.observe(time.monotonic() - started)
    created = CreatedEdit.model_validate({**vars(receipt), "evidence": evidence_of(receipt)})
    return ChangeResult(created, receipt.replayed)


async def _change_request(request: Request, idempotency_key: str | None, service: Service) -> ChangeRequest | None:
    """A request with an Idempotency-Key, as the store remembers it."""
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
            checked_prompt(text, settings, name)
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
        raise RefusalError(400, f"{given} {name} were given; at most {most} are accepted.", f"too_many_{name}", name)


async def _image(uri: str | None, service: Service) -> Image.Image | None:
    return None if uri is None else await service.image(uri)


def _author(request: Request) -> str | None:
    key = request.scope.get("liveedit.key")
    return None if key is None else key.name


def _owner(request: Request) -> str:
    key = request.scope.get("liveedit.key")
    return "" if key is None else key.id
