"""The HTTP application: routes, one shape of errors, and an OpenAPI schema that says so."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import APIRouter, FastAPI, Security
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from fastapi.security import HTTPBearer
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from .. import __version__
from ..errors import LiveEditError
from .chat import chat_router
from .edits import edits_router
from .engine import Engine
from .gate import Gate, role_for
from .heat_maps import heat_maps_router
from .idempotency import Idempotency
from .keys import KeyFile
from .metrics import CONTENT_TYPE
from .page_files import page_router
from .problems import ErrorBody, problem_of
from .reading import reading_router
from .served_model import ServedModel
from .service import Service

_ERRORS: dict[int, str] = {
    400: "A field that cannot be taken; `param` names it.",
    401: "No key, or an unknown one.",
    403: "A key whose role does not reach.",
    404: "No such model, edit or route.",
    408: "The body did not arrive in time.",
    409: "An edit that is not in the state for this, or an Idempotency-Key that came before with another body.",
    410: "An edit that was purged.",
    413: "A body that is too large.",
    415: "A body that is not JSON.",
    429: "Too many requests wait; see Retry-After.",
    500: "The server failed.",
    503: "The server is shutting down, or the request waited too long; see Retry-After.",
}


def create_app(engine: Engine[ServedModel], model_name: str, model: ServedModel, keys: KeyFile | None) -> FastAPI:
    """The application around an engine, which it closes at its end.

    model_name: what clients call the model. keys: None to ask for none, which is for a loopback address alone.
    """
    settings, metrics = engine.settings, engine.metrics
    service = Service(engine, model, model_name, settings, Idempotency(settings.kept_idempotency_keys))
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
    app.include_router(_operating_router(service), tags=["operating"])
    app.include_router(page_router(settings, asks_for_keys=keys is not None), include_in_schema=False)
    app.add_middleware(Gate, settings=settings, keys=keys, metrics=metrics)
    app.openapi = lambda: _schema(app)
    return app


def _operating_router(service: Service) -> APIRouter:
    router = APIRouter()
    engine = service.engine

    @router.get("/healthz")
    async def healthz() -> Response:
        """Whether the process is to be kept: 200, or 503 where the model's thread has ended."""
        return _state("ok" if engine.is_alive else "the model's thread has ended", engine.is_alive)

    @router.get("/readyz")
    async def readyz() -> Response:
        """Whether requests are to be sent here: 200, or 503 while it shuts down."""
        return _state("ready" if engine.is_ready else "shutting down", engine.is_ready)

    @router.get("/metrics")
    async def metrics() -> Response:
        """Figures for Prometheus."""
        return Response(engine.metrics.text(), headers={"Content-Type": CONTENT_TYPE})

    return router


def _state(text: str, is_good: bool) -> JSONResponse:
    return JSONResponse({"status": text}, 200 if is_good else 503)


async def _refuse(request: Request, error: Exception) -> Response:
    return problem_of(error).response


def _schema(app: FastAPI) -> dict[str, Any]:
    """OpenAPI, with the errors as they are: 400 in place of FastAPI's 422, and the one error shape."""
    if app.openapi_schema is None:
        schema = get_openapi(title=app.title, version=app.version, summary=app.summary, routes=app.routes)
        parts = schema["components"]["schemas"]
        for gone in ("HTTPValidationError", "ValidationError"):
            parts.pop(gone, None)
        error = ErrorBody.model_json_schema(ref_template="#/components/schemas/{model}")
        parts |= error.pop("$defs")
        parts["ErrorBody"] = error
        body = {"application/json": {"schema": {"$ref": "#/components/schemas/ErrorBody"}}}
        for path, operations in schema["paths"].items():
            for operation in operations.values():
                operation["responses"].pop("422", None)
                if role_for(path) is not None:
                    errors = {str(status): {"description": text, "content": body} for status, text in _ERRORS.items()}
                    operation["responses"] = {**errors, **operation["responses"]}
        app.openapi_schema = schema
    return app.openapi_schema
