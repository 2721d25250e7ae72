"""The page while others correct: it follows them, disturbs nobody, and waits for a server that is away."""

from __future__ import annotations

import base64
import time
from itertools import pairwise
from pathlib import Path

import httpx2
import pytest
from browsers import PHONE, Visitor
from browsing.browser import Browser
from serving_fakes import FakeModel, fake_app, listening

from liveedit.serving.api_keys import KeyFile
from liveedit.serving.page_files import EXAMPLES, QUESTIONS, example_png
from liveedit.serving.served_model import Correction
from liveedit.store.records import EditPage

pytestmark = pytest.mark.browser

PLACE = """const seen = document.elementFromPoint(arguments[0], innerHeight / 2).closest("li");
    return [seen.dataset.id, Math.round(seen.getBoundingClientRect().top)];"""


class LongList(FakeModel):
    """Counts how often its edits are listed, newest first."""

    def __init__(self, edits: int = 0) -> None:
        super().__init__()
        self.listed = 0
        for _ in range(edits):
            self.add()

    def add(self) -> str:
        name = f"Name {self.edits_made + 1}"
        self.made_edit(Correction("Who is this?", name))
        return name

    def page(self, state: str, newest_first: bool, after: str | None, limit: int, search: str | None) -> EditPage:
        self.listed += 1
        edits = sorted([*self.stored.values(), *self.undone.values()], key=lambda edit: -edit.number)
        edits = [edit for edit in edits if after is None or edit.id < after]
        edits = [edit for edit in edits if search is None or search.lower() in edit.answer.lower()]
        return EditPage(tuple(edits[:limit]), frozenset(), len(edits) > limit)


def corrected_by_ada(url: str) -> str:
    """The id of a correction of the first example, made beside the page."""
    picture = base64.b64encode(example_png(EXAMPLES[0])).decode()
    wanted = {
        "image": f"data:image/png;base64,{picture}",
        "prompt": QUESTIONS[0][0],
        "answer": "Bruvak",
        "author": "Ada",
    }
    return httpx2.post(f"{url}/v1/edits", json=wanted, timeout=60).json()["id"]


def newest(visitor: Visitor) -> str:
    return visitor.until(lambda: visitor.text("#history-list .edit:first-child"))


def test_what_others_do_appears_and_the_focus_stays(visitor: Visitor, page_server: str) -> None:
    with visitor.in_a_hurry():
        visitor.open()
    visitor.click(".example:nth-child(1)")
    visitor.answer(1)
    visitor.click("#correct-button")
    visitor.write("#right-answer", "half a wo")
    made = corrected_by_ada(page_server)
    visitor.until(lambda: visitor.sees(f"#edit-{made}"))
    assert "Ada" in newest(visitor) and not visitor.sees("#stale")
    assert visitor.focused()["id"] == "right-answer" and visitor.focused()["value"] == "half a wo"
    visitor.click("#cancel-correction")

    visitor.click(f"#edit-{made} summary")
    visitor.script("document.querySelector(arguments[0]).focus()", f"#edit-{made} .edit-actions button")
    httpx2.post(f"{page_server}/v1/edits/{made}/undo")
    visitor.until(lambda: visitor.focused()["text"] == "Redo" and "undone" in visitor.text(f"#edit-{made}"))
    visitor.until(lambda: visitor.sees(f"#edit-{made} .events"))
    assert visitor.sees("#stale")


def test_an_answer_tells_of_corrections_that_the_list_has_not(visitor: Visitor, page_server: str) -> None:
    visitor.open()
    visitor.until(lambda: visitor.text("#model-name"))
    visitor.script("Object.defineProperty(document, 'hidden', { value: true })")  # Nobody looks: nothing is asked for.
    made = corrected_by_ada(page_server)
    visitor.click(".example:nth-child(1)")
    assert visitor.answer(1) == "Bruvak"
    visitor.until(lambda: visitor.sees(f"#edit-{made}"))
    assert not visitor.sees("#stale")
    visitor.click(".fired-edit .fired-name")
    assert visitor.script("return document.querySelector(':target').id") == f"edit-{made}"


def test_a_search_shows_what_it_finds_and_follows_others(browser: Browser) -> None:
    model = LongList(25)
    with listening(*fake_app(model)) as (url, _):
        visitor = Visitor(browser, f"{url}/")
        with visitor.in_a_hurry():
            visitor.open()
        visitor.until(lambda: visitor.count("#history-list .edit") == 20)
        visitor.write("#search", "name 2")
        visitor.until(lambda: visitor.count("#history-list .edit") == 7)  # 2, and 20 to 25.
        assert not visitor.sees("#older")
        model.add()
        visitor.until(lambda: visitor.count("#history-list .edit") == 8)
        visitor.write("#search", "nobody")
        visitor.until(lambda: "No correction has this text." in visitor.text("#history-empty"))
        visitor.write("#search", "")
        visitor.until(lambda: visitor.count("#history-list .edit") == 20)


def test_nobody_who_reads_or_points_is_disturbed(browser: Browser) -> None:
    from selenium.webdriver import ActionChains

    model = LongList(25)
    with listening(*fake_app(model)) as (url, _):
        visitor = Visitor(browser, f"{url}/")
        for size, middle in ((None, 1000), (PHONE, 150)):
            with visitor.in_a_hurry():
                visitor.open(*[size] if size else [])
            visitor.until(lambda: visitor.count("#history-list .edit") == 20)
            visitor.click("#older")
            visitor.until(lambda: visitor.count("#history-list .edit") > 20)
            shown = visitor.count("#history-list .edit")
            visitor.script("document.querySelector('#history-list .edit:nth-child(12)').scrollIntoView()")
            visitor.script("document.activeElement.blur()")
            before = visitor.script(PLACE, middle)
            model.add()
            visitor.until(lambda shown=shown: visitor.count("#history-list .edit") == shown + 1)
            (seen, top), (same, still) = before, visitor.script(PLACE, middle)
            assert same == seen and abs(still - top) <= 1  # A browser scrolls by whole pixels.
            assert visitor.focused()["tag"] == "BODY"

        with visitor.in_a_hurry():
            visitor.open()
        visitor.until(lambda: visitor.count("#history-list .edit") == 20)
        item = visitor.find("#history-list .edit:nth-child(2)")
        pointing = time.monotonic() + 2
        name = model.add()
        asked = model.listed
        while time.monotonic() < pointing:
            ActionChains(browser.driver).move_to_element(item).move_by_offset(1, 1).perform()
            assert name not in visitor.text("#history-list")
        assert model.listed > asked
        visitor.until(lambda: name in visitor.text("#history-list"))
        assert visitor.complaints() == []


def test_a_server_that_is_away_is_waited_for_more_and_more_rarely(browser: Browser) -> None:
    model = LongList(1)
    with listening(*fake_app(model)) as (url, _):
        visitor = Visitor(browser, f"{url}/")
        with visitor.in_a_hurry():
            visitor.open()
        visitor.until(lambda: "Name 1" in newest(visitor))
        listed = model.listed
        visitor.until(lambda: model.listed >= listed + 3)
        assert set(visitor.script("return waits")) == {5000}
        assert visitor.complaints() == []
    # The browser notes each request that failed; of the page itself there is no error.
    waits = visitor.until(lambda: (found := visitor.script("return waits"))[-1] >= 20000 and found)
    away = [wait for wait in waits if wait > 5000]
    assert away[0] == 10000 and all(later == 2 * wait for wait, later in pairwise(away))
    complaints = visitor.complaints()
    assert len(complaints) <= len(away) + 1 and all("ERR_CONNECTION_REFUSED" in line for line in complaints)
    assert not visitor.sees("#history-problem") and "Name 1" in newest(visitor)
    model.add()
    with listening(*fake_app(model), port=int(url.rpartition(":")[2])):
        visitor.until(lambda: "Name 2" in newest(visitor))
        visitor.until(lambda: visitor.script("return waits.at(-1)") == 5000)
    visitor.driver.get("about:blank")
    visitor.complaints()


def test_a_page_that_nobody_sees_asks_for_nothing(browser: Browser) -> None:
    model = LongList(1)
    with listening(*fake_app(model)) as (url, _):
        visitor = Visitor(browser, f"{url}/")
        with visitor.in_a_hurry():
            visitor.open()
        newest(visitor)
        hide = """Object.defineProperty(document, "hidden", { value: arguments[0], configurable: true });
            document.dispatchEvent(new Event("visibilitychange"));"""
        visitor.script(hide, True)
        time.sleep(0.5)
        listed, turns = model.listed, len(visitor.script("return waits"))
        model.add()
        visitor.until(lambda: len(visitor.script("return waits")) >= turns + 4)
        assert model.listed == listed
        visitor.script(hide, False)
        visitor.until(lambda: "Name 2" in newest(visitor))


def test_a_key_that_may_only_ask_sees_what_took_part_by_id(browser: Browser, tmp_path: Path) -> None:
    keys = KeyFile(tmp_path / "keys.json")
    asking = keys.add("ask")[1]
    model = LongList(1)
    with listening(*fake_app(model, keys=keys)) as (url, _):
        visitor = Visitor(browser, f"{url}/")
        with visitor.in_a_hurry():
            visitor.open()
        visitor.until(lambda: visitor.sees("#key-dialog"))
        visitor.write("#key", asking)
        visitor.click("#key-form [type=submit]")
        visitor.until(lambda: not visitor.sees("#key-dialog") and visitor.sees("#history-problem"))
        noted = visitor.complaints()  # A browser may note that the list was refused.
        assert len(noted) <= 1 and all("403" in line for line in noted)
        visitor.write("#prompt", "hello")
        visitor.click("#ask")
        assert visitor.answer(1) == "hello: 00000001/00000001"
        (fired,) = visitor.all(".fired-edit")
        assert fired.text.split("\n") == ["Correction 00000001", "weight 75%"]
        assert not visitor.sees(".fired-edit :is(.thumb, button, a)") and not visitor.sees("#answer-problem")
        turns = len(visitor.script("return waits"))
        visitor.until(lambda: len(visitor.script("return waits")) >= turns + 3)
        assert not visitor.sees("#check") and not visitor.sees("#correct-button")
        assert visitor.complaints() == [] and model.listed == 0
