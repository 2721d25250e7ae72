"""The page at `/`: its files, its example images, and what it has to know of the server."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from importlib.resources import files
from typing import Final

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from .. import __version__
from .error_responses import RefusalError
from .example_images import EXAMPLES, QUESTIONS, example_png
from .images import FORMATS
from .settings import ServingSettings

_TYPES: Final = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
    "png": "image/png",
    "json": "application/json",
}
_HEADERS: Final = {
    # Asked again each time, so that an upgraded server is never spoken to by yesterday's page.
    "Cache-Control": "no-cache",
    "Content-Security-Policy": "; ".join(
        (
            "default-src 'none'",
            "script-src 'self'",
            "style-src 'self'",
            "img-src 'self' blob: data:",
            "connect-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
            "require-trusted-types-for 'script'",
            "trusted-types 'none'",
        )
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


@dataclass(frozen=True)
class PageFile:
    """A file of the page. `etag`: of its bytes."""

    content: bytes
    kind: str

    @property
    def etag(self) -> str:
        """As a header says it."""
        return f'"{hashlib.sha256(self.content).hexdigest()[:32]}"'


def page_router(settings: ServingSettings, *, asks_for_keys: bool) -> APIRouter:
    """`/` and `/page/...`: open to all, for they hold nothing of the model and its edits."""
    router = APIRouter()
    found = page_files(settings, asks_for_keys=asks_for_keys)

    @router.api_route("/", methods=["GET", "HEAD"])
    async def page(request: Request) -> Response:
        """The page."""
        return _sent(found["index.html"], request)

    @router.api_route("/page/{name}", methods=["GET", "HEAD"])
    async def page_file(request: Request, name: str) -> Response:
        """A file of the page."""
        if name not in found:
            raise RefusalError(404, f"The page has no file {name!r}.", "unknown_route")
        return _sent(found[name], request)

    return router


def page_files(settings: ServingSettings, *, asks_for_keys: bool) -> dict[str, PageFile]:
    """Every file of the page by its name, read once: those of the package, example images, settings.json."""
    found = {
        entry.name: PageFile(entry.read_bytes(), _TYPES[entry.name.rpartition(".")[2]])
        for entry in files("liveedit.serving").joinpath("page").iterdir()
        if entry.name.rpartition(".")[2] in _TYPES
    }
    for example in EXAMPLES:
        found[example.name] = PageFile(example_png(example), _TYPES["png"])
    known = {
        "version": __version__,
        "asks_for_keys": asks_for_keys,
        "image_formats": [f"image/{name.lower()}" for name in FORMATS],
        "body_bytes": settings.body_bytes,
        "image_pixels": settings.image_pixels,
        "rephrasings": settings.rephrasings,
        "examples": [{"url": f"page/{one.name}", "title": one.title, "shows": one.shows} for one in EXAMPLES],
        "questions": QUESTIONS,
    }
    found["settings.json"] = PageFile(json.dumps(known).encode(), _TYPES["json"])
    return found


def _sent(file: PageFile, request: Request) -> Response:
    headers = {**_HEADERS, "ETag": file.etag}
    asked = request.headers.get("if-none-match", "")
    if file.etag in (tag.strip().removeprefix("W/") for tag in asked.split(",")):
        return Response(status_code=304, headers=headers)
    return Response(file.content, media_type=file.kind, headers=headers)
