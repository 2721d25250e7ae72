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

from liveedit.vllm.answers import FiredEdits
from liveedit.vllm.endpoints import EditEndpoints

FIRED = {"edits": [{"id": "0a1b2c3d", "weight": 1.0, "margin": 2.5}], "revision": 4}
TENANTS = {"repositories": {"shop": {"edits": "shop.db"}, "museum": {"edits": "museum.db"}}}


class FakeEngine:
    """What the plugin asks of vLLM's engine client."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.calls = 0
        self.asked_before_the_end: list[str] = []
        self.undecided = 0
        """How often it does not know yet which edits fired."""
        self.fails = False

    async def collective_rpc(self, method: str, args: tuple[list[str]]) -> list[Any]:
        """Two ranks, of which the second one knows the answers."""
        assert method == "liveedit_fired"
        (request_ids,) = args
        self.asked += request_ids
        self.calls += 1
        await asyncio.sleep(0.01)
        if self.fails:
            raise RuntimeError("the engine is dead")
        self.undecided -= 1
        return [[None] * len(request_ids), [self.of(one) if self.undecided < 0 else None for one in request_ids]]

    def of(self, request_id: str) -> dict[str, Any]:
        """Each prompt of a completion has edits of its own."""
        return {**FIRED, "revision": int(request_id[-1])} if request_id.startswith("cmpl-") else FIRED


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

    @app.post("/v1/completions")
    async def complete(request: Request) -> Any:
        body = await request.json()
        count = len(body["prompt"]) * body.get("n", 1)
        choices = [{"index": place, "text": "x", "finish_reason": "stop"} for place in range(count)]
        answer = {"id": "cmpl-7", "object": "text_completion"}
        if not body.get("stream"):
            return {**answer, "choices": choices}

        async def events() -> AsyncIterator[bytes]:
            for choice in reversed(choices):
                yield f"data: {json.dumps({**answer, 'choices': [choice]}, separators=(',', ':'))}\n\n".encode()
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


@pytest.mark.parametrize("per_prompt", [1, 2])
def test_each_prompt_of_a_completion_has_its_own_edits(per_prompt: int) -> None:
    client, _ = client_of({"edits": "edits.db"})
    body = {"prompt": ["a", "b", "c"], "n": per_prompt}
    choices = client.post("/v1/completions", json=body).json()["choices"]
    wanted = {place: place // per_prompt for place in range(3 * per_prompt)}
    assert {one["index"]: one["liveedit"]["revision"] for one in choices} == wanted
    streamed = client.post("/v1/completions", json={**body, "stream": True}).text
    events = [json.loads(line.removeprefix("data: ")) for line in streamed.split("\n\n")[:-2]]
    assert {one["choices"][0]["index"]: one["liveedit"]["revision"] for one in events} == wanted


def test_a_completion_of_one_prompt_names_its_edits_as_a_chat_does() -> None:
    client, engine = client_of({"edits": "edits.db"})
    answer = client.post("/v1/completions", json={"prompt": ["a"]}).json()
    assert answer["liveedit"] == {**FIRED, "revision": 0} and "liveedit" not in answer["choices"][0]
    assert engine.asked == ["cmpl-7-0"]


def test_answers_that_end_together_are_asked_for_together() -> None:
    engine = FakeEngine()
    fired = FiredEdits(Namespace(liveedit_engine=engine))

    async def ask() -> list[Any]:
        return await asyncio.gather(*(fired.of(f"cmpl-{number}") for number in (1, 2, 3, 2)))

    assert [one["revision"] for one in asyncio.run(ask())] == [1, 2, 3, 2]
    assert (engine.calls, engine.asked) == (1, ["cmpl-1", "cmpl-2", "cmpl-3"])


def test_a_client_that_leaves_takes_no_answer_from_others() -> None:
    engine = FakeEngine()
    fired = FiredEdits(Namespace(liveedit_engine=engine))

    async def ask() -> Any:
        first, second = (asyncio.ensure_future(fired.of("cmpl-1")) for _ in range(2))
        await asyncio.sleep(0)
        first.cancel()
        return await second

    assert asyncio.run(ask())["revision"] == 1


def test_an_engine_that_fails_is_told_to_all_who_wait_and_asked_again() -> None:
    engine = FakeEngine()
    fired = FiredEdits(Namespace(liveedit_engine=engine))

    async def ask() -> list[Any]:
        engine.fails = True
        failed = await asyncio.gather(fired.of("cmpl-1"), fired.of("cmpl-2"), return_exceptions=True)
        engine.fails = False
        return [*failed, await fired.of("cmpl-3")]

    first, second, third = asyncio.run(ask())
    assert isinstance(first, RuntimeError) and isinstance(second, RuntimeError)
    assert third["revision"] == 3


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
