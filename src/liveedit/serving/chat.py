"""`/v1/models` and `/v1/chat/completions`: what the official `openai` client speaks."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import StreamingResponse

from ..answers import FIRING_THRESHOLD, Fired, above_threshold
from .chat_messages import ChatRequest
from .decoding import Finish
from .error_responses import RefusalError, problem_of
from .served_model import Query, Reply
from .service import Service


class FiredEdit(BaseModel):
    """An edit that took part in an answer."""

    id: str
    weight: float = Field(description=f"Its share, to 1; edits with less than {FIRING_THRESHOLD} are left out.")
    margin: float = Field(description="By how much it exceeded what would have kept it out.")


class LiveEditExtension(BaseModel):
    """What OpenAI's protocol has no place for."""

    edits: list[FiredEdit]
    revision: int = Field(description="The revision of the edits that the answer was written by.")


class Usage(BaseModel):
    """Tokens of question (image and chat format included) and answer (the token that ends it included)."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class AssistantMessage(BaseModel):
    """The answer."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class Choice(BaseModel):
    """The one answer, and why it ended: "stop" by itself or at a stop string, "length" at the limit."""

    index: int = 0
    message: AssistantMessage
    logprobs: None = None
    finish_reason: Finish


class ChatCompletion(BaseModel):
    """A whole answer."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    usage: Usage
    liveedit: LiveEditExtension


class ModelCard(BaseModel):
    """The model that is served."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "liveedit"


class ModelList(BaseModel):
    """All models: there is one."""

    model_config = ConfigDict(frozen=True)

    object: Literal["list"] = "list"
    data: list[ModelCard]


_EVENT = {
    "type": "object",
    "description": "One event of a stream.",
    "properties": {"data": {"type": "string", "description": "A chat.completion.chunk as JSON; at the end [DONE]."}},
    "required": ["data"],
}


def chat_router(service: Service) -> APIRouter:
    """The routes of asking."""
    router = APIRouter()

    @router.get("/v1/models")
    async def list_models() -> ModelList:
        """The model that is served."""
        return ModelList(data=[ModelCard(id=service.model_name, created=service.started)])

    @router.get("/v1/models/{model:path}")
    async def get_model(model: str) -> ModelCard:
        """One model."""
        _check_model(service, model)
        return ModelCard(id=service.model_name, created=service.started)

    @router.post(
        "/v1/chat/completions",
        response_model=ChatCompletion,
        responses={200: {"content": {"text/event-stream": {"schema": _EVENT}}}},
    )
    async def complete(request: ChatRequest) -> Any:
        """Answer a question, about an image or without one; `stream` sends the answer as it is written."""
        _check_model(service, request.model)
        query = await _query(request, service)
        head = _Head(service.model_name)
        if not request.stream:
            return head.completion(await service.engine.ask(query))
        stream = _Stream(service, query, head, request.wants_usage)
        await stream.begin()
        return StreamingResponse(stream.events(), media_type="text/event-stream", headers={"Cache-Control": "no-cache"})

    return router


def _check_model(service: Service, name: str) -> None:
    if name != service.model_name:
        raise RefusalError(
            404, f"There is no model {name!r} here; served is {service.model_name!r}.", "model_not_found", "model"
        )


async def _query(request: ChatRequest, service: Service) -> Query:
    settings = service.settings
    if request.stream_options is not None and not request.stream:
        raise RefusalError(400, "stream_options were given without stream=true.", "invalid_value", "stream_options")
    prompt, uri = request.question()
    if len(prompt) > settings.prompt_characters:
        raise RefusalError(
            400, f"The prompt is longer than {settings.prompt_tokens:,} tokens. Shorten it.", "prompt_too_long"
        )
    style = request.style(settings)
    image = await service.image(uri) if uri is not None else None
    return Query(prompt, image, style)


@dataclass(frozen=True)
class _Head:
    """What all parts of one answer begin with."""

    model: str
    id: str = field(default_factory=lambda: f"chatcmpl-{secrets.token_hex(12)}")
    created: int = field(default_factory=lambda: int(time.time()))

    def completion(self, reply: Reply) -> ChatCompletion:
        choice = Choice(message=AssistantMessage(content=reply.text), finish_reason=reply.finish)
        return ChatCompletion(
            id=self.id,
            created=self.created,
            model=self.model,
            choices=[choice],
            usage=_usage(reply),
            liveedit=_extension(reply),
        )

    def chunk(self, delta: dict[str, Any], finish: str | None = None, **further: Any) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return {**self.empty_chunk(), "choices": [choice], **further}

    def empty_chunk(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": "chat.completion.chunk",
            "created": self.created,
            "model": self.model,
            "choices": [],
        }


class _Stream:
    """One answer as server-sent events. A client that leaves ends its answer."""

    def __init__(self, service: Service, query: Query, head: _Head, wants_usage: bool):
        self._head, self._wants_usage = head, wants_usage
        self._pieces: asyncio.Queue[str | None] = asyncio.Queue()
        self._is_abandoned = False
        loop = asyncio.get_running_loop()

        def tell(piece: str) -> None:
            loop.call_soon_threadsafe(self._pieces.put_nowait, piece)

        heard = replace(query, listener=tell, is_abandoned=lambda: self._is_abandoned)
        self._task = asyncio.ensure_future(service.engine.ask(heard))
        self._task.add_done_callback(lambda _: self._pieces.put_nowait(None))
        self._first: str | None = None

    async def begin(self) -> None:
        """Wait for the first piece: what is refused before it is answered with its own status."""
        self._first = await self._pieces.get()
        if self._first is None:
            self._task.result()

    async def events(self) -> AsyncIterator[str]:
        """The events, the last one [DONE]."""
        try:
            yield self._event(self._head.chunk({"role": "assistant", "content": ""}))
            piece = self._first
            while piece is not None:
                yield self._event(self._head.chunk({"content": piece}))
                piece = await self._pieces.get()
            for event in self._ending(await self._task):
                yield self._event(event)
        except Exception as error:
            yield _line(problem_of(error).body)
        finally:
            self._is_abandoned = True
            self._task.cancel()
        yield "data: [DONE]\n\n"

    def _ending(self, reply: Reply) -> list[dict[str, Any]]:
        last = self._head.chunk({}, reply.finish, liveedit=_extension(reply).model_dump())
        if not self._wants_usage:
            return [last]
        return [last, {**self._head.empty_chunk(), "usage": _usage(reply).model_dump()}]

    def _event(self, chunk: dict[str, Any]) -> str:
        return _line({"usage": None, **chunk} if self._wants_usage else chunk)


def _line(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"


def _usage(reply: Reply) -> Usage:
    return Usage(
        prompt_tokens=reply.prompt_tokens,
        completion_tokens=reply.answer_tokens,
        total_tokens=reply.prompt_tokens + reply.answer_tokens,
    )


def _extension(reply: Reply) -> LiveEditExtension:
    return LiveEditExtension(edits=shown_edits(reply.fired), revision=reply.revision)


def shown_edits(fired: Sequence[Fired]) -> list[FiredEdit]:
    """Of the edits that fired those whose share is worth telling."""
    return [FiredEdit(id=one.edit_id, weight=one.weight, margin=one.margin) for one in above_threshold(fired)]
