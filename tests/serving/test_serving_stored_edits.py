"""Looking at edits over HTTP: a real edits file, and a model of which only the file is needed."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from PIL import Image
from sqlalchemy import Engine as Databases
from sqlalchemy import event
from starlette.testclient import TestClient
from torch import nn

from liveedit.edited.model import EditedModel
from liveedit.experts import LowRankExpert
from liveedit.experts.expert import expert_to_bytes
from liveedit.images import image_digest
from liveedit.serving.app import create_app
from liveedit.serving.engine import Engine
from liveedit.serving.served_model import ServedModel
from liveedit.serving.settings import ServingSettings
from liveedit.store.store import EditStore, NewEdit, thumbnail_png


class KeptModel:
    """What is left of an `EditedModel` without a backbone."""

    def __init__(self, store: EditStore):
        self.store, self.undo, self.redo = store, store.undo, store.redo
        self.backbone = SimpleNamespace(model=nn.Module(), device=torch.device("cpu"))
        self.editor = SimpleNamespace(thread_safe=True)

    def __len__(self) -> int:
        return len(self.store)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[EditStore]:
    with EditStore(tmp_path / "edits.db") as opened:
        opened.bind("b" * 64, "e" * 64, backbone="tiny-llava", editor="liveedit")
        yield opened


@pytest.fixture
def client(store: EditStore) -> Iterator[TestClient]:
    settings = ServingSettings.model_validate({})
    served = ServedModel(cast(EditedModel, KeptModel(store)), settings)
    engine = Engine(served, settings)
    with TestClient(create_app(engine, "fake", served, None), base_url="http://127.0.0.1") as opened:
        yield opened


@pytest.fixture
def add(store: EditStore, random_expert: Callable[..., LowRankExpert]) -> Callable[..., str]:
    def make(answer: str = "red", image: Image.Image | None = None, **said: Any) -> str:
        thumbnail = None if image is None else thumbnail_png(image)
        digest = None if image is None else image_digest(image)
        new = NewEdit(prompt="What?", answer=answer, editor="liveedit", image_sha256=digest, **said)
        return store.add(new, expert_to_bytes(random_expert(1, width=8)), thumbnail).id

    return make


def ids(client: TestClient, **asked: Any) -> list[str]:
    return [edit["id"] for edit in client.get("/v1/edits", params=asked).json()["data"]]


def test_edits_are_listed_by_state_and_order(client: TestClient, store: EditStore, add: Callable[..., str]) -> None:
    kept, undone, purged, last = (add(answer) for answer in "abcd")
    assert client.get("/v1/edits", params={"state": "undone"}).json() == {
        "object": "list",
        "data": [],
        "first_id": None,
        "last_id": None,
        "has_more": False,
    }
    store.undo(undone)
    store.purge(purged)
    assert ids(client) == ids(client, state="active", order="asc") == [kept, last]
    assert ids(client, order="desc") == [last, kept]
    assert ids(client, state="undone") == [undone]
    assert ids(client, state="all", order="desc") == [last, purged, undone, kept]
    shown = {edit["id"]: edit for edit in client.get("/v1/edits", params={"state": "all"}).json()["data"]}
    assert [shown[edit]["active"] for edit in (kept, undone, purged)] == [True, False, False]
    assert shown[undone]["undone_at"] and shown[undone]["purged_at"] is None
    assert shown[purged]["purged_at"] and (shown[purged]["prompt"], shown[purged]["answer"]) == ("", "")
    for wrong in ({"state": "gone"}, {"order": "down"}, {"limit": 0}, {"limit": 101}, {"limit": "x"}):
        refused = client.get("/v1/edits", params=wrong)
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, next(iter(wrong)))


def test_a_search_finds_prompt_answer_author_and_note(
    client: TestClient, store: EditStore, add: Callable[..., str]
) -> None:
    red, blue = add("Dark red", author="Ada", note="ticket 100%_sure"), add("blue", author="Bo")
    undone = add("reddish")
    store.undo(undone)
    assert ids(client, search="RED") == [red]
    assert ids(client, search="red", state="all", order="desc") == [undone, red]
    assert ids(client, search="what?") == [red, blue]
    assert ids(client, search="ada") == ids(client, search="00%_s") == [red]
    assert ids(client, search="%") == [red], "a percent sign is no wildcard"
    assert ids(client, search="green") == []
    assert ids(client, search="") == [red, blue]
    page = client.get("/v1/edits", params={"search": "what", "limit": 1}).json()
    assert page["has_more"] and ids(client, search="what", limit=1, after=page["last_id"]) == [blue]
    assert client.get("/v1/edits", params={"search": "x" * 201}).status_code == 400


@pytest.mark.parametrize("order", ["asc", "desc"])
def test_pages_follow_each_other_though_edits_leave_between(
    client: TestClient, store: EditStore, add: Callable[..., str], order: str
) -> None:
    made = [add(str(number)) for number in range(7)]
    expected = made if order == "asc" else made[::-1]
    found: list[list[str]] = []
    asked: dict[str, Any] = {"limit": 3, "order": order}
    while True:
        page = client.get("/v1/edits", params=asked).json()
        found.append([edit["id"] for edit in page["data"]])
        assert (page["first_id"], page["last_id"]) == (found[-1][0], found[-1][-1])
        if not page["has_more"]:
            break
        asked["after"] = page["last_id"]
        store.undo(page["last_id"])
    assert found == [expected[:3], expected[3:6], expected[6:]]
    for unknown in ("ffffffff", made[0][:4], "%", ""):
        assert client.get("/v1/edits", params={"after": unknown}).status_code == 404


def test_one_edit_is_shown_whatever_its_state(
    client: TestClient, store: EditStore, add: Callable[..., str], picture: Callable[[int], Image.Image]
) -> None:
    image = picture(1)
    edit = add("red", image, author="Ada", note="why", answer_before="blue", answer_after="red")
    card = client.get(f"/v1/edits/{edit}").json()
    assert card.pop("evidence") is None, "this one was stored without"
    assert card == {
        "id": edit,
        "object": "edit",
        "prompt": "What?",
        "answer": "red",
        "answer_before": "blue",
        "answer_after": "red",
        "active": True,
        "has_thumbnail": True,
        "image_sha256": image_digest(image),
        "editor": "liveedit",
        "author": "Ada",
        "note": "why",
        "created_at": store.get(edit).created_at,
        "undone_at": None,
        "purged_at": None,
    }
    undone = client.post(f"/v1/edits/{edit}/undo").json()
    assert {**undone, "evidence": None} == client.get(f"/v1/edits/{edit}").json()
    assert undone == card | {"active": False, "undone_at": store.get(edit).undone_at}
    assert not client.get(f"/v1/edits/{add()}").json()["has_thumbnail"]
    for unknown in ("ffffffff", edit[:4], edit.upper() + "0", "%25"):
        for request in ("", "/thumbnail", "/history"):
            assert client.get(f"/v1/edits/{unknown}{request}").status_code == 404


def test_the_thumbnail_is_a_png(
    client: TestClient, store: EditStore, add: Callable[..., str], picture: Callable[[int], Image.Image]
) -> None:
    edit = add("red", picture(1))
    shown = client.get(f"/v1/edits/{edit}/thumbnail")
    assert shown.headers["content-type"] == "image/png"
    assert shown.content == store.thumbnail(edit)
    without = client.get(f"/v1/edits/{add()}/thumbnail")
    assert (without.status_code, without.json()["error"]["code"]) == (404, "not_found")


def test_the_history_of_an_edit_is_told_oldest_first(
    client: TestClient, store: EditStore, add: Callable[..., str]
) -> None:
    edit, other = add("red", author="Ada", note="why"), add("blue")
    client.post(f"/v1/edits/{edit}/undo")
    store.undo(other)
    client.post(f"/v1/edits/{edit}/redo")
    history = client.get(f"/v1/edits/{edit}/history").json()
    assert history["object"] == "list"
    assert [(line["revision"], line["kind"]) for line in history["data"]] == [(1, "edit"), (3, "undo"), (5, "redo")]
    assert history["data"][0] == {
        "revision": 1,
        "at": store.get(edit).created_at,
        "kind": "edit",
        "edit_id": edit,
        "author": "Ada",
        "note": "why",
    }


def test_a_change_that_is_there_already_is_a_conflict(
    client: TestClient, store: EditStore, add: Callable[..., str]
) -> None:
    edit, purged = add("red"), add("blue")
    store.purge(purged)

    def outcome(edit_id: str, action: str) -> tuple[int, str | None]:
        response = client.post(f"/v1/edits/{edit_id}/{action}")
        return response.status_code, response.json().get("error", {}).get("code")

    assert outcome(edit, "redo") == (409, "edit_state")
    assert outcome(edit, "undo") == (200, None)
    assert outcome(edit, "undo") == (409, "edit_state")
    assert outcome(edit, "redo") == (200, None)
    for action in ("undo", "redo"):
        assert outcome(purged, action) == (410, "purged")
        assert outcome("ffffffff", action) == (404, "not_found")
    assert client.get(f"/v1/edits/{purged}").json()["purged_at"] == store.get(purged).purged_at
    assert client.get(f"/v1/edits/{purged}/thumbnail").status_code == 410
    assert [line["kind"] for line in client.get(f"/v1/edits/{purged}/history").json()["data"]] == ["edit", "purge"]


# -- however many there are ------------------------------------------------------------------------------


@contextmanager
def counting() -> Iterator[dict[str, int]]:
    """How many statements SQLite is given, and how many steps of its machine they take."""
    counted = {"statements": 0, "steps": 0}

    def step() -> int:
        counted["steps"] += 1
        return 0

    def watch(connection: Any, *_: object) -> None:
        counted["statements"] += 1
        connection.connection.driver_connection.set_progress_handler(step, 1)

    event.listen(Databases, "before_cursor_execute", watch)
    try:
        yield counted
    finally:
        event.remove(Databases, "before_cursor_execute", watch)


def fill(path: Path, count: int, state: str) -> None:
    """Copies of the first edit, all in this state but for the last, without the trouble of making them."""
    is_out = {"active": "n = :count", "undone": "n < :count"}[state].replace(":count", str(count))
    with sqlite3.connect(path) as file:
        columns = [row[1] for row in file.execute("PRAGMA table_info(edits)")]
        changed = {"number": "1000 + n", "id": "printf('%08x', n)"}
        changed |= {"revision_removed": f"iif({is_out}, 1, NULL)", "undone_at": f"iif({is_out}, created_at, NULL)"}
        values = ", ".join(changed.get(column, column) for column in columns)
        numbers = f"WITH RECURSIVE many (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM many WHERE n < {count})"
        file.execute(f"{numbers} INSERT INTO edits SELECT {values} FROM edits, many WHERE number = 1")
        file.execute(f"{numbers} INSERT INTO blobs SELECT 1000 + n, kind, sha256, data FROM blobs, many")
    file.close()


REQUESTS = (
    "?limit=5",
    "?limit=5&order=desc",
    "?limit=5&state=all&order=desc&after={id}",
    "?limit=5&after={id}",
    "?limit=5&state=undone",
    "?limit=5&state=undone&order=desc",
    "?limit=5&state=undone&after={id}",
    "/{id}",
    "/{id}/thumbnail",
    "/{id}/history",
    "/fffffff0",
)


@pytest.mark.parametrize("state", ["active", "undone"])
def test_looking_costs_the_same_with_ten_thousand_edits(
    client: TestClient,
    tmp_path: Path,
    add: Callable[..., str],
    picture: Callable[[int], Image.Image],
    state: str,
) -> None:
    """Also where all of them lie between two that are asked for."""
    edit = add("red", picture(1))

    def costs() -> list[dict[str, int]]:
        found = []
        for request in REQUESTS:
            with counting() as counted:
                client.get(f"/v1/edits{request.format(id=edit)}")
            found.append(counted)
        return found

    fill(tmp_path / "edits.db", 10, state)
    few = costs()
    with sqlite3.connect(tmp_path / "edits.db") as file:
        file.execute("DELETE FROM blobs WHERE edit_number > 1000")
        file.execute("DELETE FROM edits WHERE number > 1000")
    file.close()
    fill(tmp_path / "edits.db", 10_000, state)
    assert len(ids(client, limit=100, state="all")) == 100
    few_of_these = {"active": [f"{10_000:08x}"], "undone": [edit, f"{10_000:08x}"]}[state]
    assert ids(client, state={"active": "undone", "undone": "active"}[state]) == few_of_these
    many = costs()
    assert [cost["statements"] for cost in many] == [cost["statements"] for cost in few]
    for request, before, after in zip(REQUESTS, few, many, strict=True):
        assert 0 < after["steps"] <= 1.2 * before["steps"], request
