"""Requests to the service that are broken in every way we could think of, each from its number."""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass
from random import Random
from typing import Any

from fuzzed_images import fuzzed_uri

CHAT, EDITS, HEAT_MAPS, CHECK = "/v1/chat/completions", "/v1/edits", "/v1/heat-maps", "/v1/check"
MARKER = "<image>"
"""No model takes this in a prompt; it is found after the image was decoded. So most images make no edit."""

_WEIRD = (
    "NaN",
    "Infinity",
    "-Infinity",
    "1e999",
    "-0.0",
    "1" * 5_000,
    "1e-400",
    "18446744073709551616",
    "null",
    "true",
    "[]",
    "{}",
    '""',
    '" "',
    '"\\u0000"',
    '"\\ud800"',
    '"\\udfff\\ud800"',
    '"\\ufeff\\u202e\\u2028"',
    '"' + "x" * 70_000 + '"',
    '"' + "\\ud83d\\ude00" * 3_000 + '"',
    "[" * 500 + "]" * 500,
    "[" * 100_000,
    '{"a":' * 2_000 + "1" + "}" * 2_000,
    '{"role": "user", "role": "system"}',
    "'single'",
    "0x10",
    "01",
    "\x00",
    "/*",
)
_TYPES = ("text/plain", "application/json; charset=utf-16", "multipart/form-data", "", "application/JSON", "é")
_PATHS = (
    "/v1/edits/0000/undo",
    "/v1/edits/ffffffff/redo",
    "/v1/edits/%00/history",
    "/v1/edits/..%2f..%2fetc/thumbnail",
    "/v1/edits/ffffffff",
    "/v1/edits?limit=1e9",
    "/v1/edits?after=%ff%fe",
    "/v1/edits?after='%20OR%201=1--&order=desc",
    "/v1/edits?state=all&limit=99999999999999999999",
    "/v1/models/%F0%9F%98%80",
    "/v1/models/../../healthz",
    "/metrics",
    "//",
    "/v1/edits/",
)


@dataclass(frozen=True)
class Fuzzed:
    """A request: its parts, or (raw) the bytes as they go over the line."""

    method: str = "POST"
    path: str = CHAT
    headers: tuple[tuple[str, str], ...] = (("Content-Type", "application/json"),)
    body: bytes = b""
    raw: bytes | None = None


def fuzzed_request(number: int, key: str) -> Fuzzed:
    """The request of this number, the same each time. key: of the role edit."""
    chance = Random(number)
    make = chance.choices([_with_images, _mutated, _lying, _elsewhere, _noise], [10, 8, 3, 2, 1])[0]
    return make(chance, key)


def _with_images(chance: Random, key: str) -> Fuzzed:
    """A sound request about an image that may not be."""
    path, body = _request(chance, fuzzed_uri(chance))
    return Fuzzed(path=path, body=json.dumps(body).encode())


def _mutated(chance: Random, key: str) -> Fuzzed:
    """A request with some parts replaced, missing, or there twice; or bytes that are no JSON."""
    path, body = _request(chance, fuzzed_uri(chance) if chance.random() < 0.3 else None)
    replaced: list[str] = []
    for _ in range(chance.choice([1, 1, 2, 5])):
        _replace_one(body, chance, replaced)
    text = json.dumps(body, ensure_ascii=chance.random() < 0.5)
    for place, weird in enumerate(replaced):
        text = text.replace(f'"@{place}@"', weird)
    if chance.random() < 0.1:
        text = text.replace("{", '{"prompt": "twice", "model": "x", ', 1)
    data = text.encode("utf-8", "surrogatepass")
    broken = chance.random()
    if broken < 0.1:
        data = data[: chance.randrange(len(data) + 1)]
    elif broken < 0.2:
        place = chance.randrange(len(data) + 1)
        data = data[:place] + chance.randbytes(chance.choice([1, 3])) + data[place:]
    elif broken < 0.25:
        data = text.encode(chance.choice(["utf-16", "utf-32", "utf-8-sig"]), "surrogatepass")
    return Fuzzed(path=path, body=data)


def _replace_one(node: Any, chance: Random, replaced: list[str]) -> None:
    while True:
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        if not keys:
            return
        key = chance.choice(keys)
        if isinstance(node[key], dict | list) and chance.random() < 0.7:
            node = node[key]
            continue
        if chance.random() < 0.2:
            del node[key]
        elif chance.random() < 0.2 and isinstance(node, dict):
            node[chance.choice(["", "\ud800", "tools", "__proto__", "x" * 300])] = chance.choice([1, None, "y", []])
        else:
            node[key] = f"@{len(replaced)}@"
            replaced.append(chance.choice(_WEIRD))
        return


def _request(chance: Random, uri: str | None) -> tuple[str, dict[str, Any]]:
    """A sound request to one of the routes. An edit is seldom one that would be made."""
    route = chance.choices([CHAT, EDITS, HEAT_MAPS, CHECK], [5, 4, 2, 1])[0]
    has_image = {} if uri is None else {"image": uri}
    if route == CHECK:
        return CHECK, {"limit": chance.choice([1, 2]), "after": chance.choice([None, "ffffffff", ""])}
    if route == HEAT_MAPS:
        return HEAT_MAPS, {"prompt": "What is this?", "change_cells": chance.choice([None, None, 2]), **has_image}
    if route == EDITS:
        return EDITS, {**_edit(chance), **has_image}
    parts: list[Any] = [{"type": "text", "text": "What is this?"}]
    if uri is not None:
        parts.append({"type": "image_url", "image_url": {"url": uri, "detail": "auto"}})
    further: dict[str, Any] = {"max_tokens": 1, "temperature": 0.5, "seed": 1, "stop": ["x"]}
    if chance.random() < 0.1:
        further |= {"stream": True, "stream_options": {"include_usage": True}}
    return CHAT, {"model": "tiny-llava", "messages": [{"role": "user", "content": parts}], **further}


def _edit(chance: Random) -> dict[str, Any]:
    prompt = "What is this?" if chance.random() < 0.03 else f"What is this {MARKER}?"
    edit = {"prompt": prompt, "answer": "Bruvak", "rephrasings": ["And this?"], "note": "why", "author": "me"}
    if chance.random() < 0.5:
        edit["locality"] = [{"prompt": "And that?", "image": fuzzed_uri(chance)}, {"prompt": "Who?"}]
    if chance.random() < 0.5:
        edit["supersede"] = chance.random() < 0.5
    return edit


def _lying(chance: Random, key: str) -> Fuzzed:
    """A sound body with a head that says something else."""
    path, request = _request(chance, None)
    body = json.dumps(request).encode()
    length = str(len(body))
    lies = (
        [f"Content-Length: {chance.choice(['0', '5', '-1', '1e3', '99999999999999999999', str(len(body) + 50), 'x'])}"],
        [f"Content-Length: {length}", f"Content-Length: {len(body) - 1}"],
        [f"Content-Length: {length}", "Transfer-Encoding: chunked"],
        ["Transfer-Encoding: chunked"],
        ["Transfer-Encoding: gzip, chunked"],
        [f"Content-Length: {length}", "Content-Encoding: gzip"],
        [f"Content-Length: {length}", "Expect: 100-continue"],
        [f"Content-Length: {length}", "Idempotency-Key: " + "k" * chance.choice([0, 256, 5_000])],
        [f"Content-Length: {length}", "X: " + "y" * chance.choice([10_000, 200_000])],
        [f"Content-Length: {length}", *[f"X-{number}: 1" for number in range(500)]],
        [f"Content-Length: {length}", "Authorization: Bearer " + "z" * 3_000],
    )
    lie = chance.choice(lies)
    if "Transfer-Encoding: chunked" in lie and chance.random() < 0.7:
        size = chance.choice([f"{len(body):x}", "-1", "fffffffffffffffff", "zz", f"{len(body):x};ext=1"])
        body = f"{size}\r\n".encode() + body + chance.choice([b"\r\n0\r\n\r\n", b"", b"\r\n0\r\nTrailer: x\r\n\r\n"])
    if chance.random() < 0.2:
        body = gzip.compress(body)
    kind = chance.choice(["application/json", "application/json", *_TYPES])
    lines = [f"POST {path} HTTP/1.1", "Host: 127.0.0.1", f"Authorization: Bearer {key}", f"Content-Type: {kind}", *lie]
    return Fuzzed(raw="\r\n".join(lines).encode() + b"\r\nConnection: close\r\n\r\n" + body)


def _elsewhere(chance: Random, key: str) -> Fuzzed:
    """Other paths and methods."""
    method = chance.choice(["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD", "TRACE", "get", "X" * 50])
    path = chance.choice([*_PATHS, CHAT, EDITS, HEAT_MAPS, CHECK])
    lines = [f"{method} {path} HTTP/1.1", "Host: 127.0.0.1", f"Authorization: Bearer {key}", "Connection: close"]
    return Fuzzed(raw="\r\n".join(lines).encode() + b"\r\n\r\n")


def _noise(chance: Random, key: str) -> Fuzzed:
    """Bytes, after a sound beginning or not."""
    head = f"POST {CHAT} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {key}\r\n".encode()
    return Fuzzed(raw=chance.choice([b"", head]) + chance.randbytes(chance.choice([1, 50, 5_000])) + b"\r\n\r\n")
