"""The HTTP application: its routes, one shape of errors, and the OpenAPI schema."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import APIRouter, FastAPI, Security
from fastapi.exceptions import RequestValidationError
from fastapi.security import HTTPBearer
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import compile_path

from .. import __version__
from ..errors import LiveEditError
from .api_keys import KeyFile
from .chat import chat_router
from .edits import edits_router
from .engine import Engine
from .error_responses import refusal_of
from .fetching import Fetcher, UrlPrefix
from .heat_maps import heat_maps_router
from .metrics import CONTENT_TYPE
from .middleware import AccessMiddleware
from .near import near_router
from .openapi import schema_of
from .page_files import page_router
from .recheck import checking_router
from .served_model import ServedModel
from .service import Service
from .settings import ServingSettings
from .stored_edits import stored_edits_router


def _fetcher(settings: ServingSettings) -> Fetcher | None:
    prefixes = [UrlPrefix.parse(text) for text in settings.allow_images_from]
    return Fetcher(prefixes, settings.body_bytes, settings.fetch_seconds) if prefixes else None


class ServiceState(BaseModel):
    """The state of a service, as text."""

    status: str


_UNAVAILABLE: dict[int | str, dict[str, Any]] = {
    503: {"model": ServiceState, "description": "`status` names the reason."}
}


def create_app(engine: Engine[ServedModel], model_name: str, model: ServedModel, keys: KeyFile | None) -> FastAPI:
    """The application around an engine. It closes the engine when it shuts down.

    model_name: the model's name in requests. keys: None to require no API key; only for a loopback address.
    """
    settings, metrics = engine.settings, engine.metrics
    service = Service(engine, model, model_name, settings, _fetcher(settings))
    metrics.edits.set_function(lambda: len(model.model))

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await run_in_threadpool(engine.close)

    app = FastAPI(
        title="LiveEdit",
        version=__version__,
        summary="A vision-language model whose answers can be corrected, and whose corrections can be undone.",
        lifespan=lifespan,
        docs_url=None,  # It would load scripts from another server.
        redoc_url=None,
        redirect_slashes=False,
        exception_handlers=dict.fromkeys((RequestValidationError, HTTPException, LiveEditError), _refuse),
    )
    bearer = [Security(HTTPBearer(auto_error=False, description="An API key."))]
    app.include_router(chat_router(service), tags=["asking"], dependencies=bearer)
    app.include_router(heat_maps_router(service), tags=["asking"], dependencies=bearer)
    app.include_router(stored_edits_router(service), tags=["editing"], dependencies=bearer)
    app.include_router(near_router(service), tags=["editing"], dependencies=bearer)
    app.include_router(edits_router(service), tags=["editing"], dependencies=bearer)
    app.include_router(checking_router(service), tags=["editing"], dependencies=bearer)
    app.include_router(_operating_router(service, bearer), tags=["operating"])
    app.include_router(page_router(settings, asks_for_keys=keys is not None), include_in_schema=False)
    app.add_middleware(AccessMiddleware, settings=settings, keys=keys, metrics=metrics)

    def schema() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = schema_of(app, service)
        return app.openapi_schema

    app.openapi = schema
    return app


def _operating_router(service: Service, bearer: list[Any]) -> APIRouter:
    router = APIRouter()
    engine = service.engine

    @router.get("/healthz", response_model=ServiceState, responses=_UNAVAILABLE)
    async def healthz() -> Response:
        """Whether the process is alive: 200, or 503 if a worker thread has ended."""
        return _state("ok" if engine.is_alive else "a worker thread has ended", engine.is_alive)

    @router.get("/readyz", response_model=ServiceState, responses=_UNAVAILABLE)
    async def readyz() -> Response:
        """Whether to send requests here: 200, or 503 during shutdown and while the stored edits are unreachable."""
        if not engine.is_ready:
            return _state("shutting down", False)
        reaches = await service.reaches_store()
        return _state("ready" if reaches else "the edits cannot be reached", reaches)

    @router.get(
        "/metrics",
        response_class=PlainTextResponse,
        responses={200: {"content": {CONTENT_TYPE: {"schema": {"type": "string"}}}}},
        dependencies=bearer,
    )
    async def metrics() -> Response:
        """Get the metrics for Prometheus."""
        return Response(engine.metrics.text(), headers={"Content-Type": CONTENT_TYPE})

    return router


def _state(text: str, is_good: bool) -> JSONResponse:
    return JSONResponse({"status": text}, 200 if is_good else 503)


async def _refuse(request: Request, error: Exception) -> Response:
    response = refusal_of(error).response
    if response.status_code == 405 and (methods := _methods(request)):
        # Starlette names only the methods of the first route of this path.
        response.headers["Allow"] = ", ".join(sorted(methods))
    return response


def _methods(request: Request) -> set[str]:
    """The methods that the schema has for the path of a request."""
    found: set[str] = set()
    for path, operations in request.app.openapi()["paths"].items():
        if compile_path(path)[0].match(request.scope["path"]):
            found |= {method.upper() for method in operations}
    return found
