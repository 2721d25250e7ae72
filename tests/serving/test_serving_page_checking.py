"""The page and what is known of corrections: whether they still hold, and the evidence that is kept with them."""

from __future__ import annotations

import base64
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx2
import pytest
from browsers import Visitor
from browsing.browser import Browser
from serving_fakes import FakeModel, fake_app, listening

from liveedit.answers import Fired
from liveedit.edited.recheck import CheckedEdit
from liveedit.serving.page_files import QUESTIONS
from liveedit.store.records import EditPage, StoredEdit

pytestmark = pytest.mark.browser


class CheckedModel(FakeModel):
    """Of its edits each third one fails and each third is unknown. `slices`: how many more are checked."""

    def __init__(self) -> None:
        super().__init__()
        self.slices = threading.Semaphore(0)

    def page(self, state: str, newest_first: bool, after: str | None, limit: int, search: str | None) -> EditPage:
        edits = sorted(self.stored.values(), key=lambda edit: edit.number, reverse=newest_first)
        begin = 0 if after is None else [edit.id for edit in edits].index(after) + 1
        return EditPage(tuple(edits[begin : begin + limit]), frozenset(), len(edits) > begin + limit)

    def check_edits(self, edits: Sequence[StoredEdit]) -> list[CheckedEdit]:
        assert self.slices.acquire(timeout=30)
        return [self._checked(edit) for edit in edits]

    def _checked(self, edit: StoredEdit) -> CheckedEdit:
        said = {0: None, 1: "Another"}.get(edit.number % 3, edit.answer)
        fired = (Fired(edit.id, 0.75, 1.0), Fired("00000002", 0.25, 1.0))
        return CheckedEdit(edit.id, edit.prompt, edit.answer, said, "nothing" if said is None else "thumbnail", fired)


def test_all_are_checked_slice_by_slice_and_marked(browser: Browser) -> None:
    model = CheckedModel()
    with listening(*fake_app(model)) as (url, _):
        for number in range(1, 26):
            httpx2.post(f"{url}/v1/edits", json={"prompt": "Who is this?", "answer": f"Name {number}"})
        visitor = Visitor(browser, f"{url}/")
        visitor.open()
        visitor.click("#check-button")
        model.slices.release()
        visitor.until(lambda: visitor.text("#check-summary") == "Asked again: 8 …" and visitor.sees("#check-progress"))
        assert visitor.text("#check-button") == "Stop" and visitor.focused()["id"] == "check-button"
        model.slices.release(3)
        visitor.until(lambda: visitor.text("#check-summary") == "8 hold, 9 fail, 8 unknown.")
        assert visitor.text("#check-button") == "Check all" and not visitor.sees("#check-progress")
        assert visitor.find("#live").get_attribute("textContent") == "8 hold, 9 fail, 8 unknown."

        marked = lambda number: visitor.text(f"#history-list [data-id='{number:08x}'] .verdict")  # noqa: E731
        assert marked(8) == marked(23) == "✓ Holds"
        assert "image was not kept" in marked(24) and marked(24).startswith("? Unknown")
        visitor.until(lambda: "Also fired: Who is this? Name 2 (weight 25%)" in marked(25))
        assert marked(25).startswith("✗ Fails: it now says Another") and "smaller copy of its image" in marked(25)
        elsewhere = visitor.text("#check-elsewhere")
        assert all(f"Name {number}\n" in elsewhere for number in (1, 3, 4)) and "Name 2\n" not in elsewhere
        visitor.click("#older")
        visitor.until(lambda: marked(1).startswith("✗ Fails"))
        assert marked(2) == "✓ Holds" and not visitor.sees("#check-elsewhere")

        assert not visitor.sees("#check-outdated")
        visitor.click("#history-list .edit:nth-child(1) button")
        visitor.until(lambda: visitor.sees("#check-outdated"))
        assert visitor.complaints() == []


def test_a_check_may_be_stopped_and_goes_on_after_a_refusal(browser: Browser) -> None:
    model = CheckedModel()
    with listening(*fake_app(model)) as (url, _):
        for number in range(1, 13):
            httpx2.post(f"{url}/v1/edits", json={"prompt": "Who is this?", "answer": f"Name {number}"})
        visitor = Visitor(browser, f"{url}/")
        visitor.open()
        visitor.click("#check-button")
        model.slices.release()
        visitor.until(lambda: visitor.text("#check-summary") == "Asked again: 8 of 12 …")
        visitor.click("#check-button")
        visitor.until(lambda: visitor.text("#check-summary") == "Stopped. 3 hold, 3 fail, 2 unknown.")
        assert visitor.count(".verdict p.yes") == 3 and not visitor.sees("#check-problem")
        model.slices.release()
        visitor.complaints()

        visitor.click("#check-button")
        visitor.script("window.fetched = fetch; window.fetch = () => Promise.reject(new TypeError('away'));")
        model.slices.release()
        visitor.until(lambda: "cannot be reached" in visitor.text("#check-problem"))
        assert visitor.text("#check-summary") == "Stopped. 3 hold, 3 fail, 2 unknown."
        visitor.script("window.fetch = window.fetched")
        model.slices.release()
        visitor.click("#check-problem button")
        visitor.until(lambda: visitor.text("#check-summary") == "4 hold, 4 fail, 4 unknown.")
        assert visitor.complaints() == []


def test_the_marks_are_what_the_server_finds_and_the_evidence_is_kept(
    visitor: Visitor, page_server: str, images: list[Path]
) -> None:
    uris = ["data:image/png;base64," + base64.b64encode(path.read_bytes()).decode() for path in images]
    asked = {"image": uris[0], "prompt": QUESTIONS[0][0]}
    first = {**asked, "answer": "Fenbax", "rephrasings": QUESTIONS[0][1:], "locality": [asked | {"image": uris[2]}]}
    second = {**first, "answer": "Bruvak", "author": "Ada", "note": "From the keeper's list"}
    third = {"image": uris[2], "prompt": QUESTIONS[1][0], "answer": "teal", "author": "Ada"}
    fourth: dict[str, Any] = {**third, "answer": "crimson", "author": "Ben", "supersede": False}
    fourth["must_take"] = False  # Both cannot hold.
    wanted = (first, third, second, fourth)
    made = [httpx2.post(f"{page_server}/v1/edits", json=one, timeout=60).json() for one in wanted]
    assert made[2]["evidence"]["supersedes"] == [made[0]["id"]]
    checked = httpx2.post(f"{page_server}/v1/check", json={}, timeout=60).json()
    assert {card["id"] for card in checked["data"]} == {one["id"] for one in made[1:]} and checked["failing"]

    visitor.open()
    visitor.click("#check-button")
    visitor.until(lambda: visitor.text("#check-button") == "Check all" and "fail" in visitor.text("#check-summary"))
    numbers = [int(part.split()[0]) for part in visitor.text("#check-summary").split(", ")]
    assert numbers == [checked["holding"], checked["failing"]] and checked["unknown"] == 0
    for card in checked["data"]:
        mark = visitor.text(f"#edit-{card['id']} .verdict")
        assert ("✓ Holds" in mark) is (card["holds"] is True) and ("Fails" in mark) is (card["holds"] is False)
        if not card["holds"]:
            assert f"it now says {card['answer_now'] or 'nothing'}" in mark and ("Also fired" in mark) is bool(
                card["others"]
            )
    assert visitor.text(f"#edit-{made[0]['id']} .verdict") == ""

    place = f"#edit-{made[2]['id']}"
    visitor.click(f"{place} summary")
    visitor.until(lambda: "Made in" in visitor.text(place))
    evidence = visitor.text(f"{place} .stored-evidence")
    right = sum(one["took"] for one in made[2]["evidence"]["rephrasings"])
    assert "it took" in evidence and f"{right} of 2 follow" in evidence
    assert "1 unrelated question asked again" in evidence
    visitor.until(lambda: "Fenbax" in visitor.text(f"{place} .stored-evidence"))
    visitor.shot("check")
    visitor.click(f"{place} .edit-actions button")
    visitor.until(lambda: "undone" in visitor.text(place) and visitor.sees("#check-outdated"))
    visitor.until(lambda: "active" in visitor.text(f"#edit-{made[0]['id']}"))
    assert visitor.text(f"{place} .verdict") == ""


def test_near_corrections_are_listed_and_those_that_collide_are_marked(browser: Browser) -> None:
    with listening(*fake_app(CheckedModel())) as (url, _):
        for answer in ("Ada", "Ben", "Cleo", "Ada", "Ben"):
            httpx2.post(f"{url}/v1/edits", json={"prompt": "Who is this?", "answer": answer})
        visitor = Visitor(browser, f"{url}/")
        visitor.open()
        place = "#edit-00000001"
        visitor.click(f"{place} summary")
        visitor.click(f"{place} .near summary")
        visitor.until(lambda: visitor.count(f"{place} .near-item") == 4)
        texts = [item.text for item in visitor.all(f"{place} .near-item")]
        assert "They do not collide. Similarity 8.00." in texts[0] and "Who is this? Ben" in texts[0]
        assert "is not known" in texts[1] and "%" not in texts[1]
        assert "collide, with another answer: weight 25% here, 40% there. Similarity 5.00." in texts[3]
        assert [item.get_attribute("data-id")[-1] for item in visitor.all(f"{place} .is-spoiling")] == ["5"]
        visitor.click(f"{place} .near-item:last-child a")
        assert visitor.script("return document.querySelector(':target').id") == "edit-00000005"
        assert visitor.complaints() == []


def test_near_corrections_of_the_real_model(visitor: Visitor, page_server: str, images: list[Path]) -> None:
    uri = "data:image/png;base64," + base64.b64encode(images[0].read_bytes()).decode()
    wanted = [{"image": uri, "prompt": QUESTIONS[0][0], "answer": answer} for answer in ("Fenbax", "Bruvak")]
    wanted[1] |= {"supersede": False, "must_take": False}
    first, second = (httpx2.post(f"{page_server}/v1/edits", json=one, timeout=60).json() for one in wanted)
    found = httpx2.get(f"{page_server}/v1/edits/{first['id']}/near", timeout=60).json()["data"]
    (card,) = [one for one in found if one["id"] == second["id"]]
    visitor.open()
    place = f"#edit-{first['id']}"
    visitor.click(f"{place} summary")
    visitor.click(f"{place} .near summary")
    near = f"{place} .near-item[data-id='{second['id']}']"
    visitor.until(lambda: visitor.sees(f"{near} img"))
    text = visitor.text(near)
    assert "Bruvak" in text and f"Similarity {card['similarity']:.2f}" in text
    assert ("They collide, with another answer" in text) is card["collides"] is visitor.sees(f"{near}.is-spoiling")
    visitor.shot("near")
