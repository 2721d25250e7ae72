"""Edits from the rows of a file: each once, in the order of the file, whatever interrupts them."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from liveedit.backbones import Backbone
from liveedit.datasets.easyedit import EASYEDIT
from liveedit.datasets.edit_rows import EDIT_ROWS
from liveedit.datasets.row_files import write_rows
from liveedit.edited import rows as edited_rows
from liveedit.edited.model import EditedModel
from liveedit.edited.rows import RowResult, make_edits, read_rows
from liveedit.images import image_digest, open_image
from liveedit.store.store import EditStore
from liveedit.testing import random_image

PROMPT = "What color is the hat?"
Add = Callable[..., list[RowResult]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a", "b"):
        random_image(ord(name)).save(tmp_path / f"{name}.png")
    return tmp_path


@pytest.fixture
def opened(tiny_llava: Backbone, tmp_path: Path) -> Callable[[], EditedModel]:
    return lambda: EditedModel.load(tiny_llava, edits=tmp_path / "edits.db")


@pytest.fixture
def add(folder: Path, opened: Callable[[], EditedModel]) -> Add:
    """Writes rows into a file, and makes their edits, or only the first of them, as a process of its own would."""

    def call(rows: Sequence[dict[str, Any]], most: int | None = None, **options: Any) -> list[RowResult]:
        write_rows(folder / "rows.jsonl", rows)
        given = {"probe_edits": 0, "must_take": False, **options}
        with opened() as model:
            return list(islice(make_edits(model, read_rows(EDIT_ROWS, folder / "rows.jsonl"), **given), most))

    return call


def row(answer: str, image: str | None = "a.png", **more: Any) -> dict[str, Any]:
    return {"prompt": PROMPT, "answer": answer, "image": image, **more}


def outcomes(results: Sequence[RowResult]) -> list[str]:
    return [result.outcome for result in results]


def state(folder: Path) -> tuple[list[tuple[str, str | None]], list[str], tuple[str, ...]]:
    """(answer, image name) of every edit that was made, answers of the active ones, and what `verify` finds."""
    with EditStore(folder / "edits.db", create=False) as store:
        made = [(edit.answer, edit.image_name) for edit in store.list(include_undone=True)]
        return made, [edit.answer for edit in store.list()], store.verify()


def test_every_row_has_its_edit_and_what_it_holds(add: Add, folder: Path) -> None:
    locality = [{"prompt": "How many legs?", "image": "b.png"}, {"prompt": "Who?"}]
    more = {"rephrasings": ["Which color?"], "locality": locality, "author": "ada", "note": "seen\ntwice", "id": "x"}
    results = add([row("teal", **more), row("red", "b.png")], author="bob", note="all")
    assert outcomes(results) == ["made"] * 2
    assert [(result.place, result.line, result.id) for result in results] == [("line 1", 1, "x"), ("line 2", 2, None)]
    with EditStore(folder / "edits.db") as store:
        first, second = (store.get(result.edit_id or "") for result in results)
    assert (first.prompt, first.answer, first.image_name) == (PROMPT, "teal", "a.png")
    assert first.image_sha256 == image_digest(open_image(folder / "a.png"))
    assert (first.author, first.note, second.author, second.note) == ("ada", "seen\ntwice", "bob", "all")
    assert first.evidence is not None and first.evidence.rephrasings[0].prompt == "Which color?"
    other = image_digest(open_image(folder / "b.png"))
    assert [(probe.prompt, probe.image_sha256) for probe in first.evidence.locality] == [
        *(("How many legs?", other), ("Who?", None))
    ]


def test_rows_that_have_their_edits_are_passed_over_without_their_images(
    add: Add, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [row("teal"), row("red", "b.png")]
    first = add(rows)
    before = state(folder)
    monkeypatch.setattr(edited_rows, "open_image", lambda image: pytest.fail(f"{image} was opened"))
    again = add(rows)
    assert outcomes(again) == ["there"] * 2 and state(folder) == before
    assert [result.edit_id for result in again] == [result.edit_id for result in first]


MIXED = [row("teal"), row("teal"), row("red"), row("teal"), row("red"), row("teal", "b.png"), row("teal")]
"""The same question with other answers in turn, with rows that stand twice."""


@pytest.mark.parametrize("most", range(len(MIXED)))
def test_the_later_answer_wins_wherever_a_run_stops(add: Add, folder: Path, most: int) -> None:
    assert outcomes(add(MIXED, most)) == ["made", "there", "made", "made", "made", "made", "made"][:most]
    outcome = outcomes(add(MIXED))
    assert outcome[most:] == ["made", "there", "made", "made", "made", "made", "made"][most:]
    assert {*outcome[:most]} <= {"there", "inactive"}
    made, active, problems = state(folder)
    assert [answer for answer, _ in made] == ["teal", "red", "teal", "red", "teal", "teal"] and problems == ()
    assert active == ["teal", "teal"]
    assert outcomes(add(MIXED)) == [*["inactive"] * 5, "there", "there"] and state(folder) == (made, active, problems)


def test_an_edit_that_is_there_is_no_rows_and_stays_so(
    add: Add, folder: Path, opened: Callable[[], EditedModel]
) -> None:
    """A row that an edit by hand made needless is remembered: later it must not win over the next one."""
    with opened() as model:
        edit_id = model.edit(folder / "a.png", f"{PROMPT} ", "teal", must_take=False).id
    rows = [row("teal"), row("red")]
    results = add(rows, 1)
    assert (results[0].outcome, results[0].edit_id) == ("there", edit_id)
    assert outcomes(add(rows)) == ["there", "made"] and outcomes(add(rows)) == ["inactive", "there"]
    assert state(folder)[1] == ["red"]
    assert outcomes(add([row("Red")])) == ["made"], "answers are compared letter by letter"


def test_an_undone_edit_is_not_made_again_nor_a_purged_one(add: Add, folder: Path) -> None:
    rows = [row("teal"), row("red", "b.png")]
    first, second = add(rows)
    with EditStore(folder / "edits.db") as store:
        store.undo(first.edit_id or "")
        store.purge(second.edit_id or "")
    assert outcomes(add(rows)) == ["inactive", "inactive"] and state(folder)[1] == []
    assert outcomes(add([{**rows[0], "id": "again"}])) == ["made"], "another id is another row"


def test_a_row_of_another_file_is_another_row(add: Add, folder: Path, opened: Callable[[], EditedModel]) -> None:
    """The same correction in a later file is made again, if another answer came in between."""
    add([row("teal")])
    for name, answer, outcome in (("may", "red", "made"), ("june", "teal", "made"), ("june", "teal", "there")):
        write_rows(folder / f"{name}.csv", [row(answer)])
        with opened() as model:
            results = make_edits(model, read_rows(EDIT_ROWS, folder / f"{name}.csv"), must_take=False)
            assert outcomes(list(results)) == [outcome]
    assert state(folder)[1] == ["teal"]


def test_other_pixels_in_the_same_file_are_another_question(add: Add, folder: Path) -> None:
    assert outcomes(add([row("teal")])) == ["made"]
    random_image(5).save(folder / "a.png")
    assert outcomes(add([row("teal")])) == ["made"] and state(folder)[1] == ["teal", "teal"]


def test_rejected_rows_do_not_stop_the_others_and_are_tried_again(add: Add, folder: Path) -> None:
    (folder / "text.png").write_text("no image")
    rows = [
        row("teal", "gone.png"),
        row("teal", "text.png"),
        row("te</s>al"),
        row(" "),
        {"prompt": PROMPT},
        row("teal", locality=[{"prompt": "?", "image": "gone.png"}]),
        row("red", "b.png"),
    ]
    results = add(rows)
    assert outcomes(results) == ["rejected"] * 6 + ["made"]
    reasons = [result.reason or "" for result in results]
    assert "gone.png' cannot be read (No such file" in reasons[0] and "is not an image" in reasons[1]
    assert "control token" in reasons[2] and "'answer' is blank" in reasons[3]
    assert "'answer' is missing" in reasons[4] and "gone.png' does not exist" in reasons[5]
    assert [result.line for result in results] == [1, 2, 3, 4, 5, 6, 7]
    random_image(1).save(folder / "gone.png")
    assert outcomes(add(rows)) == ["made", *["rejected"] * 4, "made", "there"]


def test_an_edit_that_does_not_take_is_rejected(tiny_llava: Backbone, folder: Path) -> None:
    with EditedModel.load(tiny_llava, editor="liveedit", edits=folder / "plain.db") as model:
        write_rows(folder / "rows.jsonl", [row("Bruvak 123456789"), row("a hat", None)])
        results = list(make_edits(model, read_rows(EDIT_ROWS, folder / "rows.jsonl")))
        assert len(model) == 0
    assert outcomes(results) == ["rejected"] * 2
    assert "does not take" in (results[0].reason or "") and "scope is 'image'" in (results[1].reason or "")


def test_what_edits_do_not_hold_is_named(tmp_path: Path) -> None:
    asked = {"prompt": "?", "ground_truth": "x"}
    full = {"prompt": "a", "target_new": "b", "image": "a.png", "image_rephrase": "b.png", "case": 3, "author": "ada"}
    full |= {
        "ground_truth": "c",
        "subject": "d",
        "locality_inputs": {"text": asked},
        "portability_inputs": {"hop": asked},
    }
    write_rows(tmp_path / "rows.json", [full, {"prompt": "a", "target_new": "b", "case": 4}])
    found = read_rows(EASYEDIT, tmp_path / "rows.json")
    assert found.unused == {
        "modal_generality": 1,
        "portability": 1,
        "the answer before": 1,
        "answers to locality questions": 1,
        "the subject": 1,
        "the key 'case'": 2,
    }
    assert found.rejected == ()


def test_what_cannot_be_read_is_a_rejected_row(tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text('[{"prompt": "a", "answer": "b"}, 3, {"prompt": "a", "author": 3')
    found = read_rows(EDIT_ROWS, tmp_path / "rows.json")
    assert [result.place for result in found.rejected] == ["row 1", "the file"] and len(found.rows) == 3
    assert "The 2 rows before it are whole" in (found.rejected[1].reason or "")
    (tmp_path / "rows.json").write_text('[{"prompt": "a", "answer": "b", "author": [3]}]')
    (rejected,) = read_rows(EDIT_ROWS, tmp_path / "rows.json").rows
    assert isinstance(rejected, RowResult) and "'author' holds a list" in (rejected.reason or "")


# -- killed ----------------------------------------------------------------------------------------------------

DYING = """
import os, signal, sys
from liveedit.cli import main
from liveedit.store import idempotency, store

moment, number, *arguments = sys.argv[1:]
place, name = (idempotency, "remember") if moment == "before the commit" else (store.EditStore, "add")
original, calls = getattr(place, name), []

def dying(*given, **more):
    result = original(*given, **more)
    calls.append(given)
    if len(calls) == int(number):
        os.kill(os.getpid(), signal.SIGKILL)
    return result

setattr(place, name, dying)
sys.exit(main(arguments))
"""


@pytest.mark.parametrize(("moment", "stored"), [("before the commit", 2), ("after the commit", 3)])
def test_a_killed_run_goes_on_where_it_was(
    run: Callable[..., tuple[int, str, str]], folder: Path, moment: str, stored: int
) -> None:
    """Killed in the transaction of the third edit, or right after it, before anybody knows of it."""
    rows = [row(answer, image) for answer in ("teal", "red") for image in ("a.png", "b.png")]
    write_rows(folder / "rows.csv", rows)
    command = ("edits", "add", folder / "rows.csv", "--edits", folder / "edits.db", "--no-must-take", "--json")
    given = [sys.executable, "-c", DYING, moment, "3", *map(str, command)]
    killed = subprocess.run(given, capture_output=True, text=True, timeout=170, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    made, _, problems = state(folder)
    assert (len(made), problems) == (stored, ())
    code, out, err = run(*command)
    assert code == 0, err
    found = json.loads(out)
    assert (found["made"], found["there"] + found["inactive"], found["rejected"]) == (4 - stored, stored, [])
    made, active, problems = state(folder)
    assert made == [("teal", "a.png"), ("teal", "b.png"), ("red", "a.png"), ("red", "b.png")]
    assert active == ["red", "red"] and problems == ()
