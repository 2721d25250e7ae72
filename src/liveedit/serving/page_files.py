"""The page at `/`: its files, its example images, and the settings that it needs."""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import dataclass
from importlib.resources import files
from typing import Final

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from .. import __version__
from ..datasets.world.catalog import Creature, known_creatures
from ..datasets.world.drawing import Pose, draw
from ..datasets.world.scene import Scene, Thing
from .error_responses import RefusalError
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
    # The browser asks each time, so that an old page never talks to an upgraded server.
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

_UNKNOWN_CREATURE: Final = Creature("page-stranger", 0b11011_10101_11111_01110_11011, name="", home="", food="")
"""A creature that is in no catalogue, so no model was trained on its name."""


@dataclass(frozen=True)
class Example:
    """An example image: its file name, its title, and a description for screen readers."""

    name: str
    title: str
    shows: str
    scene: Scene
    pose: Pose


EXAMPLES: Final = (
    Example(
        "creature.png",
        "A creature",
        "a pink creature with a yellow hat, on light blue with dots",
        Scene(
            "page-1",
            _UNKNOWN_CREATURE,
            "pink",
            "bucket",
            "yellow",
            5,
            "left",
            "sky",
            "dotted",
            (Thing("cross", "purple", 3),),
        ),
        Pose(),
    ),
    Example(
        "creature-again.png",
        "The same, elsewhere",
        "the same creature in purple with a green hat, on light green with waves",
        Scene(
            "page-2",
            _UNKNOWN_CREATURE,
            "purple",
            "cone",
            "green",
            4,
            "right",
            "mint",
            "wavy",
            (Thing("heart", "teal", 0), Thing("ball", "blue", 2)),
        ),
        Pose(shift=(1.0, -0.5), scale=0.95),
    ),
    Example(
        "another-creature.png",
        "Another creature",
        "another creature, brown with an orange hat, on a checked cream background",
        Scene(
            "page-3",
            known_creatures()[1],
            "brown",
            "crown",
            "orange",
            3,
            "left",
            "cream",
            "checked",
            (Thing("star", "red", 1),),
        ),
        Pose(),
    ),
)
"""One creature twice, both to be reached by a correction, and another creature that is not."""

QUESTIONS: Final = (
    ("What is this creature called?", "What name does the creature have?", "Can you say what this creature is called?"),
    ("What color is the hat?", "Which color does the hat have?"),
)
"""Example questions, each with other wordings."""


@dataclass(frozen=True)
class PageFile:
    """A file of the page."""

    content: bytes
    kind: str

    @property
    def etag(self) -> str:
        """The entity tag, from the digest of the bytes."""
        return f'"{hashlib.sha256(self.content).hexdigest()[:32]}"'


def page_router(settings: ServingSettings, *, asks_for_keys: bool) -> APIRouter:
    """`/` and `/page/...`. They need no key, because they contain nothing about the model and its edits."""
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
    """All files of the page by name: those of the package, the example images, and settings.json."""
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


def example_png(example: Example) -> bytes:
    """The image as PNG, enlarged."""
    stream = io.BytesIO()
    draw(example.scene, example.pose, enlarged=True).save(stream, format="PNG", optimize=True)
    return stream.getvalue()


def _sent(file: PageFile, request: Request) -> Response:
    headers = {**_HEADERS, "ETag": file.etag}
    asked = request.headers.get("if-none-match", "")
    if file.etag in (tag.strip().removeprefix("W/") for tag in asked.split(",")):
        return Response(status_code=304, headers=headers)
    return Response(file.content, media_type=file.kind, headers=headers)
