"""The HTTP application around a model without weights: routes, errors in one shape, keys, limits, metrics."""

from __future__ import annotations

import base64
import json
import socket
import struct
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest
from PIL import Image
from serving_fakes import FakeModel, data_uri, fake_app, listening
from starlette.testclient import TestClient

from liveedit.answers import Fired
from liveedit.errors import StoreError
from liveedit.serving.api_keys import KeyFile
from liveedit.serving.middleware import OPEN_PATHS
from liveedit.serving.settings import ServingSettings

CHAT = "/v1/chat/completions"
REPLAYED = "Idempotent-Replayed"
NOTHING_FIRED = {"edits": [], "withheld": [], "revision": 0}
EDIT = {"prompt": "Who is this?", "answer": "Bruvak"}


def client_of(fake: FakeModel, keys: KeyFile | None = None, **limits: Any) -> TestClient:
    _, app = fake_app(fake, ServingSettings.model_validate(limits), keys)
    return TestClient(app, base_url="http://127.0.0.1", raise_server_exceptions=False)


def chat(content: Any = "hello", **further: Any) -> dict[str, Any]:
    return {"model": "fake", "messages": [{"role": "user", "content": content}], **further}


def has_image(uri: str) -> dict[str, Any]:
    return chat([{"type": "text", "text": "hello"}, {"type": "image_url", "image_url": {"url": uri}}])


def refused(response: Any, status: int, code: str | None = None) -> dict[str, Any]:
    """The error of a refusal, checked for its one shape."""
    assert response.status_code == status, response.text
    body = response.json()
    assert body.keys() == {"error"}
    assert body["error"].keys() == {"message", "type", "code", "param"}
    assert body["error"]["message"]
    assert code is None or body["error"]["code"] == code
    assert response.headers["x-request-id"]
    return body["error"]


# -- asking ----------------------------------------------------------------------------------------------


def test_a_chat_is_answered_in_openais_shape(client: TestClient) -> None:
    body = client.post(CHAT, json=chat()).json()
    assert body["choices"][0]["message"] == {"role": "assistant", "content": "hello: /", "refusal": None}
    assert body["choices"][0]["finish_reason"] == "stop"
    assert body["usage"] == {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
    assert (body["object"], body["model"], body["liveedit"]) == (
        "chat.completion",
        "fake",
        NOTHING_FIRED,
    )


def test_a_stream_ends_with_usage_and_done(client: TestClient) -> None:
    request = chat(stream=True, stream_options={"include_usage": True})
    lines = client.post(CHAT, json=request).text.strip().split("\n\n")
    assert lines[-1] == "data: [DONE]"
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
    assert "".join(c["choices"][0]["delta"].get("content", "") for c in chunks[:-1]) == "hello: /"
    assert [c["usage"] for c in chunks[:-1]] == [None] * 4
    assert chunks[-1]["choices"] == [] and chunks[-1]["usage"]["total_tokens"] == 10
    assert chunks[-2]["choices"][0]["finish_reason"] == "stop" and chunks[-2]["liveedit"] == NOTHING_FIRED
    assert len({c["id"] for c in chunks}) == 1


@pytest.mark.parametrize("stream", [False, True])
def test_edits_withheld_from_an_answer_in_doubt_are_told(client: TestClient, fake: FakeModel, stream: bool) -> None:
    fake.withheld = (Fired("a1", 1.0, 2.0), Fired("faint", 1e-9, 0.1))
    response = client.post(CHAT, json=chat(stream=stream))
    said = response.json() if not stream else json.loads(response.text.split("\n\n")[-3].removeprefix("data: "))
    withheld = [{"id": "a1", "weight": 1.0, "margin": 2.0}]
    assert said["liveedit"] == {"edits": [], "withheld": withheld, "revision": 0}


def test_a_stream_that_is_refused_has_its_status(client: TestClient) -> None:
    refused(client.post(CHAT, json=chat("bad", stream=True)), 400, "invalid_value")


def test_the_model_is_listed(client: TestClient) -> None:
    assert [model["id"] for model in client.get("/v1/models").json()["data"]] == ["fake"]
    assert client.get("/v1/models/fake").json()["object"] == "model"
    refused(client.get("/v1/models/other"), 404, "model_not_found")


def test_images_come_as_data_uris(client: TestClient, picture: Callable[[int], Image.Image]) -> None:
    for kind in ("PNG", "JPEG", "WEBP", "GIF"):
        assert client.post(CHAT, json=has_image(data_uri(picture(1), kind))).status_code == 200


def bomb(side: int) -> str:
    """A PNG of few bytes that says it is this large."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 1000))
    return "data:image/png;base64," + base64.b64encode(data + chunk(b"IEND", b"")).decode()


def test_bad_images_are_refused(client: TestClient, picture: Callable[[int], Image.Image]) -> None:
    whole = data_uri(picture(1))
    bad = {
        "a path": "/etc/passwd",
        "a file URL": "file:///etc/passwd",
        "a URL": "http://127.0.0.1:1/image.png",
        "not base64": "data:image/png;base64,$$$$",
        "empty": "data:image/png;base64,",
        "truncated": whole[: len(whole) // 2 // 4 * 4],
        "no image": "data:image/png;base64," + base64.b64encode(b"hello").decode(),
        "a bomb": bomb(60_000),
        "a small bomb": bomb(5_000),
        "a drawing": "data:image/png;base64," + base64.b64encode(b"%!PS-Adobe-3.0 EPSF-3.0\n").decode(),
        "another format": data_uri(picture(1), "TIFF"),
        "text": "data:text/plain;base64,aGVsbG8=",
    }
    for name, uri in bad.items():
        assert refused(client.post(CHAT, json=has_image(uri)), 400, "invalid_image")["param"] == "image", name
    assert refused(client.post("/v1/edits", json={**EDIT, "image": "/etc/passwd"}), 400)["code"] == "invalid_image"


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"messages": []}, "messages"),
        (
            {"messages": [{"role": "system", "content": "Be kind."}]},
            "messages.0.role",
        ),
        ({"messages": [{"role": "user", "content": "x"}] * 2}, "messages"),
        ({"messages": [{"role": "user", "content": " "}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "messages.0.content.0"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages.0.content.0"),
        ({"messages": [{"role": "user", "content": "half \ud800"}]}, None),
        ({"temperature": -1}, "temperature"),
        ({"temperature": 2.5}, "temperature"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 257}, None),
        ({"max_tokens": 5, "max_completion_tokens": 6}, None),
        ({"seed": 2**70}, "seed"),
        ({"max_tokens": "5"}, "max_tokens"),
        ({"max_tokens": 5.5}, "max_tokens"),
        ({"stream": 1}, "stream"),
        ({"store": 0}, "store"),
        ({"stop": ["a"] * 5}, "stop"),
        ({"stop": ["a", ""]}, "stop"),
        ({"stop": ""}, "stop"),
        ({"stop": 5}, "stop"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages.0.content"),
        ({"n": 2}, "n"),
        ({"top_p": 0.5}, None),
        ({"tools": []}, "tools"),
        ({"logprobs": True}, "logprobs"),
        ({"response_format": {"type": "json_object"}}, "response_format.type"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"\ud800": 1}, None),
    ],
)
def test_what_the_model_cannot_take_is_refused_not_ignored(client: TestClient, change: Any, param: str | None) -> None:
    body = json.dumps({**chat(), **change})
    error = refused(client.post(CHAT, content=body, headers={"content-type": "application/json"}), 400)
    assert param is None or error["param"] == param
    assert error["type"] == "invalid_request_error"
    assert "function" not in error["message"] and "Value error" not in error["message"], "no words of the library"


def test_a_body_that_is_no_json_has_no_field_to_name(client: TestClient) -> None:
    error = refused(client.post(CHAT, content=b"not json", headers={"content-type": "application/json"}), 400)
    assert error["param"] is None and error["message"].startswith("The body: ")


def test_a_prompt_over_the_limit_names_its_field(fake: FakeModel) -> None:
    with client_of(fake, prompt_tokens=2) as client:
        for path, body, param in (
            (CHAT, chat("x" * 65), "messages.0.content"),
            ("/v1/edits", {**EDIT, "prompt": "x" * 65}, "prompt"),
            ("/v1/edits", {**EDIT, "answer": "x" * 65}, "answer"),
            ("/v1/edits", {**EDIT, "rephrasings": ["x", "x" * 65]}, "rephrasings"),
            ("/v1/edits", {**EDIT, "locality": [{"prompt": "x" * 65}]}, "locality"),
            ("/v1/heat-maps", {"image": "data:", "prompt": "x" * 65}, "prompt"),
        ):
            assert refused(client.post(path, json=body), 400, "prompt_too_long")["param"] == param
        assert client.post(CHAT, json=chat("x" * 64)).status_code == 200


def test_what_asks_for_nothing_is_taken(client: TestClient) -> None:
    neutral = {
        "n": 1,
        "max_tokens": 5.0,
        "store": False,
        "top_p": 1.0,
        "presence_penalty": 0,
        "logprobs": False,
        "user": "me",
        "stop": None,
        "seed": 3,
    }
    assert client.post(CHAT, json=chat(**neutral, response_format={"type": "text"})).status_code == 200


def test_two_images_are_one_too_many(client: TestClient, picture: Callable[[int], Image.Image]) -> None:
    part = {"type": "image_url", "image_url": {"url": data_uri(picture(1))}}
    refused(client.post(CHAT, json=chat([{"type": "text", "text": "x"}, part, part])), 400, "not_supported")


@pytest.mark.parametrize("body", ["", "{", "[]", "null", "NaN", '"text"', "[" * 100_000, '{"model": NaN}', "1" * 5000])
def test_bodies_that_are_no_request_are_refused(client: TestClient, body: str) -> None:
    refused(client.post(CHAT, content=body, headers={"content-type": "application/json"}), 400)


def test_other_refusals_have_the_one_shape_too(client: TestClient) -> None:
    nowhere, not_allowed = client.get("/nowhere"), client.get(CHAT)
    assert refused(nowhere, 404, "unknown_route")["type"] == "not_found_error"
    assert "/openapi.json" in refused(nowhere, 404, "unknown_route")["message"]
    assert refused(not_allowed, 405, "method_not_allowed")["type"] == "invalid_request_error"
    assert "Allowed: POST." in refused(not_allowed, 405, "method_not_allowed")["message"]
    refused(client.post(CHAT, content="{}", headers={"content-type": "text/plain"}), 415, "not_json")
    refused(client.post(CHAT, json={**chat(), "model": "other"}), 404, "model_not_found")
    error = refused(client.post(CHAT, json=chat("broken")), 500, "internal_error")
    assert error["type"] == "server_error" and "secret" not in error["message"]
    assert client.post(CHAT, json=chat()).status_code == 200


# -- editing ---------------------------------------------------------------------------------------------


def test_an_edit_is_made_listed_and_undone(client: TestClient) -> None:
    made = client.post("/v1/edits", json=EDIT)
    assert made.status_code == 201
    edit = made.json()
    assert (edit["prompt"], edit["answer"], edit["evidence"]["took"]) == ("Who is this?", "Bruvak", True)
    fired = client.post(CHAT, json=chat()).json()["liveedit"]["edits"]
    assert fired == [{"id": edit["id"], "weight": 0.75, "margin": 1.5}]
    assert client.get(f"/v1/edits/{edit['id']}").json()["answer"] == "Bruvak"
    undone = client.post(f"/v1/edits/{edit['id']}/undo").json()
    assert (undone["id"], undone["active"]) == (edit["id"], False)
    refused(client.post(f"/v1/edits/{edit['id']}/undo"), 409, "edit_state")
    redone = client.post(f"/v1/edits/{edit['id']}/redo").json()
    assert (redone["id"], redone["active"]) == (edit["id"], True)
    refused(client.post(f"/v1/edits/{edit['id']}/redo"), 409, "edit_state")
    refused(client.post("/v1/edits/ffffffff/undo"), 404, "not_found")
    refused(client.post("/v1/edits/ffffffff/redo"), 404, "not_found")


@pytest.mark.parametrize(
    "change", [{"answer": " "}, {"prompt": ""}, {"extra": 1}, {"rephrasings": ["x"] * 17}, {"answer": "\ud800"}]
)
def test_bad_edits_change_nothing(client: TestClient, fake: FakeModel, change: Any) -> None:
    body = json.dumps({**EDIT, **change})
    refused(client.post("/v1/edits", content=body, headers={"content-type": "application/json"}), 400)
    assert fake.edits_made == 0


def test_an_idempotency_key_makes_an_edit_once(client: TestClient, fake: FakeModel) -> None:
    key = {"Idempotency-Key": "k1"}
    first = client.post("/v1/edits", json=EDIT, headers=key)
    again = client.post("/v1/edits", json=EDIT, headers=key)
    assert (again.status_code, again.json()) == (201, first.json())
    assert (first.headers.get(REPLAYED), again.headers[REPLAYED]) == (None, "true")
    conflict = client.post("/v1/edits", json={**EDIT, "answer": "Other"}, headers=key)
    refused(conflict, 409, "conflict")
    assert REPLAYED not in conflict.headers
    assert fake.edits_made == 1
    client.post("/v1/edits", json=EDIT, headers={"Idempotency-Key": "k2"})
    assert fake.edits_made == 2
    undo = f"/v1/edits/{first.json()['id']}/undo"
    undone = [client.post(undo, headers=key) for _ in range(2)]
    assert undone[0].json() == undone[1].json()
    assert [response.headers.get(REPLAYED) for response in undone] == [None, "true"]
    refused(client.post("/v1/edits", json=EDIT, headers={"Idempotency-Key": "k" * 256}), 400)


def test_the_same_edit_sent_at_once_is_made_once(fake: FakeModel) -> None:
    fake.pause_s = 0.05
    with listening(*fake_app(fake)) as (url, _), ThreadPoolExecutor(8) as pool:
        send = lambda _: httpx2.post(f"{url}/v1/edits", json=EDIT, headers={"Idempotency-Key": "k"})  # noqa: E731
        found = list(pool.map(send, range(8)))
    assert len({response.json()["id"] for response in found}) == 1
    assert sorted(response.headers.get(REPLAYED, "") for response in found) == ["", *["true"] * 7], (
        "one of them made it"
    )
    assert fake.edits_made == 1


def test_an_edit_that_failed_may_be_tried_again(client: TestClient, fake: FakeModel) -> None:
    key = {"Idempotency-Key": "k"}
    for _ in range(2):
        refused(client.post("/v1/edits", json={**EDIT, "answer": "bad"}, headers=key), 400)
    assert client.post("/v1/edits", json=EDIT, headers=key).status_code == 201


# -- who may do what -------------------------------------------------------------------------------------


def test_roles(fake: FakeModel, tmp_path: Path) -> None:
    keys = KeyFile(tmp_path / "keys.json")
    texts = {role: keys.add(role)[1] for role in ("ask", "edit", "admin")}  # type: ignore[arg-type]
    allowed = {"ask": {CHAT, "/v1/models"}, "edit": {CHAT, "/v1/models", "/v1/edits"}}
    allowed["admin"] = {*allowed["edit"], "/metrics"}
    with client_of(fake, keys) as client:
        for role, text in texts.items():
            for path in (CHAT, "/v1/models", "/v1/edits", "/metrics"):
                headers = {"Authorization": f"Bearer {text}"}
                body = chat() if path == CHAT else None
                response = client.request("POST" if body else "GET", path, json=body, headers=headers)
                if path in allowed[role]:
                    assert response.status_code == 200
                else:
                    refused(response, 403, "insufficient_role")
        assert client.get("/healthz").status_code == client.get("/readyz").status_code == 200


def test_without_a_known_key_nothing_but_health_and_schema_is_open(fake: FakeModel, tmp_path: Path) -> None:
    keys = KeyFile(tmp_path / "keys.json")
    key, text = keys.add("admin")
    with client_of(fake, keys) as client:
        for path, operations in client.get("/openapi.json").json()["paths"].items():
            for method in operations:
                response = client.request(method, path)
                if path not in OPEN_PATHS:
                    refused(response, 401, "missing_api_key")
                    assert response.headers["www-authenticate"] == "Bearer"
        for header in ("Bearer wrong", "Bearer", f"Basic {text}", f"Bearer {text}x", "Bearer \xff"):
            refused(client.get("/v1/models", headers={"Authorization": header.encode("latin-1")}), 401)
        good = {"Authorization": f"Bearer {text}"}
        assert client.get("/v1/models", headers=good).status_code == 200
        keys.remove(key.id)
        refused(client.get("/v1/models", headers=good), 401, "invalid_api_key")


def test_without_keys_only_this_machine_is_served(client: TestClient) -> None:
    assert client.get("/v1/models", headers={"Host": "localhost:8000"}).status_code == 200
    refused(client.get("/v1/models", headers={"Host": "evil.example"}), 403, "foreign_host")
    refused(client.post("/v1/edits/1/undo", headers={"Origin": "http://evil.example"}), 403, "foreign_origin")
    refused(client.post("/v1/edits/1/undo", headers={"Origin": "http://127.0.0.1"}), 404)


def test_an_edit_says_who_made_it_and_why(fake: FakeModel, tmp_path: Path) -> None:
    keys = KeyFile(tmp_path / "keys.json")
    headers = {"Authorization": f"Bearer {keys.add('edit', 'night shift')[1]}"}
    with client_of(fake, keys) as client:
        named = client.post("/v1/edits", json={**EDIT, "note": "ticket 4711"}, headers=headers).json()
        given = client.post("/v1/edits", json={**EDIT, "author": "Ada"}, headers=headers).json()
        assert (named["author"], named["note"], given["author"]) == ("night shift", "ticket 4711", "Ada")
        assert client.get(f"/v1/edits/{named['id']}", headers=headers).json()["author"] == "night shift"


# -- limits ----------------------------------------------------------------------------------------------


def test_large_bodies_are_refused_whatever_they_say_of_themselves(fake: FakeModel) -> None:
    engine, app = fake_app(fake, ServingSettings.model_validate({"body_bytes": 4096}))

    def chunks(count: int) -> Iterator[bytes]:
        yield from (b" " * 1024 for _ in range(count))

    with listening(engine, app) as (url, _):
        json_type = {"Content-Type": "application/json"}
        refused(httpx2.post(url + CHAT, content=chunks(5), headers=json_type), 413, "body_too_large")
        refused(httpx2.post(url + CHAT, content=b" " * 5000, headers=json_type), 413, "body_too_large")
        assert httpx2.post(url + CHAT, json=chat("x" * 3000)).status_code == 200
        refused(httpx2.post(url + CHAT, content=chunks(4), headers=json_type), 400)


def test_a_body_that_does_not_arrive_is_given_up(fake: FakeModel) -> None:
    engine, app = fake_app(fake, ServingSettings.model_validate({"body_seconds": 0.2}))
    with listening(engine, app) as (url, _), socket.create_connection(("127.0.0.1", int(url.rsplit(":", 1)[1]))) as raw:
        head = (
            f"POST {CHAT} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n{{"
        )
        raw.sendall(head.encode())
        raw.settimeout(10)
        answer = b""
        while part := raw.recv(65536):
            answer += part
    assert answer.startswith(b"HTTP/1.1 408 ") and b'"code":"body_timeout"' in answer


def test_a_client_that_leaves_a_stream_ends_its_answer(fake: FakeModel) -> None:
    with listening(*fake_app(fake)) as (url, _):
        with httpx2.stream("POST", url + CHAT, json=chat("endless", stream=True)) as stream:
            next(stream.iter_lines())
        assert httpx2.post(url + CHAT, json=chat(), timeout=15).status_code == 200
    assert fake.was_abandoned


def test_a_full_queue_is_answered_with_429(fake: FakeModel) -> None:
    engine, app = fake_app(fake, ServingSettings.model_validate({"queue": 1}))
    with listening(engine, app) as (url, _), ThreadPoolExecutor(8) as pool:
        fake.gate.clear()
        waiting = [pool.submit(httpx2.post, url + CHAT, json=chat(), timeout=30)]
        fake.entered.wait(10)
        waiting += [pool.submit(httpx2.post, url + CHAT, json=chat(), timeout=30) for _ in range(5)]
        while sum(future.done() for future in waiting) < 4:
            pass
        fake.gate.set()
        found = [future.result() for future in waiting]
    full = [response for response in found if response.status_code != 200]
    assert len(full) == 4
    for response in full:
        assert refused(response, 429, "queue_full")["type"] == "rate_limit_error"
        assert int(response.headers["retry-after"]) >= 1


def test_more_requests_in_progress_than_allowed_are_answered_with_429(fake: FakeModel) -> None:
    engine, app = fake_app(fake, ServingSettings.model_validate({"requests": 2}))
    with listening(engine, app) as (url, _), ThreadPoolExecutor(2) as pool:
        fake.gate.clear()
        waiting = [pool.submit(httpx2.post, url + CHAT, json=chat(), timeout=30)]
        fake.entered.wait(10)
        waiting.append(pool.submit(httpx2.post, url + CHAT, json=chat(), timeout=30))
        while not engine._jobs:
            time.sleep(0.01)
        over = httpx2.get(f"{url}/v1/models")
        assert httpx2.get(f"{url}/healthz").status_code == 200, "health checks do not count"
        fake.gate.set()
        assert [future.result().status_code for future in waiting] == [200, 200]
        assert httpx2.get(f"{url}/v1/models").status_code == 200, "room again"
    assert refused(over, 429, "too_many_requests")["type"] == "rate_limit_error"
    assert int(over.headers["retry-after"]) >= 1


def test_waiting_too_long_is_answered_with_503(fake: FakeModel) -> None:
    engine, app = fake_app(fake, ServingSettings.model_validate({"queue_seconds": 0.1}))
    with listening(engine, app) as (url, _), ThreadPoolExecutor(2) as pool:
        fake.gate.clear()
        first = pool.submit(httpx2.post, url + CHAT, json=chat(), timeout=30)
        fake.entered.wait(10)
        late = httpx2.post(url + CHAT, json=chat(), timeout=30)
        fake.gate.set()
        assert first.result().status_code == 200
    refused(late, 503, "timeout")
    assert late.headers["retry-after"]


def test_stopping_finishes_what_was_accepted(fake: FakeModel) -> None:
    with listening(*fake_app(fake)) as (url, server), ThreadPoolExecutor(2) as pool, httpx2.Client() as kept:
        assert kept.get(f"{url}/readyz").json() == {"status": "ready"}
        fake.gate.clear()
        accepted = pool.submit(httpx2.post, url + CHAT, json=chat(), timeout=30)
        fake.entered.wait(10)
        server.handle_exit(15, None)
        assert kept.get(f"{url}/readyz").status_code == 503
        refused(kept.post(url + CHAT, json=chat()), 503, "stopping")
        fake.gate.set()
        assert accepted.result().json()["choices"][0]["message"]["content"] == "hello: /"


# -- operating -------------------------------------------------------------------------------------------


def figures(client: TestClient) -> dict[str, float]:
    lines = [line for line in client.get("/metrics").text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}


def test_metrics_count_what_happened(client: TestClient) -> None:
    client.post(CHAT, json=chat())  # An edit fires with next to no weight, and counts for nothing.
    assert figures(client)['liveedit_answers_total{edited="no"}'] == 1
    client.post("/v1/edits", json=EDIT)
    client.post(CHAT, json=chat())
    client.post(CHAT, json=chat(stream=True))
    client.get("/nowhere")
    client.post(CHAT, json=chat("bad"))
    found = figures(client)
    assert found["liveedit_edits"] == 1
    assert found["liveedit_edits_fired_total"] == 2
    assert found['liveedit_answers_total{edited="yes"}'] == 2
    assert found["liveedit_answer_seconds_count"] == 3
    assert found["liveedit_edit_seconds_count"] == 1
    assert found["liveedit_routing_seconds_count"] == 3
    assert found["liveedit_queue_length"] == 0
    assert found['liveedit_tokens_total{kind="answer"}'] == 9
    assert found['liveedit_requests_total{method="POST",route="/v1/chat/completions",status="200"}'] == 3
    assert found['liveedit_requests_total{method="POST",route="/v1/chat/completions",status="400"}'] == 1
    assert found['liveedit_requests_total{method="GET",route="other",status="404"}'] == 1


def test_a_store_that_cannot_be_reached_is_told_to_load_balancers(client: TestClient, fake: FakeModel) -> None:
    assert client.get("/readyz").status_code == 200
    fake.store_problem = StoreError("The edits database 'postgresql://db.example.com/edits' cannot be reached.")
    away = client.get("/readyz")
    assert (away.status_code, away.json()) == (503, {"status": "the edits cannot be reached"})
    assert client.get("/healthz").status_code == 200
    fake.store_problem = None
    assert client.get("/readyz").status_code == 200


def test_a_path_names_all_its_methods(client: TestClient) -> None:
    for path, methods in (
        ("/v1/edits", "GET, POST"),
        (CHAT, "POST"),
        ("/v1/edits/0/undo", "POST"),
        ("/healthz", "GET"),
    ):
        found = client.delete(path)
        refused(found, 405, "method_not_allowed")
        assert found.headers["allow"] == methods


def test_the_schema_says_how_errors_look(client: TestClient) -> None:
    schema = client.get("/openapi.json").json()
    responses = schema["paths"][CHAT]["post"]["responses"]
    assert {"200", "400", "401", "403", "413", "415", "429", "503"} <= responses.keys()
    assert "422" not in responses
    for path, status in (
        ("/v1/edits", "201"),
        ("/v1/edits/{edit_id}/undo", "200"),
        ("/v1/edits/{edit_id}/redo", "200"),
    ):
        made = schema["paths"][path]["post"]["responses"][status]
        assert made["headers"].keys() == {REPLAYED} and made["content"]["application/json"]["schema"]
    assert responses["400"]["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/ErrorBody"}
    assert {"ErrorBody", "ErrorDetail"} <= schema["components"]["schemas"].keys()
