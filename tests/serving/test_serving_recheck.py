"""`/v1/check`, the evidence of `/v1/edits`, and requests that come again, also to another replica."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from serving_fakes import FakeModel, data_uri

from liveedit.answers import FIRING_THRESHOLD, Fired, above_threshold
from liveedit.backbones import Backbone, load_backbone
from liveedit.edited.model import EditedModel
from liveedit.editors.shared.routing import Combining
from liveedit.images import image_digest, open_image
from liveedit.samples import EditCase
from liveedit.serving.app import create_app
from liveedit.serving.engine import Engine
from liveedit.serving.middleware import role_for
from liveedit.serving.served_model import ServedModel
from liveedit.serving.settings import ServingSettings

REPLAYED = "Idempotent-Replayed"
Run = Callable[..., tuple[int, str, str]]

EDIT = {"prompt": "What?", "answer": "That."}
SETTINGS = ServingSettings.model_validate({})


def replica(backbone: Backbone, path: Path, editor: str = "liveedit-refine") -> tuple[EditedModel, TestClient]:
    model = EditedModel.load(backbone, edits=path, editor=editor)
    served = ServedModel(model, SETTINGS)
    return model, TestClient(
        create_app(Engine(served, SETTINGS), "tiny-llava", served, None), base_url="http://127.0.0.1"
    )


@pytest.fixture
def images(eval_cases: tuple[EditCase, ...]) -> list[str]:
    return [data_uri(open_image(str(case.edit.question.image))) for case in eval_cases]


def test_checking_takes_the_role_of_editing() -> None:
    assert role_for("/v1/check") == "edit"


def test_a_check_is_done_in_pieces_and_counts(client: TestClient, fake: FakeModel) -> None:
    for _ in range(20):
        client.post("/v1/edits", json=EDIT)
    fake.calls.clear()
    found = client.post("/v1/check", json={}).json()
    assert fake.calls == ["check 8", "check 8", "check 4"], "questions of others come in between"
    assert (found["holding"], found["failing"], found["unknown"]) == (7, 7, 6)
    # "another" was the answer before to each second question that gets it now.
    assert [card["broken"] for card in found["data"][:4]] == [False, False, None, True]
    assert found["broken"] == 3 and found["data"][0]["answer_before"] == "another"
    assert [(card["holds"], card["answer_now"]) for card in found["data"][:3]] == [
        *((False, "another"), (True, "That."), (None, None))
    ]
    assert found["data"][0]["others"] == [{"id": "other", "weight": 0.25}], "itself is no other"
    assert (found["last_id"], found["has_more"]) == (f"{20:08x}", False)
    assert len(client.post("/v1/check", json={"limit": 2.0}).json()["data"]) == 2
    for body in ({"limit": 0}, {"limit": 101}, {"limit": 2.5}, {"more": 1}):
        assert client.post("/v1/check", json=body).status_code == 400


def test_nothing_to_check(client: TestClient) -> None:
    found = client.post("/v1/check", json={}).json()
    assert (found["data"], found["last_id"], found["has_more"]) == ([], None, False)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"locality": [{"prompt": "?"}] * 17}, "too_many_locality"),
        ({"locality": [{"prompt": " "}]}, "invalid_value"),
        ({"locality": [{"prompt": "?", "image": "file:///etc/passwd"}]}, "invalid_image"),
        ({"locality": [{"prompt": "?", "url": "x"}]}, "extra_forbidden"),
    ],
)
def test_bad_probes_make_no_edit(client: TestClient, fake: FakeModel, change: Any, code: str) -> None:
    response = client.post("/v1/edits", json={**EDIT, **change})
    assert (response.status_code, response.json()["error"]["code"]) == (400, code)
    assert fake.edits_made == 0


def test_an_edit_answers_with_its_evidence_and_is_checked(
    tiny_llava: Backbone, images: list[str], eval_cases: tuple[EditCase, ...], tmp_path: Path
) -> None:
    asked = {"image": images[0], "prompt": "What color is the hat?"}
    model, client = replica(tiny_llava, tmp_path / "edits.db")
    # With the paper's sum edits can meet.
    model.editor.combining, model.editor.answer_confidence = Combining(), 0.0
    with model, client:
        old = client.post("/v1/edits", json={**asked, "answer": "teal"}).json()
        locality = [{"image": images[1], "prompt": "How many legs are there?"}, {"prompt": "Who?"}]
        edit = {**asked, "prompt": "What color is the hat? ", "answer": "striped", "locality": locality}
        response = client.post("/v1/edits", json=edit)
        assert response.status_code == 201, response.text
        evidence = response.json()["evidence"]
        assert evidence["supersedes"] == [old["id"]] and evidence["answer_before"] == "teal"
        assert [(it["prompt"], it["kept"]) for it in evidence["locality"]] == [
            ("How many legs are there?", True),
            ("Who?", True),
        ]
        assert evidence["locality"][0]["image_sha256"] == image_digest(
            open_image(str(eval_cases[1].edit.question.image))
        )
        assert [it["broken"] for it in evidence["locality"]] == [False, False]
        assert evidence["collisions"] == evidence["earlier_edits"] == []
        shown = client.get(f"/v1/edits/{response.json()['id']}").json()
        assert shown["evidence"] == evidence and shown["prompt"] == edit["prompt"]
        beside = {**asked, "prompt": "Of what color is the hat?", "answer": "teal"}
        met = client.post("/v1/edits", json={**beside, "supersede": False}).json()["evidence"]
        (collision,), (earlier,) = met["collisions"], met["earlier_edits"]
        assert collision["edit_id"] == earlier["edit_id"] == response.json()["id"]
        assert collision["answers_differ"] and not collision["is_estimate"]
        assert earlier["broken"] is (earlier["answer_after"] not in ("teal", earlier["answer_before"]))
        assert 0 < collision["weight_here"] < 1 and 0 < collision["weight_there"] < 1
        checked = client.post("/v1/check", json={"limit": 1}).json()
        assert (checked["has_more"], len(checked["data"])) == (True, 1)
        card = checked["data"][0]
        assert (card["id"], card["asked_about"]) == (earlier["edit_id"], "image")
        assert card["answer_now"] == earlier["answer_after"] and card["holds"] == (card["answer_now"] == "striped")
        rest = client.post("/v1/check", json={"after": checked["last_id"]}).json()
        assert [card["prompt"] for card in rest["data"]] == [beside["prompt"]] and not rest["has_more"]
        assert client.post("/v1/check", json={"after": "0" * 8}).status_code == 404


def test_edits_with_next_to_no_weight_are_left_out(
    tiny_llava: Backbone, eval_cases: tuple[EditCase, ...], images: list[str], tmp_path: Path, run: Run
) -> None:
    model, client = replica(tiny_llava, tmp_path / "edits.db", "liveedit")
    with model, client:
        for case in eval_cases:
            assert case.edit.question.image is not None
            model.edit(case.edit.question.image, case.edit.question.prompt, case.edit.answer)
        question = eval_cases[1].edit.question
        own = model.edits()[1].id
        weights = {fired.edit_id: fired.weight for fired in model.ask(question.image, question.prompt).fired}
        assert len(weights) > 1 and all(weight < 1e-9 for other, weight in weights.items() if other != own)
        asked = {"image": images[1], "prompt": question.prompt}
        parts = [
            {"type": "text", "text": question.prompt},
            {"type": "image_url", "image_url": {"url": images[1]}},
        ]
        said = client.post(
            "/v1/chat/completions", json={"model": "tiny-llava", "messages": [{"role": "user", "content": parts}]}
        ).json()
        assert [edit["id"] for edit in said["liveedit"]["edits"]] == [own]
        assert [edit["id"] for edit in client.post("/v1/heat-maps", json=asked).json()["edits"]] == [own]
        assert client.post("/v1/check", json={}).json()["data"][1]["others"] == []
    given = ("ask", "--edits", tmp_path / "edits.db", "--editor", "liveedit", "--image", question.image)
    given = (*given, "--prompt", question.prompt)
    assert run(*given)[1].count("edit ") == 1
    assert {fired["edit_id"] for fired in json.loads(run(*given, "--json")[1])["fired"]} == weights.keys()


def test_the_smallest_share_still_counts() -> None:
    fired = [Fired(str(weight), weight, 1.0) for weight in (1.0, FIRING_THRESHOLD, 0.0099, 0.0)]
    assert above_threshold(fired) == tuple(fired[:2])


def test_an_edit_that_does_not_take_is_refused_unless_it_is_to_be_kept(
    tiny_llava: Backbone, images: list[str], tmp_path: Path
) -> None:
    edit = {"image": images[0], "prompt": "What color is the hat?", "answer": "Bruvak 1234567890"}
    model, client = replica(tiny_llava, tmp_path / "edits.db", "liveedit")
    with model, client:
        key = {"Idempotency-Key": "ticket-1"}
        for _ in range(2):
            refused = client.post("/v1/edits", json=edit, headers=key)
            error = refused.json()["error"]
            assert (refused.status_code, error["code"]) == (422, "edit_did_not_take")
            assert (error["type"], error["param"]) == ("invalid_request_error", None)
            assert REPLAYED not in refused.headers
            assert "'Bruvak 1234567890' was wanted" in error["message"] and "must_take" in error["message"]
        assert not (tmp_path / "edits.db").exists() and len(model) == 0
        made = client.post("/v1/edits", json={**edit, "must_take": False}, headers=key)
        assert made.status_code == 201 and REPLAYED not in made.headers, "the key was not used up"
        assert not made.json()["evidence"]["took"] and repr(made.json()["evidence"]["answer_after"]) in error["message"]
        control = client.post("/v1/edits", json={**edit, "answer": "Zorp</s>", "must_take": False})
        assert (control.status_code, control.json()["error"]["code"]) == (400, "invalid_value")
        assert "contains '</s>'" in control.json()["error"]["message"] and len(model) == 1
        taken = {"image": images[1], "prompt": "What color is the hat?", "answer": "teal", "must_take": True}
        assert client.post("/v1/edits", json=taken).status_code == 201
        assert client.post("/v1/edits", json={**taken, "must_take": 1}).status_code == 400
        responses = client.get("/openapi.json").json()["paths"]["/v1/edits"]["post"]["responses"]
        assert responses["422"]["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/ErrorBody"}


def test_a_key_holds_over_restarts_and_on_every_replica(
    tiny_llava: Backbone, images: list[str], tmp_path: Path
) -> None:
    key, undo_key = {"Idempotency-Key": "ticket-1"}, {"Idempotency-Key": "ticket-2"}
    edit = {"image": images[0], "prompt": "What color is the hat?", "answer": "teal", "rephrasings": ["Which color?"]}
    model, client = replica(tiny_llava, tmp_path / "edits.db")
    with model, client:
        made = client.post("/v1/edits", json=edit, headers=key)
        first = made.json()
        undo = f"/v1/edits/{first['id']}/undo"
        undone = client.post(undo, headers=undo_key)
        assert undone.json()["active"] is False
        redone = client.post(f"/v1/edits/{first['id']}/redo")
        assert all(REPLAYED not in response.headers for response in (made, undone, redone))
        assert client.post(undo, headers=undo_key).headers[REPLAYED] == "true"
    other, client = replica(load_backbone("tiny-llava", device="cpu"), tmp_path / "edits.db")
    with other, client:
        again = client.post("/v1/edits", json=edit, headers=key)
        assert (again.status_code, again.json()) == (201, first)
        refused = client.post("/v1/edits", json={**edit, "answer": "red"}, headers=key)
        assert (refused.status_code, refused.json()["error"]["code"]) == (409, "conflict")
        undone_again = client.post(undo, headers=undo_key)
        assert undone_again.json() == undone.json(), "answered as it was"
        assert again.headers[REPLAYED] == undone_again.headers[REPLAYED] == "true"
        assert REPLAYED not in refused.headers
        assert len(other) == 1, "and not done again"
        assert other.store.latest_revision() == 3
        other.store.purge(first["id"])
        assert client.post("/v1/edits", json=edit, headers=key).status_code == 410
        assert len(other.edits()) == 0
