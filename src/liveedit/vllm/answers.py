"""Adds to vLLM's answers which edits fired, in the field `liveedit`, as `liveedit serve` does."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final

from ..errors import ConfigError
from .settings import KEY, Settings

_PATHS: Final = ("/v1/chat/completions", "/v1/completions")
_XARGS: Final = b'"vllm_xargs"'
_DATA: Final = b"data: "
_ID: Final = re.compile(rb'^data: \{"id": ?"(chatcmpl-[^"\\]+)"')
"""The id of a chat's answer, in the first event of its stream. Completions may answer several prompts at once."""

Found = dict[str, Any] | None
"""The edits that fired for a request; None if it is not known, or uses no repository."""

Message = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]
Receive = Callable[[], Awaitable[Message]]


class FiredEditsMiddleware:
    """ASGI middleware. Requests that use no repository pass untouched.

    state: that of the app, with `liveedit_settings` and `liveedit_engine`.
    """

    def __init__(self, app: Callable[[Any, Receive, Send], Awaitable[None]], state: Any):
        self._app, self._state = app, state
        self._fired = FiredEdits(state)

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        """Answer one request."""
        settings: Settings | None = getattr(self._state, "liveedit_settings", None)
        if settings is None or scope["type"] != "http" or scope["path"] not in _PATHS:
            await self._app(scope, receive, send)
            return
        body = await _whole_body(receive)
        if _repository(settings, body) is None:
            await self._app(scope, _replayed(body, receive), send)
        else:
            answer = _Answer(send, self._fired.of, _answers_per_prompt(body))
            try:
                await self._app(scope, _replayed(body, receive), answer.send)
            finally:
                await answer.close()


class FiredEdits:
    """Asks the workers which edits fired. While they answer, further requests are collected, and asked for together.

    state: that of the app, with `liveedit_engine`.
    """

    def __init__(self, state: Any):
        self._state = state
        self._waiting: dict[str, asyncio.Future[Found]] = {}
        self._asking: asyncio.Task[None] | None = None

    async def of(self, request_id: str) -> Found:
        """Those of one request, by the id that clients know."""
        if request_id not in self._waiting:
            self._waiting[request_id] = asyncio.get_running_loop().create_future()
        waiting = self._waiting[request_id]
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._ask())
        return await asyncio.shield(waiting)  # Others may wait for it when this client has left.

    async def _ask(self) -> None:
        while self._waiting:
            waiting, self._waiting = self._waiting, {}
            try:
                by_rank = await self._state.liveedit_engine.collective_rpc("liveedit_fired", args=(list(waiting),))
            except Exception as error:
                for future in waiting.values():
                    future.set_exception(error)
                    future.exception()  # Seen, also if its client has left.
                continue
            for future, found in zip(waiting.values(), zip(*by_rank, strict=True), strict=True):
                future.set_result(next((one for one in found if one is not None), None))


class _Answer:
    """One answer on its way to the client: as one JSON object, or as server-sent events.

    Its edits are decided before its first token. Of a stream they are asked for at the first event, so that the last
    one does not wait for the worker.
    """

    def __init__(self, send: Send, fired: Callable[[str], Awaitable[Found]], per_prompt: int):
        """per_prompt: answers to each prompt."""
        self._send, self._fired, self._per_prompt = send, fired, per_prompt
        self._start: Message = {}
        self._is_json = False
        self._body = b""
        self._asked: asyncio.Future[Found] | None = None

    async def close(self) -> None:
        """The answer has ended, or the client has left."""
        if self._asked is not None:
            self._asked.cancel()
            await asyncio.gather(self._asked, return_exceptions=True)

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            kind = dict(message["headers"]).get(b"content-type", b"")
            self._is_json = kind.startswith(b"application/json")
            self._start = message
            if not self._is_json:
                await self._send(message)
        elif self._is_json:
            self._body += message.get("body", b"")
            if not message.get("more_body", False):
                await self._finish()
        else:
            await self._send({**message, "body": await self._events(message.get("body", b""))})

    async def _finish(self) -> None:
        body = await self._extended(self._body)
        headers = [(name, value) for name, value in self._start["headers"] if name.lower() != b"content-length"]
        await self._send({**self._start, "headers": [*headers, (b"content-length", str(len(body)).encode())]})
        await self._send({"type": "http.response.body", "body": body})

    async def _events(self, body: bytes) -> bytes:
        """Extends the event with which an answer ends. vLLM sends whole events."""
        if self._asked is None and (found := _ID.search(body)) is not None:
            self._asked = asyncio.ensure_future(self._fired(found[1].decode()))
        lines = body.split(b"\n")
        for place, line in enumerate(lines):
            if line.startswith(_DATA) and b'"finish_reason":"' in line.replace(b": ", b":"):
                lines[place] = _DATA + await self._extended(line.removeprefix(_DATA))
        return b"\n".join(lines)

    async def _extended(self, data: bytes) -> bytes:
        try:
            answer = json.loads(data)
        except ValueError:
            return data
        if not isinstance(answer, dict) or not isinstance(answer.get("id"), str) or not answer.get("choices"):
            return data
        if answer.get("object") == "text_completion":
            return await self._completion_extended(answer)
        fired = await self._asked if self._asked is not None else None
        if fired is None and (fired := await self._fired(answer["id"])) is None:
            return data
        return _json({**answer, KEY: fired})

    async def _completion_extended(self, answer: dict[str, Any]) -> bytes:
        """A completion may answer several prompts: if it has several choices, each of them names its edits."""
        choices = answer["choices"]
        prompts = [choice.get("index", 0) // self._per_prompt for choice in choices]
        found = await asyncio.gather(*(self._fired(f"{answer['id']}-{prompt}") for prompt in prompts))
        if len(choices) == 1:
            return _json(answer if found[0] is None else {**answer, KEY: found[0]})
        named = zip(choices, found, strict=True)
        return _json({**answer, "choices": [one if fired is None else {**one, KEY: fired} for one, fired in named]})


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()


def _answers_per_prompt(body: bytes) -> int:
    try:
        count = json.loads(body).get("n")
    except (ValueError, AttributeError):
        return 1
    return count if isinstance(count, int) and count > 0 else 1


def _repository(settings: Settings, body: bytes) -> str | None:
    """The repository that a request uses. A request that vLLM will refuse uses none."""
    if _XARGS not in body:
        return settings.default
    try:
        return settings.repository_of(json.loads(body).get("vllm_xargs"))
    except (ValueError, AttributeError, TypeError, ConfigError):
        return None


async def _whole_body(receive: Receive) -> bytes:
    parts = []
    while True:
        message = await receive()
        parts.append(message.get("body", b""))
        if message["type"] != "http.request" or not message.get("more_body", False):
            return b"".join(parts)


def _replayed(body: bytes, receive: Receive) -> Receive:
    """Gives the body that was read, then what the client sends later: that it has left."""
    given = False

    async def again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again
