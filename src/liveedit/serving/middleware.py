"""Middleware: limits on requests and bodies, API keys, error responses, request ids and metrics."""

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
from .error_responses import RETRY_AFTER_SECONDS, RefusalError, refusal_of
from .metrics import Metrics
from .settings import ServingSettings

OPEN_PATHS: Final = frozenset({"/healthz", "/readyz", "/openapi.json"})
"""Paths that need no key, besides the page and its files."""

_DISCARDED = 4
"""An oversized body is drained up to this multiple of the limit, so that the client gets to read the 413."""

_log = logging.getLogger(__name__)


class _DisconnectedError(Exception):
    """The client disconnected before its request was complete."""


def role_for(path: str) -> Role | None:
    """The role that a path requires, or None if it is open to all."""
    if path in OPEN_PATHS or path == "/" or path.startswith("/page/"):
        return None
    if path == "/metrics":
        return "admin"
    return "edit" if path in ("/v1/edits", "/v1/check") or path.startswith("/v1/edits/") else "ask"


def is_loopback(host: str) -> bool:
    """Whether a host name or address is a loopback one."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


class AccessMiddleware:
    """ASGI middleware around the whole application.

    keys: None to require no API key. Then only requests to a loopback name are accepted, and none from web pages of
    other origins: otherwise any website could use the local browser to reach the service.
    """

    def __init__(self, app: ASGIApp, settings: ServingSettings, keys: KeyFile | None, metrics: Metrics):
        self.app, self.settings, self.keys, self.metrics = app, settings, keys, metrics
        self._in_progress = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or respond with an error."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        response = _Response(send, secrets.token_hex(8))
        self._in_progress += 1
        try:
            await self._pass(scope, receive, response)
        except _DisconnectedError:
            response.status = 499
        except Exception as error:
            refusal = refusal_of(error)
            if refusal.status >= 500 and not isinstance(error, RefusalError):
                _log.error("Request %s failed.", response.request_id, exc_info=error)
            if not response.status:
                await refusal.response(scope, receive, response.send)
        finally:
            self._in_progress -= 1
            route = getattr(scope.get("route"), "path", None) or "other"
            self.metrics.requests.labels(_known_method(scope["method"]), route, str(response.status or 499)).inc()

    async def _pass(self, scope: Scope, receive: Receive, response: _Response) -> None:
        headers = Headers(scope=scope)
        role = role_for(scope["path"])
        if role is not None:
            if self._in_progress > self.settings.requests:
                raise RefusalError(
                    429,
                    f"{self.settings.requests} requests are in progress, which is the limit. Try again in a moment.",
                    "too_many_requests",
                    headers={"Retry-After": str(RETRY_AFTER_SECONDS)},
                )
            scope["liveedit.key"] = self._authorized(headers, role)
        if scope["method"] not in ("GET", "HEAD"):
            receive = await self._whole_body(headers, receive)
        await self.app(scope, receive, response.send)

    # -- API keys ----------------------------------------------------------------------------------------

    def _authorized(self, headers: Headers, role: Role) -> Key | None:
        if self.keys is None:
            _check_local(headers)
            return None
        kind, _, presented = headers.get("authorization", "").partition(" ")
        challenge = {"WWW-Authenticate": "Bearer"}
        if kind.lower() != "bearer" or not presented:
            raise RefusalError(
                401, "No API key was given. Send it as Authorization: Bearer KEY.", "missing_api_key", headers=challenge
            )
        key = self.keys.holder(presented.strip())
        if key is None:
            raise RefusalError(
                401, "This API key is not known. Ask the operator for one.", "invalid_api_key", headers=challenge
            )
        if not key.allows(role):
            raise RefusalError(
                403,
                f"This needs a key with the role {role!r}; yours has {key.role!r}.",
                "insufficient_role",
            )
        return key

    # -- bodies ------------------------------------------------------------------------------------------

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
                f"The body did not arrive within {self.settings.body_seconds:g} s. Send a smaller one.",
                "body_timeout",
                headers={"Connection": "close"},
            ) from error
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if body and kind != "application/json":
            raise RefusalError(
                415, f"The body has the content type {kind or 'none'!r}. Send JSON, as application/json.", "not_json"
            )
        return _replaying(body, receive)


class _Response:
    """Sends the response, adds the request id to its headers, and remembers its status."""

    def __init__(self, send: Send, request_id: str):
        self._send, self.request_id, self.status = send, request_id, 0

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            MutableHeaders(scope=message)["X-Request-ID"] = self.request_id
        await self._send(message)


async def _read(receive: Receive, limit: int) -> bytes:
    """The body. Above the limit it is counted, not kept."""
    parts: list[bytes] = []
    size, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _DisconnectedError
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
    message = f"The body is larger than the limit of {limit:,} bytes. Send a smaller image."
    return RefusalError(413, message, "body_too_large", headers={"Connection": "close"})


def _replaying(body: bytes, receive: Receive) -> Receive:
    waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Any:
        return waiting.pop() if waiting else await receive()

    return replay


def _check_local(headers: Headers) -> None:
    host = headers.get("host", "")
    name = urlsplit(f"//{host}").hostname or ""
    if not is_loopback(name):
        raise RefusalError(
            403,
            f"Without API keys only requests to this machine are served; this one is to {name!r}. Use 127.0.0.1.",
            "foreign_host",
            "Host",
        )
    origin = headers.get("origin")
    if origin is not None and urlsplit(origin).netloc != host:
        raise RefusalError(
            403,
            f"Without API keys no page of another origin is served; this one is from {origin!r}.",
            "foreign_origin",
            "Origin",
        )


def _known_method(method: str) -> str:
    return method if method in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS") else "other"
