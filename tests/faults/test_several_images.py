"""A question has one image or none: several are refused in one sentence wherever a question can be asked."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from PIL import Image
from serving_fakes import FakeModel, data_uri, fake_app

from liveedit.answering import Answering
from liveedit.backbones import Backbone
from liveedit.edited.model import EditedModel
from liveedit.errors import ImageError
from liveedit.samples import Edit, Question
from liveedit.serving.settings import ServingSettings

Run = Callable[..., tuple[int, str, str]]
PROMPT = "What differs between the two?"
SENTENCE = "2 images were given for one question, which takes one or none. Give one."


@pytest.mark.parametrize("several", [list, tuple])
def test_in_python(tiny_llava: Backbone, picture: Callable[[int], Image.Image], several: Callable[..., Any]) -> None:
    images = several([picture(1), picture(2)])
    with EditedModel.load(tiny_llava) as model:
        uses: tuple[Callable[[], object], ...] = (
            lambda: model.ask(images, PROMPT),
            lambda: model.ask_batch([(None, PROMPT), (images, PROMPT)]),
            lambda: model.edit(images, PROMPT, "the hat"),
            lambda: model.edit(picture(1), PROMPT, "the hat", locality=[(images, "How many?")]),
            lambda: model.editor.edit([("edit", Edit(Question(PROMPT, images), "the hat"))]),
            lambda: Answering(tiny_llava).ask([Question(PROMPT, images)]),
            lambda: tiny_llava.encode([Question(PROMPT, images)]),
        )
        for use in uses:
            with pytest.raises(ImageError) as raised:
                use()
            assert str(raised.value) == SENTENCE
        assert len(model) == 0 and model.edits() == ()


@pytest.mark.parametrize("command", [["ask"], ["edit", "--answer", "the hat"]])
def test_on_the_command_line(run: Run, tmp_path: Path, command: list[str]) -> None:
    """Before a model is loaded: the last image would be taken alone."""
    given = ["--edits", tmp_path / "edits.db", "--prompt", PROMPT, "--image", "one.png", "--image", "two.png"]
    code, out, err = run(*command, *given)
    assert (code, out) == (1, "") and not (tmp_path / "edits.db").exists()
    assert err.strip() == "Error: --image was given more than once, and takes one value. Give it once."


@pytest.mark.parametrize(
    ("given", "is_refused"),
    [
        (["ask", "--prompt", "a", "--prompt=b"], True),
        (["edits", "list", "--edits", "a.db", "--edits", "b.db"], True),
        (["ask", "--prompt", "--prompt", "--backbone", "no-such-model"], False),  # The prompt is "--prompt".
        (["edit", "--rephrasing", "a", "--rephrasing", "b", "--backbone", "no-such-model"], False),
    ],
)
def test_any_option_with_one_value_is_given_once(run: Run, given: list[str], is_refused: bool) -> None:
    code, _, err = run(*given)
    assert code == 1 and ("was given more than once" in err) is is_refused


@pytest.fixture
def client() -> Iterator[TestClient]:
    _, app = fake_app(FakeModel(), ServingSettings.model_validate({}), None)
    with TestClient(app, base_url="http://127.0.0.1", raise_server_exceptions=False) as opened:
        yield opened


def test_over_http(client: TestClient, picture: Callable[[int], Image.Image]) -> None:
    uris = [data_uri(picture(seed)) for seed in (1, 2)]
    parts = [{"type": "image_url", "image_url": {"url": uri}} for uri in uris]
    text = {"type": "text", "text": PROMPT}

    def refusal(path: str, body: dict[str, Any]) -> dict[str, Any]:
        response = client.post(path, json=body)
        assert response.status_code == 400, response.text
        return response.json()["error"]

    def chat(*messages: list[dict[str, Any]]) -> dict[str, Any]:
        turns = [{"role": "user", "content": content} for content in messages]
        return refusal("/v1/chat/completions", {"model": "fake", "messages": turns})

    for content in ([*parts, text], [parts[0], text, parts[1]]):
        error = chat(content)
        assert error["message"] == "2 images were given; this model takes at most one. Send one."
        assert (error["code"], error["param"]) == ("not_supported", "messages.0.content")
    error = chat([parts[0], text], [parts[1], text])
    assert error["message"] == "2 messages were given. This model answers single questions: send one."
    edit = {"prompt": PROMPT, "answer": "the hat", "image": uris}
    assert "image" in refusal("/v1/edits", edit)["param"]
    asked = {"prompt": "How many?", "image": uris}
    error = refusal("/v1/edits", {**edit, "image": uris[0], "locality": [asked]})
    assert error["param"] == "locality.0.image" and error["message"]
    assert client.get("/v1/edits").json()["data"] == []
