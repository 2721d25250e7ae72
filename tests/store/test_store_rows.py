"""Edits as rows, with their images as files; and what differs between two sets of edits."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from edit_examples import bound, make_edit, make_expert
from PIL import Image

from liveedit.datasets.easyedit import EASYEDIT
from liveedit.datasets.edit_rows import EDIT_ROWS
from liveedit.datasets.row_files import load_rows
from liveedit.datasets.zsre import ZSRE
from liveedit.errors import InvalidInputError, StoreError
from liveedit.images import image_digest, open_image
from liveedit.samples import Probe, Question
from liveedit.store.difference import ChangedQuestion, Difference, difference
from liveedit.store.evidence import Evidence, LocalityProbe, Rephrased
from liveedit.store.records import NewEdit
from liveedit.store.row_export import ExportedRows, export_rows
from liveedit.store.store import EditStore
from liveedit.store.thumbnails import image_png, thumbnail_png
from liveedit.testing import random_image


def add(
    store: EditStore, prompt: str, answer: str, image: Image.Image | None = None, keep: bool = False, **more: object
) -> str:
    edit = dataclasses.replace(make_edit(answer), prompt=prompt, **more)
    if image is None:
        return store.add(edit, make_expert()).id
    edit = dataclasses.replace(edit, image_sha256=image_digest(image), image_name="photo.jpg")
    kept = image_png(image) if keep else None
    return store.add(edit, make_expert(), thumbnail_png(image), image=kept).id


def asked(image: Image.Image | None) -> LocalityProbe:
    return LocalityProbe("Why?", None if image is None else image_digest(image), "so", "so", True)


def test_rows_have_what_edits_hold_and_images_what_was_kept(location: Path | str, tmp_path: Path) -> None:
    small, other = random_image(1), random_image(2)
    large, lost = random_image(3).resize((300, 200)), random_image(4).resize((200, 300))
    tried = Evidence(
        rephrasings=(Rephrased("Which?", "x", "red", True), Rephrased(" Whose\n", "x", "x", False)),
        locality=tuple(map(asked, (small, other, None, lost))),
    )
    with bound(location) as store:
        add(store, "What?\n", " red ", small, evidence=tried, author="ada", note='seen, "twice"')
        add(store, "What?", "green", other)
        add(store, "Where?", "here", other)
        add(store, "What?", "blue", large, keep=True)
        last = add(store, "What?", "black", lost)
        add(store, "Who?", "she")
        undone = add(store, "When?", "now")
        store.undo(undone)
        for name in ("rows.jsonl", "rows.csv", "rows.json"):
            done = export_rows(store, tmp_path / name, EDIT_ROWS)
            assert done == ExportedRows(6, 3, tmp_path / "rows-images", (last,), 1)
        ids = [edit.id for edit in store.list()]
    assert {file.name for file in (tmp_path / "rows-images").iterdir()} == {
        f"{image_digest(image)}.png" for image in (small, other, large)
    }
    cases = EDIT_ROWS.read(tmp_path / "rows.jsonl")
    assert cases == EDIT_ROWS.read(tmp_path / "rows.csv") == EDIT_ROWS.read(tmp_path / "rows.json")
    assert [case.id for case in cases] == ids
    assert [(case.edit.question.prompt, case.edit.answer) for case in cases[:2]] == [
        *(("What?\n", " red "), ("What?", "green"))
    ]
    images = [case.edit.question.image for case in cases]
    for image, file in zip((small, other, other, large), images[:4], strict=True):
        assert isinstance(file, Path) and image_digest(open_image(file)) == image_digest(image)
    assert images[4:] == [tmp_path / "photo.jpg", None]
    assert cases[0].probes == (
        Probe("text_generality", Question("Which?", images[0]), " red "),
        Probe("text_generality", Question(" Whose\n", images[0]), " red "),
        Probe("same_image_locality", Question("Why?", images[0])),
        Probe("modal_locality", Question("Why?", images[1])),
        Probe("text_locality", Question("Why?")),
    )
    first = next(load_rows(tmp_path / "rows.csv")).value
    assert (first["author"], first["note"]) == ("ada", 'seen, "twice"')


def test_requests_of_easyedit(path: Path, tmp_path: Path) -> None:
    image = random_image(1)
    with bound(path) as store:
        evidence = Evidence(rephrasings=(Rephrased("Which?", "x", "red", True),), locality=(asked(None),))
        edit_id = add(store, "What?", "red", image, evidence=evidence, answer_before="x", author="ada")
        export_rows(store, tmp_path / "requests.json", EASYEDIT)
    (row,) = json.loads((tmp_path / "requests.json").read_text())
    assert row == {
        "id": edit_id,
        "prompt": "What?",
        "target_new": "red",
        "ground_truth": "x",
        "image": f"requests-images/{image_digest(image)}.png",
        "rephrase_prompt": "Which?",
        "locality_inputs": {"text": {"prompt": "Why?", "ground_truth": "so"}},
        "author": "ada",
    }


def test_rows_at_a_revision(path: Path, tmp_path: Path) -> None:
    with bound(path) as store:
        first, second = add(store, "a", "1"), add(store, "b", "2")
        store.undo(first)
        export_rows(store, tmp_path / "then.jsonl", EDIT_ROWS, at=2)
        export_rows(store, tmp_path / "now.jsonl", EDIT_ROWS)
        with pytest.raises(InvalidInputError, match="no revision 9"):
            export_rows(store, tmp_path / "never.jsonl", EDIT_ROWS, at=9)
    assert [case.id for case in EDIT_ROWS.read(tmp_path / "then.jsonl")] == [first, second]
    assert [case.id for case in EDIT_ROWS.read(tmp_path / "now.jsonl")] == [second]
    assert not (tmp_path / "never.jsonl").exists() and not (tmp_path / "now-images").exists()


def test_what_is_not_written(path: Path, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    with bound(path) as store:
        add(store, "a", "1")
        with pytest.raises(InvalidInputError, match="'zsre' are only read"):
            export_rows(store, file, ZSRE)
        file.write_text("mine")
        with pytest.raises(StoreError, match="is there already"):
            export_rows(store, file, EDIT_ROWS)
    assert file.read_text() == "mine"


def test_no_edits(path: Path, tmp_path: Path) -> None:
    with bound(path) as store:
        export_rows(store, tmp_path / "rows.csv", EDIT_ROWS)
    assert (tmp_path / "rows.csv").read_text() == "\n"


# -- differences -----------------------------------------------------------------------------------------------


def test_questions_are_compared_by_what_they_ask(path: Path, tmp_path: Path) -> None:
    with bound(path) as store, bound(tmp_path / "other.db") as other:
        for prompt, answer, image in (("What?", "1", 1), ("Who?", "2", None), ("Same.", "Red", 1), ("Gone", "3", None)):
            add(store, prompt, answer, image and random_image(image))
        for prompt, answer, image in (("what", "9", 1), ("What?", "1", 2), ("same", "Red", 1), ("WHO", "two", None)):
            add(other, prompt, answer, image and random_image(image))
        add(other, "who", "2")
        found = difference(store.list(), other.list())
        assert difference(store.list(), store.list()) == Difference((), (), ())
    first, second = (image_digest(random_image(seed)) for seed in (1, 2))
    assert found == Difference(
        added=(ChangedQuestion("What?", "photo.jpg", second, (), ("1",)),),
        removed=(ChangedQuestion("Gone", None, None, ("3",), ()),),
        changed=(
            ChangedQuestion("what", "photo.jpg", first, ("1",), ("9",)),
            ChangedQuestion("who", None, None, ("2",), ("two", "2")),
        ),
    )


def test_revisions_are_compared(path: Path) -> None:
    with bound(path) as store:
        first = add(store, "a", "1")
        store.add(NewEdit(prompt="a", answer="2", editor="liveedit"), make_expert(), supersedes=[first])
        (changed,) = difference(store.list(at=1), store.list(at=2)).changed
    assert (changed.before, changed.after) == (("1",), ("2",))
