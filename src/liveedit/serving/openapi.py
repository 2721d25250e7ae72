"""The OpenAPI schema of one service: as strict as the service, with its limits and the name of its model."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from typing import Any, Final

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from PIL import Image

from .chat_messages import NONEMPTY_PATTERN, SEEDS
from .error_responses import ErrorBody
from .images import image_pattern
from .middleware import role_for
from .service import Service

_ERRORS: Final[dict[int, str]] = {
    400: "An invalid field; `param` names it.",
    401: "No API key, or an unknown one.",
    403: "An API key without the required role.",
    404: "No such model, edit, or thumbnail.",
    408: "The body did not arrive in time.",
    409: "An edit in the wrong state, or an Idempotency-Key that was used with another body.",
    410: "A purged edit.",
    413: "The body is too large.",
    415: "The body is not JSON.",
    422: "An edit that does not take, unless `must_take` is false; nothing was stored.",
    429: "Too many requests; see Retry-After.",
    500: "The server failed.",
    501: "The editor has no attention map, or does not compare edits with each other.",
    503: "The server is shutting down, the edits are unreachable, or the request waited too long; see Retry-After.",
}
_ALWAYS: Final = frozenset({400, 401, 403, 429, 500, 503})
_OF_CHANGES: Final = frozenset({404, 408, 409, 413, 415})
"""For all methods that may have a body."""

_REF: Final = "#/components/schemas/"


def schema_of(app: FastAPI, service: Service) -> dict[str, Any]:
    """The schema, with what FastAPI does not know: the error shape of this service, and its limits."""
    schema = get_openapi(title=app.title, version=app.version, summary=app.summary, routes=app.routes)
    parts = schema["components"]["schemas"]
    for gone in ("HTTPValidationError", "ValidationError"):
        parts.pop(gone, None)
    error = ErrorBody.model_json_schema(ref_template=_REF + "{model}")
    parts |= error.pop("$defs")
    parts["ErrorBody"] = error
    for path, method, operation in _operations(schema):
        operation["responses"] = _responses(path, method, operation["responses"])
    _tighten_chat(parts, service)
    _tighten_edits(parts, service)
    _tighten_heat_maps(parts, service)
    _add_examples(schema, service)
    return schema


def _operations(schema: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, operations in schema["paths"].items():
        for method, operation in operations.items():
            yield path, method, operation


def _responses(path: str, method: str, documented: dict[str, Any]) -> dict[str, Any]:
    documented = {status: response for status, response in documented.items() if status != "422"}
    if role_for(path) is None:
        return documented
    statuses = set(_ALWAYS)
    if method != "get":
        statuses |= _OF_CHANGES
    if "{" in path or path == "/v1/edits":
        statuses.add(404)
    if path.endswith(("/undo", "/redo", "/thumbnail", "/near")):
        statuses.add(410)
    if (path, method) == ("/v1/edits", "post"):
        statuses.add(422)
    if path == "/v1/heat-maps" or path.endswith("/near"):
        statuses.add(501)
    body = {"application/json": {"schema": {"$ref": f"{_REF}ErrorBody"}}}
    errors = {str(status): {"description": _ERRORS[status], "content": body} for status in sorted(statuses)}
    return {**errors, **documented}


def _tighten_chat(parts: dict[str, Any], service: Service) -> None:
    """Add the limits that the routes check themselves, for better messages than pydantic's."""
    longest = service.settings.prompt_characters
    request, message = parts["ChatRequest"], parts["ChatMessage"]
    request["properties"]["model"] = {"type": "string", "enum": [service.model_name]}
    request["properties"]["messages"]["maxItems"] = 1
    for name in ("max_tokens", "max_completion_tokens"):
        request["properties"][name]["anyOf"][0]["maximum"] = service.settings.new_tokens
    # FastAPI would round the limits.
    request["properties"]["seed"]["anyOf"][0] |= {"minimum": SEEDS[0], "maximum": SEEDS[1]}
    text = {"type": "string", "pattern": NONEMPTY_PATTERN, "maxLength": longest}
    parts["ImageUrl"]["properties"]["url"] |= _image(service)
    kinds = {"TextPart": {"text": text}, "ImagePart": {"image_url": {"$ref": f"{_REF}ImageUrl"}}}
    for (name, fields), kind in zip(kinds.items(), ("text", "image_url"), strict=True):
        parts[name] = {
            "type": "object",
            "properties": {"type": {"type": "string", "const": kind}, **fields},
            "required": ["type", *fields],
            "additionalProperties": False,
        }
    parts.pop("Part")
    # A text, and at most one image before or after it.
    words, image = ({"$ref": f"{_REF}{name}"} for name in kinds)
    orders = [[words], [words, image], [image, words]]
    lists = [
        {"type": "array", "prefixItems": order, "items": False, "minItems": len(order), "maxItems": len(order)}
        for order in orders
    ]
    message["properties"] = {"role": {"type": "string", "const": "user"}, "content": {"anyOf": [text, *lists]}}
    message["required"] = ["role", "content"]


def _tighten_edits(parts: dict[str, Any], service: Service) -> None:
    fields = parts["EditRequest"]["properties"]
    longest = service.settings.prompt_characters
    for field in (fields["prompt"], fields["answer"], fields["rephrasings"]["items"]):
        field |= {"pattern": NONEMPTY_PATTERN, "maxLength": min(longest, field.get("maxLength", longest))}
    fields["rephrasings"]["maxItems"] = service.settings.rephrasings
    fields["image"]["anyOf"][0] |= _image(service)
    fields["locality"]["maxItems"] = service.settings.locality
    asked = parts["LocalityQuestion"]["properties"]
    asked["prompt"] |= {"pattern": NONEMPTY_PATTERN, "maxLength": longest}
    asked["image"]["anyOf"][0] |= _image(service)
    if service.served.model.editor.needs_image:
        fields["image"] = {key: value for key, value in fields["image"].items() if key != "anyOf"}
        fields["image"] |= {"type": "string", **_image(service)}
        parts["EditRequest"]["required"].append("image")


def _tighten_heat_maps(parts: dict[str, Any], service: Service) -> None:
    fields = parts["HeatMapRequest"]["properties"]
    fields["prompt"] |= {"pattern": NONEMPTY_PATTERN, "maxLength": service.settings.prompt_characters}
    fields["image"] |= _image(service)


def _image(service: Service) -> dict[str, Any]:
    return {"pattern": image_pattern()} if service.fetcher is None else {"format": "uri"}


def _add_examples(schema: dict[str, Any], service: Service) -> None:
    image, prompt = _example_image(), "What color is this?"
    content = [{"type": "text", "text": prompt}, {"type": "image_url", "image_url": {"url": image}}]
    examples = {
        "/v1/chat/completions": {
            "model": service.model_name,
            "messages": [{"role": "user", "content": content}],
            "temperature": 0,
        },
        "/v1/heat-maps": {"image": image, "prompt": prompt, "change_cells": 2},
        "/v1/edits": {
            "image": image,
            "prompt": prompt,
            "answer": "blue",
            "note": "ticket 4711",
            "locality": [{"image": image, "prompt": "How many legs are there?"}],
        },
        "/v1/check": {"limit": 20},
    }
    for path, example in examples.items():
        schema["paths"][path]["post"]["requestBody"]["content"]["application/json"]["example"] = example


def _example_image() -> str:
    stream = io.BytesIO()
    Image.new("RGB", (32, 32), (40, 80, 200)).save(stream, "PNG")
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"
