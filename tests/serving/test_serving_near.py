"""`/v1/edits/{id}/near`: the active edits nearest to an edit."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from fastapi.testclient import TestClient
from serving_fakes import FakeModel, data_uri

from liveedit.backbones import Backbone
from liveedit.edited.model import EditedModel
from liveedit.images import open_image
from liveedit.samples import EditCase
from liveedit.serving.app import create_app
from liveedit.serving.engine import Engine
from liveedit.serving.middleware import role_for
from liveedit.serving.served_model import ServedModel
from liveedit.serving.settings import ServingSettings


def test_near_edits_of_a_real_model(tiny_llava: Backbone, eval_cases: tuple[EditCase, ...]) -> None:
    settings = ServingSettings.model_validate({})
    asked = [
        {"image": data_uri(open_image(str(case.edit.question.image))), "prompt": "What color is the hat?"}
        for case in eval_cases[:3]
    ]
    with EditedModel.load(tiny_llava, editor="liveedit-refine") as model:
        served = ServedModel(model, settings)
        app = create_app(Engine(served, settings), "tiny-llava", served, None)
        with TestClient(app, base_url="http://127.0.0.1") as client:
            made = [
                client.post("/v1/edits", json={**each, "answer": answer}).json()
                for each, answer in zip(asked, ("teal", "Teal.", "red"), strict=True)
            ]
            route = f"/v1/edits/{made[0]['id']}/near"
            found = client.get(route).json()
            assert found["object"] == "list"
            cards = {card["id"]: card for card in found["data"]}
            assert cards.keys() == {made[1]["id"], made[2]["id"]}
            similar = [card["similarity"] for card in found["data"]]
            assert similar == sorted(similar, reverse=True)
            for edit, each, differs in zip(made[1:], asked[1:], (False, True), strict=True):
                card = cards[edit["id"]]
                assert card["active"] and card["has_thumbnail"] and card["answer"] == edit["answer"]
                assert card["answers_differ"] is differs and card["asked_about"] == "image"
                answer = model.ask(open_image(str(eval_cases[made.index(edit)].edit.question.image)), each["prompt"])
                weights = {one.edit_id: one.weight for one in answer.fired or ()}
                assert card["weight_there"] == pytest.approx(weights.get(made[0]["id"], 0.0), abs=1e-6)
                assert card["collides"] is (max(card["weight_here"], card["weight_there"]) >= 0.01)
            assert [card["id"] for card in client.get(route, params={"limit": 1}).json()["data"]] == [
                found["data"][0]["id"]
            ]
            client.post(f"/v1/edits/{made[0]['id']}/undo")
            undone = client.get(route).json()["data"]
            assert [card["id"] for card in undone] == [card["id"] for card in found["data"]]
            model.store.purge(made[0]["id"])
            assert client.get(route).status_code == 410


@pytest.mark.parametrize("limit", [0, 51, "x"])
def test_limits_are_checked(client: TestClient, fake: FakeModel, limit: Any) -> None:
    edit = client.post("/v1/edits", json={"prompt": "What?", "answer": "That."}).json()["id"]
    response = client.get(f"/v1/edits/{edit}/near", params={"limit": limit})
    assert (response.status_code, response.json()["error"]["param"]) == (400, "limit")


def test_unknown_ids_and_editors_that_compare_nothing(
    client: TestClient, fake: FakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    edit = client.post("/v1/edits", json={"prompt": "What?", "answer": "That."}).json()["id"]
    for unknown in ("00000099", edit[:4]):
        assert client.get(f"/v1/edits/{unknown}/near").status_code == 404
    plain = SimpleNamespace(needs_image=False, finds_neighbours=False, name="plain")
    monkeypatch.setattr(FakeModel, "editor", property(lambda self: plain))
    error = client.get(f"/v1/edits/{edit}/near")
    assert (error.status_code, error.json()["error"]["code"]) == (501, "not_compared")
    assert "'plain' does not compare edits" in error.json()["error"]["message"]


def test_it_takes_the_role_of_editing_and_is_in_the_schema(client: TestClient) -> None:
    assert role_for("/v1/edits/{edit_id}/near") == "edit"
    operation = client.get("/openapi.json").json()["paths"]["/v1/edits/{edit_id}/near"]["get"]
    assert {"200", "404", "410", "501"} <= operation["responses"].keys()
