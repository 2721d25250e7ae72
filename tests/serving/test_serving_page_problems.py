"""The page where something is asked of the visitor or goes wrong: keys, refusals, limits, long lists, long answers."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import httpx2
import pytest
from browsers import Visitor
from browsing.browser import Browser
from PIL import Image
from serving_fakes import FakeModel, fake_app, listening

from liveedit.edited.receipt import Receipt
from liveedit.errors import EditDidNotTakeError
from liveedit.serving.api_keys import KeyFile
from liveedit.serving.page_files import QUESTIONS
from liveedit.serving.served_model import Correction
from liveedit.serving.settings import ServingSettings
from liveedit.store.records import EditPage

pytestmark = pytest.mark.browser

NEW_NAME = "Bruvak"


def test_the_page_asks_for_the_key_that_the_server_asks_for(browser: Browser, tmp_path: Path) -> None:
    keys = KeyFile(tmp_path / "keys.json")
    asking, editing = keys.add("ask")[1], keys.add("edit", "night shift")[1]
    with listening(*fake_app(FakeModel(), keys=keys)) as (url, _):
        visitor = Visitor(browser, f"{url}/")
        visitor.open()
        visitor.until(lambda: visitor.sees("#key-dialog"))
        visitor.write("#key", "le-wrong")
        visitor.click("#key-form [type=submit]")
        assert "not known" in visitor.until(lambda: visitor.text("#key-problem"))
        assert visitor.sees("#key-dialog") and visitor.script("return sessionStorage.length") == 0

        visitor.write("#key", asking)
        visitor.click("#key-form [type=submit]")
        visitor.until(lambda: not visitor.sees("#key-dialog") and visitor.text("#model-name") == "fake")
        visitor.write("#prompt", "hello")
        visitor.click("#ask")
        assert visitor.answer(1) == "hello: /"
        assert "role “edit”" in visitor.until(lambda: visitor.text("#history-problem"))
        assert not visitor.sees("#correct-button")

        visitor.click("#key-button")
        visitor.write("#key", editing)
        visitor.click("#key-form [type=submit]")
        visitor.until(lambda: not visitor.sees("#key-dialog") and not visitor.sees("#history-problem"))
        visitor.click("#ask")
        visitor.answer(2)
        visitor.correct(NEW_NAME)
        visitor.until(lambda: "night shift" in visitor.text("#history-list"))
        assert visitor.script("return [localStorage.length, document.cookie]") == [0, ""]
        keys.remove(keys.keys[1].id)
        visitor.click("#ask")
        assert "not known" in visitor.until(lambda: visitor.text("#key-problem"))
        assert all("401" in line or "403" in line for line in visitor.complaints())


class ListedModel(FakeModel):
    """One whose edits are listed in pages, as the page asks for them: newest first."""

    def page(self, state: str, *, newest_first: bool, after: str | None, limit: int, search: str | None) -> EditPage:
        assert newest_first
        known = {"active": self.stored, "undone": self.undone, "all": {**self.stored, **self.undone}}[state]
        edits = sorted(known.values(), key=lambda edit: -edit.number)
        edits = [edit for edit in edits if after is None or edit.id < after]
        return EditPage(tuple(edits[:limit]), frozenset(), len(edits) > limit)


def test_corrections_are_listed_page_by_page_and_by_state(browser: Browser) -> None:
    with listening(*fake_app(ListedModel())) as (url, _):
        for number in range(25):
            httpx2.post(f"{url}/v1/edits", json={"prompt": "Who is this?", "answer": f"Name {number}"})
        visitor = Visitor(browser, f"{url}/")
        visitor.open()
        shown = lambda: [strong.text for strong in visitor.all("#history-list .edit-answer strong")]  # noqa: E731
        visitor.until(lambda: shown() == [f"Name {number}" for number in range(24, 4, -1)])
        visitor.click("#older")
        visitor.until(lambda: shown() == [f"Name {number}" for number in range(24, -1, -1)])
        assert not visitor.sees("#older")
        visitor.click("#history-list .edit:nth-child(24) button")
        visitor.until(lambda: "undone" in visitor.text("#history-list .edit:nth-child(24)"))
        visitor.until(lambda: visitor.focused()["label"] == "Redo: Who is this? Name 1" and len(shown()) == 25)
        visitor.click("label:has([value=undone])")
        visitor.until(lambda: shown() == ["Name 1"])
        visitor.click("label:has([value=active])")
        visitor.until(lambda: len(shown()) == 20 and visitor.sees("#older"))
        assert visitor.complaints() == []
        newest = httpx2.get(f"{url}/v1/edits?state=active&order=desc").json()["data"][0]["id"]
        httpx2.post(f"{url}/v1/edits/{newest}/undo")
        visitor.click("#history-list .edit button")
        assert "Undone already" in visitor.until(lambda: visitor.text("#history-problem"))
        visitor.until(lambda: shown()[0] == "Name 23")
        assert "409" in visitor.text("#history-problem")


class StubbornModel(FakeModel):
    """One that answers every question as before, whatever it is edited to say."""

    def made_edit(self, wanted: Correction) -> Receipt:
        if wanted.must_take:
            raise EditDidNotTakeError(f"The model answers 'old'; {wanted.answer!r} was wanted. Nothing was stored.")
        return replace(super().made_edit(wanted), answer_after="old")


def test_a_correction_that_does_not_take_is_kept_only_on_request(browser: Browser) -> None:
    fake = StubbornModel()
    with listening(*fake_app(fake)) as (url, _):
        visitor = Visitor(browser, f"{url}/")
        visitor.open()
        visitor.until(lambda: visitor.text("#model-name") == "fake")
        visitor.ask("hello")
        visitor.correct(NEW_NAME)
        assert f"The model answers 'old'; '{NEW_NAME}' was wanted." in visitor.text("#correction-problem")
        assert visitor.sees("#correction-form") and not visitor.sees("#evidence") and fake.stored == {}
        visitor.click("label:has(#keep-anyway)")
        visitor.click("#correct")
        visitor.until(lambda: visitor.sees("#evidence"))
        assert "It did not take" in visitor.text("#evidence") and len(fake.stored) == 1
        visitor.click("#correct-button")
        visitor.until(lambda: visitor.sees("#correction-form"))
        assert not visitor.script("return document.getElementById('keep-anyway').checked")


def test_an_answer_may_be_stopped(browser: Browser) -> None:
    fake = FakeModel()
    with listening(*fake_app(fake)) as (url, _):
        visitor = Visitor(browser, f"{url}/")
        visitor.open()
        visitor.until(lambda: visitor.text("#model-name") == "fake")
        visitor.write("#prompt", "endless")
        visitor.click("#ask")
        visitor.until(lambda: visitor.text("#answer-text").count("more") > 2)
        assert visitor.text("#ask") == "Stop"
        visitor.click("#ask")
        visitor.until(lambda: visitor.text("#ask") == "Ask" and "(stopped)" in visitor.text("#answer-text"))
        visitor.until(lambda: fake.was_abandoned)
        visitor.write("#prompt", "hello")
        visitor.click("#ask")
        assert visitor.answer(1) == "hello: /"


def test_refusals_are_shown_and_what_may_pass_is_tried_again(browser: Browser) -> None:
    fake = FakeModel()
    with listening(*fake_app(fake, ServingSettings.model_validate({"queue": 1}))) as (url, _):
        visitor = Visitor(browser, f"{url}/")
        visitor.open()
        visitor.until(lambda: visitor.text("#model-name") == "fake")
        fake.gate.clear()
        body = {"model": "fake", "messages": [{"role": "user", "content": "hello"}]}
        crowd = [
            threading.Thread(target=httpx2.post, args=(f"{url}/v1/chat/completions",), kwargs={"json": body})
            for _ in range(2)
        ]
        crowd[0].start()
        assert fake.entered.wait(20)
        crowd[1].start()
        try:
            visitor.write("#prompt", "hello")
            visitor.until(lambda: "liveedit_queue_length 1.0" in httpx2.get(f"{url}/metrics").text)
            visitor.click("#ask")
            said = visitor.until(lambda: visitor.text("#ask-problem"))
            assert "requests are waiting" in said and "429" in said
        finally:
            fake.gate.set()
            for one in crowd:
                one.join(20)
        visitor.click("#ask-problem button")
        assert visitor.answer(1) == "hello: /"
        visitor.write("#prompt", "broken")
        visitor.click("#ask")
        said = visitor.until(lambda: visitor.text("#ask-problem"))
        assert "The server failed" in said and "request " in said and "secret" not in said
        assert visitor.text("#answer-text") == "hello: /"
        visitor.write("#prompt", "unfit")
        visitor.click("#ask")
        visitor.until(lambda: "Unfit" in visitor.text("#ask-problem"))
        assert not visitor.sees("#ask-problem button")
    visitor.write("#prompt", "hello")
    visitor.click("#ask")
    visitor.until(lambda: "cannot be reached" in visitor.text("#ask-problem"))
    visitor.complaints()


def test_an_image_over_the_limits_is_sent_smaller(browser: Browser, tmp_path: Path) -> None:
    large = tmp_path / "large.png"
    Image.effect_noise((1200, 900), 80).convert("RGB").save(large)
    limits = ServingSettings.model_validate({"body_bytes": 200_000, "image_pixels": 250_000})
    with listening(*fake_app(FakeModel(), limits)) as (url, _):
        visitor = Visitor(browser, f"{url}/")
        visitor.open()
        assert large.stat().st_size > 200_000
        assert visitor.ask("hello", large) == "hello: /"
        assert visitor.complaints() == []


def test_an_answer_in_doubt_is_shown_as_the_models_own(visitor: Visitor, images: list[Path]) -> None:
    visitor.open()
    visitor.until(lambda: visitor.text("#model-name") == "tiny-llava")
    visitor.script(
        """const original = window.fetch;
        window.fetch = async (url, options) => {
            const response = await original(url, options);
            if (!String(url).includes("chat/completions")) return response;
            const withheld = '"withheld":[{"id":"0123456789abcdef","weight":1.0,"margin":2.0}]';
            const text = (await response.text()).replace(/"withheld":\\s*\\[\\]/, withheld);
            return new Response(text, { status: response.status, headers: response.headers });
        };"""
    )
    assert visitor.ask(QUESTIONS[0][0], images[0])
    assert "A correction fired, but the model was in doubt" in visitor.text("#fired")
