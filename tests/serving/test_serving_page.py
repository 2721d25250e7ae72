"""The page in a real browser against a real server: asked, corrected, asked again, taken back.

Who can use it is tested in test_serving_page_reach.py, what may go wrong in test_serving_page_problems.py. With
LIVEEDIT_SCREENSHOTS=FOLDER the images of docs/PAGE.md are made on the way.
"""

from __future__ import annotations

import base64
from pathlib import Path

import httpx2
import pytest
from browsers import Visitor

from liveedit.serving.page_files import EXAMPLES, QUESTIONS

pytestmark = pytest.mark.browser

QUESTION, REWORDED = QUESTIONS[0][0], "What is the name of this creature?"
NEW_NAME = "Bruvak"


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


def test_ask_correct_ask_again_undo_and_redo(visitor: Visitor, page_server: str, images: list[Path]) -> None:
    visitor.open()
    visitor.until(lambda: visitor.text("#model-name") == "tiny-llava")
    visitor.shot("first")
    first, again, other = images
    old = visitor.ask(QUESTION, first)
    assert old and old != NEW_NAME
    assert "No correction fired" in visitor.text("#fired")
    own = visitor.ask(QUESTION, other)

    assert visitor.ask(QUESTION, first) == old
    visitor.correct(NEW_NAME, rephrasings="\n".join(QUESTIONS[0][1:]), note="From the keeper's list", author="Ada")
    evidence = visitor.text("#evidence")
    assert "Learned" in evidence and old in evidence and NEW_NAME in evidence
    assert "2 of 2 follow" in evidence
    visitor.shot("correction")
    newest = visitor.until(lambda: visitor.all("#history-list .edit"))[0].text
    assert all(text in newest for text in (QUESTION, old, NEW_NAME, "active", "Ada", "From the keeper's list"))

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
    assert "No correction fired" in visitor.text("#fired")

    visitor.click("#history-list .edit button")
    visitor.until(lambda: "active" in visitor.text("#history-list .edit"))
    visitor.click("#ask-again")
    assert visitor.answer(8) == NEW_NAME
    visitor.click("#history-list .edit summary")
    visitor.until(lambda: visitor.count("#history-list .edit:first-child .events li") == 3)
    happened = visitor.text("#history-list .edit .events")
    assert happened.index("made") < happened.index("undone") < happened.index("redone")
    visitor.shot("history")
    (edit,) = httpx2.get(f"{page_server}/v1/edits").json()["data"]
    assert edit["answer"] == NEW_NAME


def test_the_heat_maps_are_those_of_the_server(visitor: Visitor, page_server: str, images: list[Path]) -> None:
    visitor.open()
    visitor.ask(QUESTION, images[0])
    uri = "data:image/png;base64," + base64.b64encode(images[0].read_bytes()).decode()
    wanted = {"image": uri, "prompt": QUESTION, "change_cells": 4}
    maps = httpx2.post(f"{page_server}/v1/heat-maps", json=wanted).json()
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
    visitor.correct(NEW_NAME)
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
    assert visitor.text("#asked-prompt") == QUESTION and visitor.text("#image-name") == EXAMPLES[0].title


def test_the_evidence_tells_what_stayed_and_what_is_near(visitor: Visitor) -> None:
    """As the server may tell it: of no probe and no other correction there is nothing to say."""
    tell = """const [evidence, done] = arguments;
        Promise.all([import("./page/evidence.js"), import("./page/cards.js")]).then(([{ findings }, { remember }]) => {
          remember({ id: "0123abcd", prompt: "Who is it?", answer: "Bruvak", active: false });
          const box = document.createElement("div");
          box.append(...findings(evidence));
          setTimeout(() => done(box.innerText));
        });"""
    visitor.open()
    told = lambda **evidence: visitor.driver.execute_async_script(tell, {"rephrasings": [], **evidence})  # noqa: E731
    assert told() == ""
    kept = {"prompt": "Where?", "answer_before": "here", "answer_after": "here", "kept": True}
    lost = {"prompt": "Who?", "answer_before": "nobody", "answer_after": "", "kept": False}
    said = told(locality=[kept, kept, lost], earlier_edits=[kept], supersedes=["0123abcd"], collisions=[])
    assert "3 unrelated questions asked again: 1 changed" in said
    assert "Who?: nobody → (nothing)" in said and "Where?" not in said
    assert "1 earlier correction asked again: the answer stayed" in said
    assert "replaced an earlier correction: Who is it? Bruvak" in said
    met = {"edit_id": "0123abcd", "weight_here": 0.4, "weight_there": 0.2, "is_estimate": True, "answers_differ": True}
    assert "another correction that has another answer: Who is it? Bruvak" in told(collisions=[met])
    assert "(weight 40% here, about 20% there)" in told(collisions=[met])


def test_what_to_do_next_is_at_hand(visitor: Visitor) -> None:
    visitor.open()
    visitor.click(".example:nth-child(1)")
    visitor.answer(1)
    visitor.correct(NEW_NAME)
    visitor.write("#prompt", "")
    visitor.find("#evidence .chip:nth-child(4)").click()
    assert visitor.focused()["id"] == "prompt" and visitor.focused()["value"] == QUESTION
    visitor.find("#evidence .chip:nth-child(5)").click()
    assert visitor.focused()["id"] == "file"
    visitor.click("#evidence .undo-line button")
    visitor.until(lambda: not visitor.sees("#evidence") and "undone" in visitor.text("#history-list .edit"))
    assert visitor.focused()["id"] == "correct-button" and visitor.sees("#stale")


def test_an_image_may_be_dropped_or_pasted(visitor: Visitor, images: list[Path]) -> None:
    visitor.open()
    data = base64.b64encode(images[0].read_bytes()).decode()
    send = """const bytes = Uint8Array.from(atob(arguments[0]), (c) => c.charCodeAt(0));
        const data = new DataTransfer();
        data.items.add(new File([bytes], arguments[1], { type: arguments[2] }));
        const event = arguments[3] === "drop"
          ? new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true })
          : new ClipboardEvent("paste", { bubbles: true, cancelable: true });
        // Firefox takes no clipboardData from scripts.
        if (arguments[3] === "paste") Object.defineProperty(event, "clipboardData", { value: data });
        document.body.dispatchEvent(event);"""
    for way in ("drop", "paste"):
        visitor.script(send, data, f"{way}.png", "image/png", way)
        visitor.until(lambda way=way: visitor.text("#image-name") == f"{way}.png" and visitor.sees("#stage-image"))
    visitor.click("#remove-image")
    assert visitor.text("#image-name") == "No image" and not visitor.sees("#stage-image")
    visitor.script(send, base64.b64encode(b"hello").decode(), "notes.txt", "text/plain", "drop")
    assert "notes.txt is not an image" in visitor.until(lambda: visitor.text("#ask-problem"))


def test_a_question_may_have_no_image_and_none_is_asked_for_nothing(visitor: Visitor) -> None:
    visitor.open()
    visitor.click("#ask")
    assert "Type a question first" in visitor.text("#ask-problem")
    visitor.write("#prompt", "What is the capital of Norland?")
    visitor.click("#ask")
    assert visitor.answer(1)
    assert not visitor.sees("#ask-problem") and visitor.sees("#exhibit-none") and not visitor.sees("#exhibit-image")
    assert not visitor.find("[name=heat][value=attention]").is_enabled()
