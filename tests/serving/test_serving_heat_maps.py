"""`/v1/heat-maps`: what a question looked at, by the server and by the editor itself."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from serving_fakes import FakeModel, data_uri, fake_app
from starlette.testclient import TestClient

from liveedit.backbones import Backbone
from liveedit.edited.model import EditedModel
from liveedit.editors.occlusion import change_map
from liveedit.images import open_image
from liveedit.samples import EditCase, Question
from liveedit.serving.api_keys import KeyFile
from liveedit.serving.app import create_app
from liveedit.serving.engine import Engine
from liveedit.serving.heat_maps import Area, seen_area
from liveedit.serving.served_model import ServedModel
from liveedit.serving.settings import ServingSettings

ROUTE = "/v1/heat-maps"


@pytest.fixture
def model(tiny_llava: Backbone, tmp_path: Path) -> Iterator[EditedModel]:
    with EditedModel.load(tiny_llava, edits=tmp_path / "edits.db") as loaded:
        yield loaded


@pytest.fixture
def client(model: EditedModel) -> Iterator[TestClient]:
    settings = ServingSettings.model_validate({"prompt_tokens": 64})
    served = ServedModel(model, settings)
    engine = Engine(served, settings)
    with TestClient(create_app(engine, "tiny", served, None), base_url="http://127.0.0.1") as opened:
        yield opened


def asked(case: EditCase, **further: Any) -> tuple[Question, dict[str, Any]]:
    question = case.edit.question
    assert question.image is not None
    return question, {"image": data_uri(open_image(question.image)), "prompt": question.prompt, **further}


def listed(values: Any) -> list[list[float]]:
    return [pytest.approx(list(row), abs=1e-6) for row in values]


def test_the_maps_are_those_of_the_editor(
    client: TestClient, model: EditedModel, eval_cases: tuple[EditCase, ...]
) -> None:
    question, body = asked(eval_cases[0])
    found = client.post(ROUTE, json=body).json()
    assert (found["object"], found["change"], found["edits"]) == ("heat_maps", None, [])
    assert found["attention"]["over"] == "cells" and len(found["attention"]["values"]) == 4
    assert sum(sum(row) for row in found["attention"]["values"]) == pytest.approx(1, abs=1e-5)
    assert found["attention"]["values"] == listed(model.editor.attention_map(question).values)
    assert found["attention"]["area"] == {"left": 0, "top": 0, "width": 1, "height": 1}


def test_an_occlusion_map_is_that_of_the_editor(
    client: TestClient, model: EditedModel, eval_cases: tuple[EditCase, ...]
) -> None:
    question, body = asked(eval_cases[0])
    for cells in (2, 2.0):  # The same number in JSON.
        change = client.post(ROUTE, json={**body, "change_cells": cells}).json()["change"]
        assert change["values"] == listed(change_map(model.editor, question, 2).values)


def test_an_editor_without_an_attention_map_has_an_occlusion_map(
    client: TestClient, model: EditedModel, eval_cases: tuple[EditCase, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(model.editor), "attention_map", lambda self, question: None, raising=False)
    _, body = asked(eval_cases[0])
    refused = client.post(ROUTE, json=body)
    assert (refused.status_code, refused.json()["error"]["code"]) == (501, "no_attention_map")
    assert "change_cells" in refused.json()["error"]["message"]
    found = client.post(ROUTE, json={**body, "change_cells": 2}).json()
    assert found["attention"] is None and len(found["change"]["values"]) == 2


def test_the_edits_are_those_of_the_answer(
    client: TestClient, model: EditedModel, eval_cases: tuple[EditCase, ...]
) -> None:
    question, body = asked(eval_cases[0])
    assert question.image is not None
    receipt = model.edit(question.image, question.prompt, eval_cases[0].edit.answer)
    found = client.post(ROUTE, json=body).json()
    (fired,) = model.ask(question.image, question.prompt).fired
    expected = {"id": receipt.id, "weight": pytest.approx(fired.weight), "margin": pytest.approx(fired.margin)}
    assert found["edits"] == [expected] and found["revision"] == model.revision
    other = client.post(ROUTE, json=asked(eval_cases[1])[1]).json()
    assert other["edits"] == []


def test_what_cannot_be_looked_at_is_refused(client: TestClient, eval_cases: tuple[EditCase, ...]) -> None:
    _, body = asked(eval_cases[0])
    refused = [
        ({"image": "/etc/passwd"}, "invalid_image"),
        ({"image": "http://127.0.0.1/image.png"}, "invalid_image"),
        ({"prompt": " "}, "invalid_value"),
        ({"prompt": "word " * 100}, "invalid_value"),
        ({"prompt": "x" * 10_000}, "prompt_too_long"),
        ({"change_cells": 9}, "less_than_equal"),
        ({"change_cells": 1}, "greater_than_equal"),
        ({"change_cells": 2.5}, "int_type"),
        ({"more": 1}, "extra_forbidden"),
    ]
    for change, code in refused:
        response = client.post(ROUTE, json={**body, **change})
        assert (response.status_code, response.json()["error"]["code"]) == (400, code), change
    missing = client.post(ROUTE, json={"prompt": body["prompt"]})
    assert missing.status_code == 400 and missing.json()["error"]["param"] == "image"


def test_who_may_ask_may_look(tmp_path: Path) -> None:
    keys = KeyFile(tmp_path / "keys.json")
    key = {"Authorization": f"Bearer {keys.add('ask')[1]}"}
    _, app = fake_app(FakeModel(), keys=keys)
    with TestClient(app, base_url="http://127.0.0.1", raise_server_exceptions=False) as client:
        assert client.post(ROUTE, json={}).status_code == 401
        assert client.post(ROUTE, json={}, headers=key).status_code == 400


def test_a_map_lies_over_what_the_model_is_shown(tiny_llava: Backbone) -> None:
    """CLIP's way: the shorter side becomes 64, the middle 64 x 64 are cut out: of 128 x 64, 32 go on each side."""
    assert seen_area(tiny_llava, Image.new("RGB", (64, 64))) == Area()
    assert seen_area(tiny_llava, Image.new("RGB", (128, 64))) == Area(left=0.25, top=0, width=0.5, height=1)
    tall = seen_area(tiny_llava, Image.new("RGB", (300, 400)))
    assert tall.model_dump() == pytest.approx({"left": 0, "top": 0.125, "width": 1, "height": 0.75})


@pytest.mark.parametrize("cut", [(0, 0, 40, 64), (168, 0, 208, 64)])
def test_what_lies_outside_the_area_is_of_no_consequence(
    tiny_llava: Backbone, eval_cases: tuple[EditCase, ...], cut: tuple[int, int, int, int]
) -> None:
    """The processor itself is the judge of `seen_area`: margins may be painted over, and it sees the same."""
    image = eval_cases[0].edit.question.image
    assert image is not None
    wide = Image.new("RGB", (208, 64), "white")
    wide.paste(open_image(image), (72, 0))
    area = seen_area(tiny_llava, wide)
    assert cut[2] <= area.left * 208 or cut[0] >= (area.left + area.width) * 208
    painted = wide.copy()
    painted.paste((255, 0, 0), cut)
    pixels = [tiny_llava.encode([Question("x", each)]).pixel_values for each in (wide, painted)]
    assert pixels[0] is not None and pixels[1] is not None and pixels[0].equal(pixels[1])
