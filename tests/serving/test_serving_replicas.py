"""Two `liveedit serve` processes on the same edits: one follows the other, outlives it, and outlives the database."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from postgres_server import PostgresServer
from served_process import ServedProcess, serving
from serving_fakes import data_uri

from liveedit.images import open_image
from liveedit.samples import EditCase
from liveedit.store.store import EditStore

pytestmark = pytest.mark.slow

FOLLOWED_SECONDS = 1.0


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def edits(request: pytest.FixtureRequest, tmp_path: Path) -> Path | str:
    return tmp_path / "edits.db" if request.param == "sqlite" else request.getfixturevalue("postgres_url")


@pytest.fixture
def two(edits: Path | str, tmp_path: Path) -> Iterator[list[ServedProcess]]:
    with serving(edits, tmp_path, count=2) as servers:
        yield servers


def image_of(case: EditCase) -> str:
    assert case.edit.question.image is not None
    return data_uri(open_image(case.edit.question.image))


def make(
    server: ServedProcess, case: EditCase, answer: str | None = None, *, must_take: bool = True, **further: Any
) -> httpx2.Response:
    wanted: dict[str, Any] = {
        "prompt": case.edit.question.prompt,
        "answer": answer or case.edit.answer,
        "image": image_of(case),
    }
    wanted["must_take"] = must_take
    return server.http.post("/v1/edits", json=wanted, **further)


def answer_of(server: ServedProcess, case: EditCase) -> tuple[str, list[str]]:
    """What a server says, and which edits took part."""
    content = [
        {"type": "text", "text": case.edit.question.prompt},
        {"type": "image_url", "image_url": {"url": image_of(case)}},
    ]
    said = server.ask(content, max_tokens=8)
    return said["choices"][0]["message"]["content"], [edit["id"] for edit in said["liveedit"]["edits"]]


def seconds_until(is_so: Callable[[], bool]) -> float:
    """From now to the beginning of the first question that is answered so."""
    since = time.monotonic()
    while (begun := time.monotonic()) - since < 30:
        if is_so():
            return begun - since
    raise AssertionError("the other server did not follow within 30 s")


def test_what_one_server_is_told_the_other_answers_within_a_second(
    two: list[ServedProcess], eval_cases: tuple[EditCase, ...]
) -> None:
    one, other = two
    case = eval_cases[0]
    before = answer_of(other, case)
    assert before[0] != case.edit.answer and before[1] == []
    edit = make(one, case).json()
    assert seconds_until(lambda: answer_of(other, case) == (case.edit.answer, [edit["id"]])) < FOLLOWED_SECONDS
    assert other.http.get(f"/v1/edits/{edit['id']}").json()["active"]
    assert other.http.post(f"/v1/edits/{edit['id']}/undo").status_code == 200
    assert seconds_until(lambda: answer_of(one, case) == before) < FOLLOWED_SECONDS
    assert one.http.post(f"/v1/edits/{edit['id']}/undo").json()["error"]["code"] == "edit_state"
    assert one.http.post(f"/v1/edits/{edit['id']}/redo").status_code == 200
    assert seconds_until(lambda: answer_of(other, case)[1] == [edit["id"]]) < FOLLOWED_SECONDS


def test_a_server_that_is_killed_takes_nothing_with_it(
    two: list[ServedProcess], edits: Path | str, eval_cases: tuple[EditCase, ...]
) -> None:
    one, other = two
    acknowledged: list[str] = []

    def edit_for_ever() -> None:
        number = 0
        try:
            while True:
                number += 1
                acknowledged.append(make(one, eval_cases[number % 6], f"Bruvak {number}", must_take=False).json()["id"])
        except httpx2.TransportError:
            return

    writer = threading.Thread(target=edit_for_ever)
    writer.start()
    until = time.monotonic() + 60
    while len(acknowledged) < 5 and time.monotonic() < until:
        time.sleep(0.01)
    one.process.kill()
    writer.join(60)
    assert len(acknowledged) >= 5 and not writer.is_alive()

    listed = other.http.get("/v1/edits", params={"limit": 100}).json()["data"]
    kept = [edit["id"] for edit in listed]
    assert kept[: len(acknowledged)] == acknowledged
    assert len(kept) <= len(acknowledged) + 1, "the one that was under way"
    case = eval_cases[7]
    edit = make(other, case).json()
    assert answer_of(other, case) == (case.edit.answer, [edit["id"]])
    with EditStore(edits) as store:
        assert store.verify() == ()


@pytest.mark.postgres
def test_servers_outlive_the_database(
    postgres_url: str, postgres_server: PostgresServer, tmp_path: Path, eval_cases: tuple[EditCase, ...]
) -> None:
    first, second = eval_cases[:2]
    with serving(postgres_url, tmp_path, count=2) as (one, other):
        kept = make(one, first).json()["id"]
        assert seconds_until(lambda: answer_of(other, first)[1] == [kept]) < FOLLOWED_SECONDS
        postgres_server.crash()
        try:
            time.sleep(0.5)
            for server in (one, other):
                ready = server.http.get("/readyz")
                assert (ready.status_code, ready.json()) == (503, {"status": "the edits cannot be reached"})
                assert server.http.get("/healthz").status_code == 200, "it is not to be restarted for that"
                question = {"model": "tiny-llava", "messages": [{"role": "user", "content": "Who?"}]}
                for refused in (
                    server.http.post("/v1/chat/completions", json=question),
                    server.http.get("/v1/edits"),
                    make(server, second),
                ):
                    assert refused.status_code == 503 and refused.headers["retry-after"]
                    error = refused.json()["error"]
                    assert error["code"] == "store_unavailable" and str(postgres_server.folder) not in error["message"]
        finally:
            postgres_server.start()
        for server in (one, other):
            assert server.http.get("/readyz").status_code == 200
            assert answer_of(server, first)[1] == [kept]
        new = make(other, second).json()["id"]
        assert seconds_until(lambda: answer_of(one, second) == (second.edit.answer, [new])) < FOLLOWED_SECONDS
