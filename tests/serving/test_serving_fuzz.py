"""Broken images, bodies and heads against a real server: it refuses them, forgets them, and keeps its edits.

`LIVEEDIT_FUZZ` says how many requests; `make fuzz` asks for 10,000. Each follows from its number.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from fuzzed_requests import Fuzzed, fuzzed_request
from served_process import ServedProcess, serving

from liveedit.backbones import Backbone
from liveedit.edited.model import EditedModel
from liveedit.samples import EditCase
from liveedit.serving.api_keys import KeyFile

REQUESTS = int(os.environ.get("LIVEEDIT_FUZZ", "0")) or 400
CLIENTS = 4
PATIENCE_SECONDS = 1
"""For the answer to a request that may never be whole."""
GROWTH_BYTES = 64 * 2**20
"""Between the first third of the requests and the last: what an allocator may keep, and far below what leaks would."""


class Fuzzer:
    """Sends requests and notes what came back."""

    def __init__(self, server: ServedProcess, key: str, folder: Path):
        self.server, self._key, self._folder = server, key, folder
        self.statuses: Counter[int] = Counter()
        self.made: list[str] = []
        self.failures: list[str] = []

    def send(self, number: int) -> None:
        request = fuzzed_request(number, self._key)
        try:
            status, body = self._send_raw(request.raw) if request.raw is not None else self._send(request)
        except Exception as error:
            self._fail(number, request, f"{type(error).__name__}: {error}")
            return
        self.statuses[status] += 1
        if status >= 500 or (status == 0 and request.raw is None):
            self._fail(number, request, f"{status}: {body[:300]!r}")
        if status >= 400 and request.raw is None and json.loads(body).keys() != {"error"}:
            self._fail(number, request, f"another shape of error: {body[:300]!r}")
        if status == 201:
            self.made.append(json.loads(body)["id"])

    def _send(self, request: Fuzzed) -> tuple[int, bytes]:
        response = self.server.http.request(
            request.method, request.path, content=request.body, headers=dict(request.headers)
        )
        return response.status_code, response.content

    def _send_raw(self, data: bytes) -> tuple[int, bytes]:
        """The status is 0 where the server waits for more until the line is closed."""
        answer = b""
        with socket.create_connection(("127.0.0.1", self.server.port), timeout=PATIENCE_SECONDS) as line:
            try:
                line.sendall(data)
                while part := line.recv(65_536):
                    answer += part
            except (BrokenPipeError, ConnectionResetError, TimeoutError):
                pass
        finals = [part for part in answer.split(b"HTTP/1.1 ")[1:] if not part.startswith(b"100")]
        return (int(finals[0][:3]), finals[0].partition(b"\r\n\r\n")[2]) if finals else (0, b"")

    def _fail(self, number: int, request: Fuzzed, what: str) -> None:
        file = self._folder / f"failure-{number}"
        file.write_bytes(request.raw if request.raw is not None else request.body)
        self.failures.append(f"request {number} ({request.method} {request.path}, kept as {file}): {what}")

    def undo_what_was_made(self) -> None:
        """The newest first: those that it superseded come back."""
        made, after = set(self.made), {}
        while made:
            page = self.server.http.get("/v1/edits", params={"state": "all", "order": "desc", **after}).json()
            for edit_id in [edit["id"] for edit in page["data"] if edit["id"] in made]:
                assert self.server.http.post(f"/v1/edits/{edit_id}/undo").status_code == 200
                made.remove(edit_id)
            after = {"after": page["last_id"]}


@pytest.fixture
def fuzzer(tiny_llava: Backbone, tmp_path: Path, eval_cases: tuple[EditCase, ...]) -> Iterator[Fuzzer]:
    keys = tmp_path / "keys.json"
    key = KeyFile(keys).add("edit", "fuzzer")[1]
    with EditedModel.load(tiny_llava, edits=tmp_path / "edits.db") as model:
        questions = [case.edit.question for case in eval_cases[:4]]
        made = [model.edit(question.image, question.prompt, "Bruvak", author="Ada").id for question in questions]
        model.undo(made[0])
    with serving(tmp_path / "edits.db", tmp_path, "--keys", keys, key=key) as (server,):
        yield Fuzzer(server, key, tmp_path)


def digest_of(server: ServedProcess) -> str:
    """Of the edits in force, and of their answers to one question."""
    listed = server.http.get("/v1/edits", params={"limit": 100}).json()
    said: Any = server.ask("What color is the hat?", max_tokens=8)
    return hashlib.sha256(json.dumps([listed, said["choices"]], sort_keys=True).encode()).hexdigest()


@pytest.mark.slow
def test_broken_requests_are_refused_and_leave_nothing(fuzzer: Fuzzer) -> None:
    server = fuzzer.server
    before, third = digest_of(server), REQUESTS // 3
    memory = []
    with ThreadPoolExecutor(CLIENTS) as pool:
        for numbers in (range(third), range(third, 2 * third), range(2 * third, REQUESTS)):
            list(pool.map(fuzzer.send, numbers))
            memory.append(server.resident_bytes())
    print(f"statuses: {sorted(fuzzer.statuses.items())}; resident MiB: {[size >> 20 for size in memory]}")
    assert not fuzzer.failures, "\n".join(fuzzer.failures[:20])
    assert "Traceback" not in server.log.read_text()
    assert memory[-1] - memory[0] < GROWTH_BYTES
    assert {200, 400, 404, 405, 415} <= fuzzer.statuses.keys(), "every kind of request came through"
    fuzzer.undo_what_was_made()
    assert digest_of(server) == before
