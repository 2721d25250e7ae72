"""The entry point of `vllm.endpoint_plugins`: `/v1/edits` in vLLM's own server, and the fired edits in its answers."""

from __future__ import annotations

from argparse import Namespace
from typing import Any, Final

import httpx2
from fastapi import FastAPI, Request
from starlette.responses import JSONResponse, Response

from .answers import FiredEditsMiddleware
from .settings import Settings

_METHODS: Final = ["GET", "POST", "DELETE"]
_FORWARDED: Final = ("authorization", "content-type", "idempotency-key", "accept")
_RETURNED: Final = ("content-type", "idempotent-replayed", "cache-control", "retry-after")
_TIMEOUT: Final = httpx2.Timeout(600.0, connect=10.0)
"""Seconds. Some editors take long to make an edit."""


class EditEndpoints:
    """Hands requests to `/v1/edits` on to the `liveedit serve` that makes the edits of a repository.

    `?repository=NAME` chooses one of several. A change is seen by every request that comes after its response, on
    all replicas of vLLM with the same store.
    """

    name = "liveedit"
    required_tasks = ("generate",)

    def attach_router(self, app: FastAPI) -> None:
        """Add the routes, and the middleware that adds fired edits to answers."""
        app.add_api_route("/v1/edits", self._forward, methods=_METHODS, tags=["edits"])
        app.add_api_route("/v1/edits/{path:path}", self._forward, methods=_METHODS, tags=["edits"])
        app.add_middleware(FiredEditsMiddleware, state=app.state)

    async def init_state(self, engine_client: Any, state: Any, args: Namespace) -> None:
        """Read the settings. Without them the routes answer 404 and answers stay as they are."""
        state.liveedit_settings = Settings.of(args.additional_config)
        state.liveedit_engine = engine_client

    async def _forward(self, request: Request, path: str = "") -> Response:
        settings: Settings | None = request.app.state.liveedit_settings
        query = dict(request.query_params)
        name = query.pop("repository", settings.default if settings is not None else None)
        found = settings.repositories.get(name) if settings is not None and name is not None else None
        if settings is None or found is None:
            known = "none" if settings is None else ", ".join(settings.repositories)
            return _refused(404, f"There is no repository {name!r}. Give ?repository=NAME. Known: {known}.")
        if found.maker is None:
            return _refused(
                501,
                f"The repository {name!r} has no maker. Start `liveedit serve --edits {found.edits}` and give its URL "
                "as maker in --additional-config, or change the edits with `liveedit edits`.",
            )
        headers = {key: value for key in _FORWARDED if (value := request.headers.get(key)) is not None}
        url = f"{found.maker.rstrip('/')}/v1/edits{'/' if path else ''}{path}"
        body = await request.body()
        try:
            async with httpx2.AsyncClient(timeout=_TIMEOUT) as client:
                answer = await client.request(request.method, url, params=query, headers=headers, content=body)
        except httpx2.HTTPError as error:
            return _refused(503, f"The maker of edits at {found.maker} does not answer ({error}). Is it running?")
        kept = {key: value for key in _RETURNED if (value := answer.headers.get(key)) is not None}
        return Response(answer.content, answer.status_code, headers=kept)


def _refused(status: int, message: str) -> Response:
    kind = "invalid_request_error" if status == 404 else "server_error"
    return JSONResponse({"error": {"message": message, "type": kind, "param": None, "code": status}}, status)
