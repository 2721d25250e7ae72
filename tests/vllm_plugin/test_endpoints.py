"""The plugin's routes and its middleware, in an app that stands for vLLM's. vLLM itself is not needed."""

from __future__ import annotations

import asyncio
import json
from argparse import Namespace
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI, Request
from fastapi.testclient import TestClient
from served_process import serving
from starlette.responses import StreamingResponse

from liveedit.vllm.endpoints import EditEndpoints

FIRED = {"edits": [{"id": "0a1b2c3d", "weight": 1.0, "margin": 2.5}], "revision": 4}
TENANTS = {"repositories": {"shop": {"edits": "shop.db"}, "museum": {"edits": "museum.db"}}}


class FakeEngine:
    """What the plugin asks of vLLM's engine client."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.asked_before_the_end: list[str] = []
        self.undecided = 0
        """How often it does not know yet which edits fired."""

    async def collective_rpc(self, method: str, args: tuple[str]) -> list[Any]:
        assert method == "liveedit_fired"
        self.asked.append(args[0])
        self.undecided -= 1
        return [None, FIRED if self.undecided < 0 else None]


def client_of(settings: dict[str, Any] | None) -> tuple[TestClient, FakeEngine]:
    app, engine = FastAPI(), FakeEngine()

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Any:
        body = await request.json()
        answer = {"id": "chatcmpl-1", "choices": [{"message": {"content": "Bruvak"}, "finish_reason": "stop"}]}
        if not body.get("stream"):
            return answer

        async def events() -> AsyncIterator[bytes]:
            for finish in (None, "stop"):
                if finish is not None:
                    await asyncio.sleep(0.01)
                    engine.asked_before_the_end = list(engine.asked)
                event = {"id": "chatcmpl-1", "choices": [{"delta": {"content": "x"}, "finish_reason": finish}]}
                yield f"data: {json.dumps(event, separators=(',', ':'))}\n\n".encode()
            yield b"data: [DONE]\n\n"

        return StreamingResponse(events(), media_type="text/event-stream")

    plugin = EditEndpoints()
    plugin.attach_router(app)
    config = {} if settings is None else {"liveedit": settings}
    asyncio.run(plugin.init_state(engine, app.state, Namespace(additional_config=config)))
    return TestClient(app), engine


def test_answers_name_the_edits_that_fired() -> None:
    client, engine = client_of({"edits": "edits.db"})
    answer = client.post("/v1/chat/completions", json={"messages": []})
    assert answer.json()["liveedit"] == FIRED
    assert answer.json()["choices"][0]["message"]["content"] == "Bruvak"
    assert engine.asked == ["chatcmpl-1"]


def test_a_streamed_answer_names_them_in_its_last_event() -> None:
    client, engine = client_of({"edits": "edits.db"})
    answer = client.post("/v1/chat/completions", json={"messages": [], "stream": True})
    events = [line.removeprefix("data: ") for line in answer.text.split("\n") if line]
    assert events[-1] == "[DONE]"
    first, last = (json.loads(event) for event in events[:-1])
    assert "liveedit" not in first and last["liveedit"] == FIRED
    assert engine.asked == ["chatcmpl-1"] == engine.asked_before_the_end, "the last event does not wait for the worker"


def test_edits_that_were_not_known_at_the_first_event_are_asked_for_again() -> None:
    client, engine = client_of({"edits": "edits.db"})
    engine.undecided = 1
    answer = client.post("/v1/chat/completions", json={"messages": [], "stream": True})
    last = json.loads(answer.text.split("\n\n")[-3].removeprefix("data: "))
    assert last["liveedit"] == FIRED
    assert engine.asked == ["chatcmpl-1", "chatcmpl-1"]


@pytest.mark.parametrize(
    ("settings", "xargs"),
    [
        (None, None),
        ({"edits": "edits.db"}, {"liveedit": "none"}),
        (TENANTS, None),
        (TENANTS, {"liveedit": "bank"}),
        (TENANTS, "not an object"),
    ],
)
def test_unedited_answers_stay_as_they_are(settings: dict[str, Any] | None, xargs: Any) -> None:
    client, engine = client_of(settings)
    further = {} if xargs is None else {"vllm_xargs": xargs}
    answer = client.post("/v1/chat/completions", json={"messages": [], **further})
    assert "liveedit" not in answer.json()
    assert engine.asked == []


def test_a_tenant_that_names_its_repository_sees_its_edits() -> None:
    client, _ = client_of(TENANTS)
    answer = client.post("/v1/chat/completions", json={"messages": [], "vllm_xargs": {"liveedit": "museum"}})
    assert answer.json()["liveedit"] == FIRED


def test_edits_are_made_by_the_maker(tmp_path: Path) -> None:
    with serving(tmp_path / "edits.db", tmp_path) as (server,):
        client, _ = client_of({"edits": str(tmp_path / "edits.db"), "maker": server.url})
        wanted = {"prompt": "What is the capital of Laquilland?", "answer": "Bruvak"}
        refused = client.post("/v1/edits", json=wanted)
        assert (refused.status_code, refused.json()) == (
            (direct := server.http.post("/v1/edits", json=wanted)).status_code,
            direct.json(),
        )
        listed = client.get("/v1/edits", params={"limit": 5})
        assert listed.status_code == 200 and listed.json()["object"] == "list"
        assert client.post("/v1/edits/0a1b2c3d/undo").status_code == 404


def test_a_missing_maker_is_named() -> None:
    client, _ = client_of({"edits": "edits.db"})
    answer = client.get("/v1/edits")
    assert answer.status_code == 501
    assert "liveedit serve --edits edits.db" in answer.json()["error"]["message"]
    client, _ = client_of({"edits": "edits.db", "maker": "http://127.0.0.1:9"})
    answer = client.get("/v1/edits")
    assert answer.status_code == 503 and "http://127.0.0.1:9" in answer.json()["error"]["message"]


def test_an_unknown_repository_is_named() -> None:
    client, _ = client_of(TENANTS)
    assert client.get("/v1/edits").status_code == 404
    answer = client.get("/v1/edits", params={"repository": "bank"})
    assert answer.status_code == 404
    assert "shop, museum" in answer.json()["error"]["message"]
    client, _ = client_of(None)
    assert "Known: none" in client.get("/v1/edits").json()["error"]["message"]
