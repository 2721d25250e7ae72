"""`/v1/models` and `/v1/chat/completions`, which work with the unmodified `openai` client."""

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
from .chat_messages import ChatRequest, checked_prompt
from .decoding import FinishReason
from .error_responses import RefusalError, refusal_of
from .served_model import GenerationRequest, GenerationResult
from .service import Service


class FiredEdit(BaseModel):
    """An edit that fired for an answer."""

    id: str
    weight: float = Field(description=f"Its share, 0 to 1. Edits below {FIRING_THRESHOLD} are left out.")
    margin: float = Field(description="By how much it exceeded the threshold of the router.")


class LiveEditExtension(BaseModel):
    """What OpenAI's protocol has no field for."""

    edits: list[FiredEdit]
    withheld: list[FiredEdit] = Field(
        description="Edits that fired for an answer in doubt, in whose place the unedited model answered."
    )
    revision: int = Field(description="The revision of the edits that were active.")


class Usage(BaseModel):
    """Tokens of the question, with image and chat format, and of the answer, with its end token."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class AssistantMessage(BaseModel):
    """The answer."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class Choice(BaseModel):
    """The only answer. finish_reason: "stop" at its end or at a stop string, "length" at the token limit."""

    index: int = 0
    message: AssistantMessage
    logprobs: None = None
    finish_reason: FinishReason


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
    """The served model."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "liveedit"


class ModelList(BaseModel):
    """All models. There is one."""

    model_config = ConfigDict(frozen=True)

    object: Literal["list"] = "list"
    data: list[ModelCard]


_EVENT = {
    "type": "object",
    "description": "One event of a stream.",
    "properties": {
        "data": {"type": "string", "description": "A chat.completion.chunk as JSON. The last event is [DONE]."}
    },
    "required": ["data"],
}


def chat_router(service: Service) -> APIRouter:
    """The routes that answer questions."""
    router = APIRouter()

    @router.get("/v1/models")
    async def list_models() -> ModelList:
        """List the served model."""
        return ModelList(data=[ModelCard(id=service.model_name, created=service.started)])

    @router.get("/v1/models/{model:path}")
    async def get_model(model: str) -> ModelCard:
        """Get the served model."""
        _check_model(service, model)
        return ModelCard(id=service.model_name, created=service.started)

    @router.post(
        "/v1/chat/completions",
        response_model=ChatCompletion,
        responses={200: {"content": {"text/event-stream": {"schema": _EVENT}}}},
    )
    async def complete(request: ChatRequest) -> Any:
        """Answer a question, with or without an image. `stream` sends the answer while it is generated."""
        _check_model(service, request.model)
        asked = await _generation_request(request, service)
        header = _Header(service.model_name)
        if not request.stream:
            return header.completion(await service.engine.ask(asked))
        stream = _Stream(service, asked, header, request.wants_usage)
        await stream.begin()
        return StreamingResponse(stream.events(), media_type="text/event-stream", headers={"Cache-Control": "no-cache"})

    return router


def _check_model(service: Service, name: str) -> None:
    if name != service.model_name:
        raise RefusalError(
            404,
            f"The model {name!r} was asked for; this server has {service.model_name!r}. Ask for that.",
            "model_not_found",
            "model",
        )


async def _generation_request(request: ChatRequest, service: Service) -> GenerationRequest:
    if request.stream_options is not None and not request.stream:
        raise RefusalError(
            400,
            "stream_options were given without stream=true. Leave them out, or set stream.",
            "invalid_value",
            "stream_options",
        )
    prompt, uri = request.question()
    checked_prompt(prompt, service.settings, "messages.0.content", empty_code="not_supported")
    params = request.sampling_params(service.settings)
    image = await service.image(uri) if uri is not None else None
    return GenerationRequest(prompt, image, params)


@dataclass(frozen=True)
class _Header:
    """What all parts of one answer start with."""

    model: str
    id: str = field(default_factory=lambda: f"chatcmpl-{secrets.token_hex(12)}")
    created: int = field(default_factory=lambda: int(time.time()))

    def completion(self, result: GenerationResult) -> ChatCompletion:
        choice = Choice(message=AssistantMessage(content=result.text), finish_reason=result.finish)
        return ChatCompletion(
            id=self.id,
            created=self.created,
            model=self.model,
            choices=[choice],
            usage=_usage(result),
            liveedit=_extension(result),
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
    """One answer as server-sent events. If the client disconnects, generation stops."""

    def __init__(self, service: Service, request: GenerationRequest, header: _Header, wants_usage: bool):
        self._header, self._wants_usage = header, wants_usage
        self._pieces: asyncio.Queue[str | None] = asyncio.Queue()
        self._is_abandoned = False
        loop = asyncio.get_running_loop()

        def on_text(piece: str) -> None:
            loop.call_soon_threadsafe(self._pieces.put_nowait, piece)

        streamed = replace(request, on_text=on_text, is_abandoned=lambda: self._is_abandoned)
        self._task = asyncio.ensure_future(service.engine.ask(streamed))
        self._task.add_done_callback(lambda _: self._pieces.put_nowait(None))
        self._first: str | None = None

    async def begin(self) -> None:
        """Wait for the first piece. If the request is refused before it, raise, so that the response has its status."""
        self._first = await self._pieces.get()
        if self._first is None:
            self._task.result()

    async def events(self) -> AsyncIterator[str]:
        """The events. The last one is [DONE]."""
        try:
            yield self._event(self._header.chunk({"role": "assistant", "content": ""}))
            piece = self._first
            while piece is not None:
                yield self._event(self._header.chunk({"content": piece}))
                piece = await self._pieces.get()
            for event in self._ending(await self._task):
                yield self._event(event)
        except Exception as error:
            yield _line(refusal_of(error).body)
        finally:
            self._is_abandoned = True
            self._task.cancel()
        yield "data: [DONE]\n\n"

    def _ending(self, result: GenerationResult) -> list[dict[str, Any]]:
        last = self._header.chunk({}, result.finish, liveedit=_extension(result).model_dump())
        if not self._wants_usage:
            return [last]
        return [last, {**self._header.empty_chunk(), "usage": _usage(result).model_dump()}]

    def _event(self, chunk: dict[str, Any]) -> str:
        return _line({"usage": None, **chunk} if self._wants_usage else chunk)


def _line(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"


def _usage(result: GenerationResult) -> Usage:
    return Usage(
        prompt_tokens=result.prompt_tokens,
        completion_tokens=result.answer_tokens,
        total_tokens=result.prompt_tokens + result.answer_tokens,
    )


def _extension(result: GenerationResult) -> LiveEditExtension:
    return LiveEditExtension(
        edits=shown_edits(result.fired), withheld=shown_edits(result.withheld), revision=result.revision
    )


def shown_edits(fired: Sequence[Fired]) -> list[FiredEdit]:
    """The fired edits with weight >= `FIRING_THRESHOLD`."""
    return [FiredEdit(id=one.edit_id, weight=one.weight, margin=one.margin) for one in above_threshold(fired)]
