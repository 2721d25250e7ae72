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

Message = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]
Receive = Callable[[], Awaitable[Message]]


class FiredEditsMiddleware:
    """ASGI middleware. Requests that use no repository pass untouched.

    state: that of the app, with `liveedit_settings` and `liveedit_engine`.
    """

    def __init__(self, app: Callable[[Any, Receive, Send], Awaitable[None]], state: Any):
        self._app, self._state = app, state

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
            answer = _Answer(send, self._fired)
            try:
                await self._app(scope, _replayed(body, receive), answer.send)
            finally:
                await answer.close()

    async def _fired(self, request_id: str) -> dict[str, Any] | None:
        found = await self._state.liveedit_engine.collective_rpc("liveedit_fired", args=(request_id,))
        return next((one for one in found if one is not None), None)


class _Answer:
    """One answer on its way to the client: as one JSON object, or as server-sent events.

    Its edits are decided before its first token. Of a stream they are asked for at the first event, so that the last
    one does not wait for the worker.
    """

    def __init__(self, send: Send, fired: Callable[[str], Awaitable[dict[str, Any] | None]]):
        self._send, self._fired = send, fired
        self._start: Message = {}
        self._is_json = False
        self._body = b""
        self._asked: asyncio.Future[dict[str, Any] | None] | None = None

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
        if answer.get("object") == "text_completion" and len(answer["choices"]) > 1:
            return data  # They may answer several prompts, and have different edits.
        fired = await self._asked if self._asked is not None else None
        if fired is None and (fired := await self._fired(answer["id"])) is None:
            return data
        return json.dumps({**answer, KEY: fired}, ensure_ascii=False).encode()


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
