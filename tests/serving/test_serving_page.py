"""The page in a real browser against a real server: asked, corrected, asked again, taken back.

With LIVEEDIT_SCREENSHOTS=FOLDER the pictures of docs/PAGE.md are made on the way.
"""

from __future__ import annotations

import base64
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from browsers import DESKTOP, PHONE, Visitor, running_browser, why_no_browser
from PIL import Image
from serving_fakes import FakeModel, fake_app, listening

from liveedit.experts.paging import EditPage
from liveedit.serving.example_pictures import EXAMPLES, QUESTIONS, example_png
from liveedit.serving.keys import KeyFile
from liveedit.serving.settings import ServingSettings

_REASON = why_no_browser()
pytestmark = [pytest.mark.browser, pytest.mark.skipif(_REASON is not None, reason=_REASON or "")]

QUESTION, REWORDED = QUESTIONS[0][0], "What is the name of this creature?"
NEW_NAME = "Bruvak"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of `liveedit serve` with the built-in model, in a process of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    edits = tmp_path_factory.mktemp("edits") / "edits.db"
    command = [sys.executable, "-m", "liveedit", "serve", "--edits", str(edits), "--port", str(port), "--no-auth"]
    url = f"http://127.0.0.1:{port}"
    with subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}) as process:
        try:
            until = time.monotonic() + 300
            while not is_ready(url):
                assert process.poll() is None and time.monotonic() < until
                time.sleep(0.1)
            yield url
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


def is_ready(url: str) -> bool:
    try:
        return httpx2.get(f"{url}/readyz").status_code == 200
    except httpx2.TransportError:
        return False


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with running_browser(tmp_path_factory.mktemp("browser")) as opened:
        yield opened


@pytest.fixture
def visitor(driver: Any, served: str) -> Iterator[Visitor]:
    """A visitor of the real server, who finds no edit in force and hears no complaint of the browser."""
    folder = os.environ.get("LIVEEDIT_SCREENSHOTS")
    visiting = Visitor(driver, f"{served}/", Path(folder) if folder else None)
    yield visiting
    assert visiting.complaints() == []
    assert {url for url in visiting.requested() if not url.startswith(f"{served}/")} == set()
    while edits := httpx2.get(f"{served}/v1/edits").json()["data"]:
        httpx2.post(f"{served}/v1/edits/{edits[-1]['id']}/undo")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A creature, the same one elsewhere, and another one."""
    folder = tmp_path_factory.mktemp("pictures")
    for example in EXAMPLES:
        (folder / example.name).write_bytes(example_png(example))
    return [folder / example.name for example in EXAMPLES]


def correct(visitor: Visitor, answer: str, **fields: str) -> None:
    """Correct the answer that is shown, by mouse."""
    visitor.click("#correct-button")
    if fields:
        visitor.click("#correction-form summary")
    visitor.write("#right-answer", answer)
    for name, text in fields.items():
        visitor.write(f"#{name}", text)
    visitor.click("#correct")
    visitor.until(lambda: visitor.sees("#evidence") or visitor.sees("#correction-problem"))


def shades(visitor: Visitor) -> list[int]:
    """How dark the heat map is in the middle of each of 4 x 4 cells, row by row, 0 to 255."""
    return visitor.script(
        """const heat = document.getElementById("heat"), side = heat.width;
        const copy = Object.assign(document.createElement("canvas"), { width: side, height: side });
        const pen = copy.getContext("2d", { willReadFrequently: true });
        pen.drawImage(heat, 0, 0);
        const pixels = pen.getImageData(0, 0, side, side).data;
        const at = (cell) => Math.floor((cell + 0.5) / 4 * side);
        return [...Array(16).keys()].map((n) => pixels[4 * (at(Math.floor(n / 4)) * side + at(n % 4)) + 3]);"""
    )


# -- the whole path --------------------------------------------------------------------------------------


def test_ask_correct_ask_again_undo_and_redo(visitor: Visitor, served: str, pictures: list[Path]) -> None:
    visitor.open()
    visitor.until(lambda: visitor.text("#model-name") == "tiny-llava")
    visitor.shot("first")
    first, again, other = pictures
    old = visitor.ask(QUESTION, first)
    assert old and old != NEW_NAME
    assert "No correction took part" in visitor.text("#fired")
    own = visitor.ask(QUESTION, other)

    assert visitor.ask(QUESTION, first) == old
    correct(visitor, NEW_NAME, rephrasings="\n".join(QUESTIONS[0][1:]), note="From the keeper's list", author="Ada")
    evidence = visitor.text("#evidence")
    assert "Learned" in evidence and old in evidence and NEW_NAME in evidence
    assert "2 of 2 follow" in evidence
    visitor.shot("correction")
    newest = visitor.until(lambda: visitor.all("#history-list .edit"))[0].text
    assert all(text in newest for text in (QUESTION, old, NEW_NAME, "in force", "Ada", "From the keeper's list"))

    assert visitor.ask(REWORDED, first) == NEW_NAME
    assert visitor.ask(REWORDED, again) == NEW_NAME
    (fired,) = visitor.all(".fired-edit")
    assert QUESTION in fired.text and "weight" in fired.text and visitor.until(lambda: visitor.sees(".fired-edit img"))
    visitor.click("label:has([value=attention])")
    visitor.until(lambda: visitor.sees("#heat"))
    visitor.shot("answer")
    assert visitor.ask(QUESTION, other) == own

    visitor.click("#history-list .edit button")
    visitor.until(lambda: "undone" in visitor.text("#history-list .edit") and not visitor.sees("[aria-disabled=true]"))
    assert visitor.sees("#stale")
    assert visitor.ask(QUESTION, first) == old
    assert "No correction took part" in visitor.text("#fired")

    visitor.click("#history-list .edit button")
    visitor.until(lambda: "in force" in visitor.text("#history-list .edit"))
    visitor.click("#ask-again")
    assert visitor.answer(8) == NEW_NAME
    visitor.click("#history-list .edit summary")
    visitor.until(lambda: visitor.count("#history-list .edit:first-child .events li") == 3)
    happened = visitor.text("#history-list .edit .events")
    assert happened.index("made") < happened.index("undone") < happened.index("put back")
    visitor.shot("history")
    (edit,) = httpx2.get(f"{served}/v1/edits").json()["data"]
    assert edit["answer"] == NEW_NAME


def test_the_heat_maps_are_those_of_the_server(visitor: Visitor, served: str, pictures: list[Path]) -> None:
    visitor.open()
    visitor.ask(QUESTION, pictures[0])
    uri = "data:image/png;base64," + base64.b64encode(pictures[0].read_bytes()).decode()
    wanted = {"image": uri, "prompt": QUESTION, "change_cells": 4}
    maps = httpx2.post(f"{served}/v1/heat-maps", json=wanted).json()
    for kind in ("attention", "change"):
        visitor.click(f"label:has([value={kind}])")
        visitor.until(lambda: visitor.sees("#heat-explained") and not visitor.sees("[aria-busy=true]"))
        values = [value for row in maps[kind]["values"] for value in row]
        shown = shades(visitor)
        by_value = sorted(range(16), key=lambda cell: values[cell])
        assert sorted(shown, reverse=True) == [shown[cell] for cell in by_value]
        assert shown[by_value[-1]] == 0 and shown[by_value[0]] > 30
        visitor.click("#heat-details summary")
        cells = [cell.text for cell in visitor.all("#heat-table td")]
        written = [f"{100 * value:.1f}%" if kind == "attention" else f"{value:.3f}" for value in values]
        assert cells == written
        visitor.click("#heat-details summary")
        assert visitor.text("#heat-summary")
    visitor.click("label:has([value=off])")
    assert not visitor.sees("#heat")


def test_examples_are_asked_about_at_a_click(visitor: Visitor) -> None:
    visitor.open()
    visitor.click(".example:nth-child(1)")
    old = visitor.answer(1)
    assert visitor.find("#prompt").get_attribute("value") == QUESTION
    correct(visitor, NEW_NAME)
    visitor.click("#evidence .chip:nth-child(2)")
    assert visitor.answer(2) == NEW_NAME
    assert visitor.text("#asked-prompt") == visitor.find("#prompt").get_attribute("value") == QUESTIONS[0][1]
    assert visitor.text("#log li:first-child .log-prompt") == QUESTIONS[0][1]
    visitor.click(".example:nth-child(2)")
    assert visitor.answer(3) == NEW_NAME
    visitor.click(".fired-edit button")
    visitor.until(lambda: visitor.text(".fired-edit button") == "Redo")
    visitor.click("#log li:last-child button")
    assert visitor.answer(4) == old
    assert visitor.text("#asked-prompt") == QUESTION and visitor.text("#picture-name") == EXAMPLES[0].title


def test_the_evidence_tells_what_stayed_and_what_is_near(visitor: Visitor) -> None:
    """As the server may tell it: of no probe and no other correction there is nothing to say."""
    tell = """const [evidence, done] = arguments;
        import("./page/correction.js").then(({ Correction }) => {
          const box = document.createElement("div");
          box.append(...Correction.prototype.findings(evidence));
          done(box.innerText);
        });"""
    visitor.open()
    told = lambda **evidence: visitor.driver.execute_async_script(tell, {"rephrasings": [], **evidence})  # noqa: E731
    assert told() == ""
    kept, lost = {"kept": True}, {"kept": False}
    said = told(locality=[kept, kept, lost], earlier_edits=[kept], supersedes=["0123abcd"], collisions=[])
    assert "3 unrelated questions asked again: 1 changed" in said
    assert "1 earlier correction asked again: the answer is as before" in said
    assert "takes the place of an earlier correction" in said
    met = {"edit_id": "0123abcd", "weight_here": 0.4, "weight_there": 0.2, "is_estimate": True, "answers_differ": True}
    assert "another correction, whose answer differs: 0123abcd" in told(collisions=[met])
    visitor.until(lambda: any("404" in line for line in visitor.complaints()))  # There is no such edit.


def test_what_to_do_next_is_at_hand(visitor: Visitor) -> None:
    visitor.open()
    visitor.click(".example:nth-child(1)")
    visitor.answer(1)
    correct(visitor, NEW_NAME)
    visitor.write("#prompt", "")
    visitor.find("#evidence .chip:nth-child(4)").click()
    assert focused(visitor)["id"] == "prompt" and focused(visitor)["value"] == QUESTION
    visitor.find("#evidence .chip:nth-child(5)").click()
    assert focused(visitor)["id"] == "file"
    visitor.click("#evidence .undo-line button")
    visitor.until(lambda: not visitor.sees("#evidence") and "undone" in visitor.text("#history-list .edit"))
    assert focused(visitor)["id"] == "correct-button" and visitor.sees("#stale")


def test_a_picture_may_be_dropped_or_pasted(visitor: Visitor, pictures: list[Path]) -> None:
    visitor.open()
    data = base64.b64encode(pictures[0].read_bytes()).decode()
    send = """const bytes = Uint8Array.from(atob(arguments[0]), (c) => c.charCodeAt(0));
        const data = new DataTransfer();
        data.items.add(new File([bytes], arguments[1], { type: arguments[2] }));
        const event = arguments[3] === "drop"
          ? new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true })
          : new ClipboardEvent("paste", { clipboardData: data, bubbles: true, cancelable: true });
        document.body.dispatchEvent(event);"""
    for way in ("drop", "paste"):
        visitor.script(send, data, f"{way}.png", "image/png", way)
        visitor.until(lambda way=way: visitor.text("#picture-name") == f"{way}.png" and visitor.sees("#stage-picture"))
    visitor.click("#remove-picture")
    assert visitor.text("#picture-name") == "No picture" and not visitor.sees("#stage-picture")
    visitor.script(send, base64.b64encode(b"hello").decode(), "notes.txt", "text/plain", "drop")
    assert "notes.txt is no picture" in visitor.until(lambda: visitor.text("#ask-problem"))


def test_a_question_may_have_no_picture_and_none_is_asked_for_nothing(visitor: Visitor) -> None:
    visitor.open()
    visitor.click("#ask")
    assert "Type a question first" in visitor.text("#ask-problem")
    visitor.write("#prompt", "What is the capital of Norland?")
    visitor.click("#ask")
    assert visitor.answer(1)
    assert not visitor.sees("#ask-problem") and visitor.sees("#exhibit-none") and not visitor.sees("#exhibit-picture")
    assert not visitor.find("[name=heat][value=attention]").is_enabled()


# -- by keyboard, on a phone, in the dark ----------------------------------------------------------------


def focused(visitor: Visitor) -> dict[str, Any]:
    """Of the element with the focus: its id, name, whether the focus shows, whether it can be seen."""
    return visitor.script(
        """const element = document.activeElement;
        const marked = [element, element.nextElementSibling, element.closest(".stage")].filter(Boolean);
        const box = element.getBoundingClientRect();
        return { id: element.id, tag: element.tagName, text: element.textContent.trim(),
                 label: element.getAttribute("aria-label"), value: element.value,
                 shows: marked.some((each) => getComputedStyle(each).outlineStyle === "solid"),
                 inside: box.width > 0 && box.bottom > 0 && box.top < innerHeight };"""
    )


def tab_to(visitor: Visitor, wanted: str) -> None:
    """Press Tab until the element with this selector has the focus; every stop on the way has to show its focus."""
    from selenium.webdriver.common.keys import Keys

    for _ in range(60):
        visitor.press(Keys.TAB)
        if visitor.script("return document.activeElement === document.body"):
            continue
        stop = focused(visitor)
        assert stop["shows"] and stop["inside"], stop
        assert visitor.driver.switch_to.active_element.accessible_name, stop
        if visitor.script("return document.activeElement.matches(arguments[0])", wanted):
            return
    raise AssertionError(f"Tab never comes to {wanted}.")


def test_everything_by_keyboard_alone(visitor: Visitor) -> None:
    from selenium.webdriver.common.keys import Keys

    visitor.open()
    visitor.press(Keys.TAB)
    assert focused(visitor)["text"] == "To the question" and focused(visitor)["inside"]
    visitor.press(Keys.ENTER)
    tab_to(visitor, ".example")
    visitor.press(Keys.ENTER)
    old = visitor.answer(1)

    tab_to(visitor, "#correct-button")
    visitor.press(Keys.ENTER)
    visitor.until(lambda: focused(visitor)["id"] == "right-answer")
    visitor.press(Keys.ESCAPE)
    visitor.until(lambda: focused(visitor)["id"] == "correct-button" and not visitor.sees("#correction-form"))
    visitor.press(Keys.ENTER)
    visitor.press(NEW_NAME, Keys.ENTER)
    visitor.until(lambda: visitor.sees("#evidence") and focused(visitor)["id"] == "evidence")
    tab_to(visitor, "#evidence .chip")
    visitor.press(Keys.ENTER)
    assert visitor.answer(2) == NEW_NAME

    tab_to(visitor, "[name=heat]")
    visitor.press(Keys.ARROW_RIGHT)
    visitor.until(lambda: visitor.sees("#heat"))
    tab_to(visitor, "#history-list button")
    visitor.press(Keys.ENTER)
    visitor.until(lambda: focused(visitor)["text"] == "Redo" and "undone" in visitor.text("#history-list .edit"))
    visitor.script("document.getElementById('prompt').focus()")
    visitor.press(Keys.ENTER)
    assert visitor.answer(3) == old
    assert old in visitor.find("#live").get_attribute("textContent")


def test_the_whole_path_on_a_phone(visitor: Visitor) -> None:
    visitor.open(PHONE)
    checks = [fits(visitor)]
    visitor.click(".example:nth-child(1)")
    visitor.answer(1)
    checks.append(fits(visitor))
    visitor.click("label:has([value=attention])")
    visitor.until(lambda: visitor.sees("#heat"))
    visitor.click("#heat-details summary")
    checks.append(fits(visitor))
    visitor.click("#heat-details summary")
    visitor.click("label:has([value=off])")
    visitor.click("#correct-button")
    visitor.click("#correction-form summary")
    checks.append(fits(visitor))
    visitor.write("#right-answer", NEW_NAME)
    visitor.click("#correct")
    visitor.until(lambda: visitor.sees("#evidence") and visitor.sees("#history-list .edit"))
    checks.append(fits(visitor))
    visitor.click("#evidence .chip")
    assert visitor.answer(2) == NEW_NAME
    visitor.click("label:has([value=attention])")
    visitor.until(lambda: visitor.sees("#heat") and visitor.sees(".fired-edit img"))
    checks.append(fits(visitor))
    visitor.click("label:has([value=in_force])")
    visitor.until(lambda: visitor.count("#history-list .edit") == 1)
    visitor.script("document.activeElement.blur(), scrollTo(0, 0)")
    visitor.shot("phone", whole=True)
    visitor.click("label:has([value=all])")
    visitor.click("#history-list .edit button")
    visitor.until(lambda: "undone" in visitor.text("#history-list .edit"))
    assert checks == [[]] * len(checks)


def fits(visitor: Visitor) -> list[str]:
    """What is wrong on a small screen: wider than it, or too small for a finger (24 CSS pixels, WCAG 2.5.8)."""
    return visitor.script(
        """const wrong = document.documentElement.scrollWidth > innerWidth ? ["the page is too wide"] : [];
        for (const element of document.querySelectorAll("button, summary, input, textarea, .segments span")) {
          const box = element.getBoundingClientRect();
          if (!box.width || element.closest(".skip")) continue;
          const name = element.id || element.textContent;
          if (box.height < 24 || box.width < 24) wrong.push(`${name} is ${box.width} x ${box.height}`);
          if (box.left < 0 || box.right > innerWidth) wrong.push(`${name} sticks out`);
        }
        return wrong;"""
    )


CONTRAST = """
const channel = (value) => value <= 10.31475 ? value / 3294.6 : ((value / 255 + 0.055) / 1.055) ** 2.4;
const light = ([red, green, blue]) => 0.2126 * channel(red) + 0.7152 * channel(green) + 0.0722 * channel(blue);
const color = (text) => text.match(/[\\d.]+/g).map(Number);
const behind = (element) => {
  for (let each = element; each; each = each.parentElement) {
    const found = color(getComputedStyle(each).backgroundColor);
    if (found.length === 3 || found[3] === 1) return found;
  }
  return [255, 255, 255];
};
const low = [];
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walker.nextNode()) {
  const element = walker.currentNode.parentElement, box = element.getBoundingClientRect();
  if (!walker.currentNode.data.trim() || !box.width || element.closest(":disabled, .for-readers, noscript")) continue;
  const [dim, bright] = [light(color(getComputedStyle(element).color)), light(behind(element))].sort((a, b) => a - b);
  const contrast = (bright + 0.05) / (dim + 0.05);
  if (contrast < 4.5) low.push(`${walker.currentNode.data.trim()}: ${contrast.toFixed(2)}`);
}
return [low, getComputedStyle(document.body).backgroundColor];
"""


def test_texts_stand_out_by_day_and_by_night(visitor: Visitor) -> None:
    backgrounds = []
    for dark in (False, True):
        visitor.open(dark=dark)
        visitor.click(".example:nth-child(1)")
        visitor.answer(1)
        correct(visitor, NEW_NAME if not dark else "Fenbax", note="By day")
        visitor.click("#evidence .chip")
        visitor.answer(2)
        if dark:
            visitor.script("scrollTo(0, 0)")
            visitor.shot("dark")
        visitor.click("#history-list .edit button")
        visitor.until(lambda: visitor.sees("#stale") and "undone" in visitor.text("#history-list .edit"))
        visitor.write("#prompt", "")
        visitor.click("#ask")
        low, background = visitor.script(CONTRAST)
        assert low == []
        backgrounds.append(background)
    assert backgrounds[0] != backgrounds[1]


@pytest.mark.parametrize("size", [DESKTOP, PHONE])
def test_nothing_jumps_while_it_loads(visitor: Visitor, size: tuple[int, int]) -> None:
    visitor.open(size)
    visitor.until(lambda: visitor.text("#model-name"))
    shift = visitor.driver.execute_async_script(
        """const done = arguments[0];
        let sum = 0;
        const seen = new PerformanceObserver((list) => list.getEntries().forEach((entry) => (sum += entry.value)));
        seen.observe({ type: "layout-shift", buffered: true });
        requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(() => done(sum), 100)));"""
    )
    assert shift < 0.005


def test_what_the_page_did_not_bring_is_not_run_and_not_reached(driver: Any, served: str) -> None:
    visitor = Visitor(driver, f"{served}/")
    visitor.open()
    outcome = driver.execute_async_script(
        """const done = arguments[0], found = {};
        window.ran = false;
        const text = "window.ran = true", script = document.createElement("script");
        try { document.body.innerHTML += `<script>${text}</script>`; } catch (error) { found.html = error.name; }
        try { script.textContent = text; } catch (error) { found.script = error.name; }
        document.body.append(script);
        found.ran = window.ran;
        fetch("http://localhost:1/").then(() => "reached", (error) => error.name).then((how) => {
          found.fetched = how;
          done(found);
        });"""
    )
    assert outcome == {"html": "TypeError", "script": "TypeError", "ran": False, "fetched": "TypeError"}
    assert any("Content Security Policy" in line for line in visitor.complaints())
    assert not any("localhost:1" in url for url in visitor.requested())


# -- keys, and what goes wrong ---------------------------------------------------------------------------


def test_the_page_asks_for_the_key_that_the_server_asks_for(driver: Any, tmp_path: Path) -> None:
    keys = KeyFile(tmp_path / "keys.json")
    asking, editing = keys.add("ask")[1], keys.add("edit", "night shift")[1]
    with listening(*fake_app(FakeModel(), keys=keys)) as (url, _):
        visitor = Visitor(driver, f"{url}/")
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
        correct(visitor, NEW_NAME)
        visitor.until(lambda: "night shift" in visitor.text("#history-list"))
        assert visitor.script("return [localStorage.length, document.cookie]") == [0, ""]
        keys.remove(keys.keys[1].id)
        visitor.click("#ask")
        assert "not known" in visitor.until(lambda: visitor.text("#key-problem"))
        assert all("401" in line or "403" in line for line in visitor.complaints())


class ListedModel(FakeModel):
    """One whose edits are listed in pages, as the page asks for them: newest first."""

    def page(self, state: str, newest_first: bool, after: str | None, limit: int) -> EditPage:
        assert newest_first
        known = {"in_force": self.stored, "undone": self.undone, "all": {**self.stored, **self.undone}}[state]
        edits = sorted(known.values(), key=lambda edit: -edit.number)
        edits = [edit for edit in edits if after is None or edit.id < after]
        return EditPage(tuple(edits[:limit]), frozenset(), len(edits) > limit)


def test_corrections_are_listed_page_by_page_and_by_state(driver: Any) -> None:
    with listening(*fake_app(ListedModel())) as (url, _):
        for number in range(25):
            httpx2.post(f"{url}/v1/edits", json={"prompt": "Who is this?", "answer": f"Name {number}"})
        visitor = Visitor(driver, f"{url}/")
        visitor.open()
        shown = lambda: [strong.text for strong in visitor.all("#history-list .edit-answer strong")]  # noqa: E731
        visitor.until(lambda: shown() == [f"Name {number}" for number in range(24, 4, -1)])
        visitor.click("#older")
        visitor.until(lambda: shown() == [f"Name {number}" for number in range(24, -1, -1)])
        assert not visitor.sees("#older")
        visitor.click("#history-list .edit:nth-child(24) button")
        visitor.until(lambda: "undone" in visitor.text("#history-list .edit:nth-child(24)"))
        visitor.until(lambda: focused(visitor)["label"] == "Redo: Who is this? Name 1" and len(shown()) == 25)
        visitor.click("label:has([value=undone])")
        visitor.until(lambda: shown() == ["Name 1"])
        visitor.click("label:has([value=in_force])")
        visitor.until(lambda: len(shown()) == 20 and visitor.sees("#older"))
        assert visitor.complaints() == []
        newest = httpx2.get(f"{url}/v1/edits?state=in_force&order=desc").json()["data"][0]["id"]
        httpx2.post(f"{url}/v1/edits/{newest}/undo")
        visitor.click("#history-list .edit button")
        assert "Undone already" in visitor.until(lambda: visitor.text("#history-problem"))
        visitor.until(lambda: shown()[0] == "Name 23")
        assert "409" in visitor.text("#history-problem")


def test_an_answer_may_be_stopped(driver: Any) -> None:
    fake = FakeModel()
    with listening(*fake_app(fake)) as (url, _):
        visitor = Visitor(driver, f"{url}/")
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


def test_refusals_are_shown_and_what_may_pass_is_tried_again(driver: Any) -> None:
    fake = FakeModel()
    with listening(*fake_app(fake, ServingSettings.model_validate({"queue": 1}))) as (url, _):
        visitor = Visitor(driver, f"{url}/")
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
            assert "wait already" in said and "429" in said
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


def test_a_picture_over_the_limits_is_sent_smaller(driver: Any, tmp_path: Path) -> None:
    large = tmp_path / "large.png"
    Image.effect_noise((1200, 900), 80).convert("RGB").save(large)
    limits = ServingSettings.model_validate({"body_bytes": 200_000, "picture_pixels": 250_000})
    with listening(*fake_app(FakeModel(), limits)) as (url, _):
        visitor = Visitor(driver, f"{url}/")
        visitor.open()
        assert large.stat().st_size > 200_000
        assert visitor.ask("hello", large) == "hello: /"
        assert visitor.complaints() == []
