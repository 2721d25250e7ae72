"""What every request passes before the application sees it: how many, by whom, how large; and what is counted."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import secrets
from typing import Any, Final
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .api_keys import Key, KeyFile, Role
from .error_responses import RETRY_AFTER_SECONDS, RefusalError, problem_of
from .metrics import Metrics
from .settings import ServingSettings

OPEN_PATHS: Final = frozenset({"/healthz", "/readyz", "/openapi.json"})
"""What takes no key, the page and its files apart."""

_DISCARDED = 4
"""Up to so many times the limit is read of a body that is too large, so that its sender comes to read the answer."""

_log = logging.getLogger(__name__)


class _HungUpError(Exception):
    """The client left before its request was whole."""


def role_for(path: str) -> Role | None:
    """What a path takes: a role, or None where it is open to all."""
    if path in OPEN_PATHS or path == "/" or path.startswith("/page/"):
        return None
    if path == "/metrics":
        return "admin"
    return "edit" if path in ("/v1/edits", "/v1/check") or path.startswith("/v1/edits/") else "ask"


def is_loopback(host: str) -> bool:
    """Whether a host name or address is this machine's own."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


class Gate:
    """ASGI middleware around the whole application.

    keys: None where no keys are asked for; then only requests to a loopback name are let in, and none that a web page
    of another origin sends, because a browser on this machine would pass those on for anybody.
    """

    def __init__(self, app: ASGIApp, settings: ServingSettings, keys: KeyFile | None, metrics: Metrics):
        self.app, self.settings, self.keys, self.metrics = app, settings, keys, metrics
        self._in_progress = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request in, or answer it with a `RefusalError`."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        answer = _Answer(send, secrets.token_hex(8))
        self._in_progress += 1
        try:
            await self._pass(scope, receive, answer)
        except _HungUpError:
            answer.status = 499
        except Exception as error:
            problem = problem_of(error)
            if problem.status >= 500 and not isinstance(error, RefusalError):
                _log.error("Request %s failed.", answer.request_id, exc_info=error)
            if not answer.status:
                await problem.response(scope, receive, answer.send)
        finally:
            self._in_progress -= 1
            route = getattr(scope.get("route"), "path", None) or "other"
            self.metrics.requests.labels(_known_method(scope["method"]), route, str(answer.status or 499)).inc()

    async def _pass(self, scope: Scope, receive: Receive, answer: _Answer) -> None:
        headers = Headers(scope=scope)
        role = role_for(scope["path"])
        if role is not None:
            if self._in_progress > self.settings.requests:
                raise RefusalError(
                    429,
                    f"{self.settings.requests} requests are in progress already. Try again in a moment.",
                    "too_many_requests",
                    headers={"Retry-After": str(RETRY_AFTER_SECONDS)},
                )
            scope["liveedit.key"] = self._let_in(headers, role)
        if scope["method"] not in ("GET", "HEAD"):
            receive = await self._whole_body(headers, receive)
        await self.app(scope, receive, answer.send)

    # -- by whom -----------------------------------------------------------------------------------------

    def _let_in(self, headers: Headers, role: Role) -> Key | None:
        if self.keys is None:
            _check_own(headers)
            return None
        kind, _, presented = headers.get("authorization", "").partition(" ")
        challenge = {"WWW-Authenticate": "Bearer"}
        if kind.lower() != "bearer" or not presented:
            raise RefusalError(
                401, "No API key was given. Send it as Authorization: Bearer KEY.", "missing_api_key", headers=challenge
            )
        key = self.keys.holder(presented.strip())
        if key is None:
            raise RefusalError(401, "This API key is not known here.", "invalid_api_key", headers=challenge)
        if not key.allows(role):
            raise RefusalError(
                403, f"This takes a key of the role {role!r}; yours has {key.role!r}.", "insufficient_role"
            )
        return key

    # -- how large ---------------------------------------------------------------------------------------

    async def _whole_body(self, headers: Headers, receive: Receive) -> Receive:
        limit = self.settings.body_bytes
        stated = headers.get("content-length", "0")
        if stated.isdigit() and int(stated) > _DISCARDED * limit:
            raise _too_large(limit)
        try:
            body = await asyncio.wait_for(_read(receive, limit), self.settings.body_seconds)
        except TimeoutError as error:
            raise RefusalError(
                408,
                f"The body did not arrive within {self.settings.body_seconds:g} s.",
                "body_timeout",
                headers={"Connection": "close"},
            ) from error
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if body and kind != "application/json":
            raise RefusalError(
                415, f"The body was sent as {kind or 'nothing'!r}. Send JSON, as application/json.", "not_json"
            )
        return _replaying(body, receive)


class _Answer:
    """What is sent back, with its status noted and the request's number in its headers."""

    def __init__(self, send: Send, request_id: str):
        self._send, self.request_id, self.status = send, request_id, 0

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            MutableHeaders(scope=message)["X-Request-ID"] = self.request_id
        await self._send(message)


async def _read(receive: Receive, limit: int) -> bytes:
    """The body; what is over the limit is counted, not kept."""
    parts: list[bytes] = []
    size, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _HungUpError
        part, more = message.get("body", b""), message.get("more_body", False)
        size += len(part)
        if size <= limit:
            parts.append(part)
        else:
            parts.clear()
        if size > _DISCARDED * limit:
            break
    if size > limit:
        raise _too_large(limit)
    return b"".join(parts)


def _too_large(limit: int) -> RefusalError:
    message = f"The body is larger than {limit:,} bytes, which is the most that is taken. Send a smaller image."
    return RefusalError(413, message, "body_too_large", headers={"Connection": "close"})


def _replaying(body: bytes, receive: Receive) -> Receive:
    waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Any:
        return waiting.pop() if waiting else await receive()

    return replay


def _check_own(headers: Headers) -> None:
    host = headers.get("host", "")
    name = urlsplit(f"//{host}").hostname or ""
    if not is_loopback(name):
        raise RefusalError(
            403, f"Without keys only this machine is served, but the request is to {name!r}.", "foreign_host", "Host"
        )
    origin = headers.get("origin")
    if origin is not None and urlsplit(origin).netloc != host:
        raise RefusalError(403, "Without keys no page of another origin is served.", "foreign_origin", "Origin")


def _known_method(method: str) -> str:
    return method if method in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS") else "other"
