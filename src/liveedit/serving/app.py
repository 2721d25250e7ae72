"""The HTTP application: routes, one shape of errors, and an OpenAPI schema that says so."""

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
from .error_responses import problem_of
from .fetching import Fetcher, Place
from .heat_maps import heat_maps_router
from .idempotency import Idempotency
from .metrics import CONTENT_TYPE
from .middleware import Gate
from .openapi import schema_of
from .page_files import page_router
from .reading import reading_router
from .recheck import checking_router
from .served_model import ServedModel
from .service import Service
from .settings import ServingSettings


def _fetcher(settings: ServingSettings) -> Fetcher | None:
    places = [Place.parse(text) for text in settings.allow_images_from]
    return Fetcher(places, settings.body_bytes, settings.fetch_seconds) if places else None


class ServiceState(BaseModel):
    """How a service is, in words."""

    status: str


_OR_NOT: dict[int | str, dict[str, Any]] = {503: {"model": ServiceState, "description": "`status` says why not."}}


def create_app(engine: Engine[ServedModel], model_name: str, model: ServedModel, keys: KeyFile | None) -> FastAPI:
    """The application around an engine, which it closes at its end.

    model_name: what clients call the model. keys: None to ask for none, which is for a loopback address alone.
    """
    settings, metrics = engine.settings, engine.metrics
    service = Service(engine, model, model_name, settings, Idempotency(), _fetcher(settings))
    metrics.edits.set_function(model.count)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await run_in_threadpool(engine.close)

    app = FastAPI(
        title="LiveEdit",
        version=__version__,
        summary="A vision-language model that can be corrected, and whose corrections can be taken back.",
        lifespan=lifespan,
        docs_url=None,  # They would load scripts from elsewhere.
        redoc_url=None,
        redirect_slashes=False,
        exception_handlers=dict.fromkeys((RequestValidationError, HTTPException, LiveEditError), _refuse),
    )
    bearer = [Security(HTTPBearer(auto_error=False, description="An API key; the gate has checked it before."))]
    app.include_router(chat_router(service), tags=["asking"], dependencies=bearer)
    app.include_router(heat_maps_router(service), tags=["asking"], dependencies=bearer)
    app.include_router(reading_router(service), tags=["editing"], dependencies=bearer)
    app.include_router(edits_router(service), tags=["editing"], dependencies=bearer)
    app.include_router(checking_router(service), tags=["editing"], dependencies=bearer)
    app.include_router(_operating_router(service, bearer), tags=["operating"])
    app.include_router(page_router(settings, asks_for_keys=keys is not None), include_in_schema=False)
    app.add_middleware(Gate, settings=settings, keys=keys, metrics=metrics)

    def schema() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = schema_of(app, service)
        return app.openapi_schema

    app.openapi = schema
    return app


def _operating_router(service: Service, bearer: list[Any]) -> APIRouter:
    router = APIRouter()
    engine = service.engine

    @router.get("/healthz", response_model=ServiceState, responses=_OR_NOT)
    async def healthz() -> Response:
        """Whether the process is to be kept: 200, or 503 where the model's thread has ended."""
        return _state("ok" if engine.is_alive else "the model's thread has ended", engine.is_alive)

    @router.get("/readyz", response_model=ServiceState, responses=_OR_NOT)
    async def readyz() -> Response:
        """Whether requests are to be sent here: 200, or 503 while it shuts down or its edits cannot be reached."""
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
        """Figures for Prometheus."""
        return Response(engine.metrics.text(), headers={"Content-Type": CONTENT_TYPE})

    return router


def _state(text: str, is_good: bool) -> JSONResponse:
    return JSONResponse({"status": text}, 200 if is_good else 503)


async def _refuse(request: Request, error: Exception) -> Response:
    response = problem_of(error).response
    if response.status_code == 405 and (methods := _methods(request)):
        # Starlette names those of the first route of this path alone.
        response.headers["Allow"] = ", ".join(sorted(methods))
    return response


def _methods(request: Request) -> set[str]:
    """The methods that are taken at the path of a request, by the schema."""
    found: set[str] = set()
    for path, operations in request.app.openapi()["paths"].items():
        if compile_path(path)[0].match(request.scope["path"]):
            found |= {method.upper() for method in operations}
    return found
