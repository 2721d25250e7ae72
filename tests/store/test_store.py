"""The edits file: what goes in comes out, undone or not, by any beginning of its id."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import re
import sqlite3
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from edit_examples import BACKBONE, EDITOR, bound, make_edit, make_expert
from PIL import Image
from safetensors.numpy import save

from liveedit.errors import ImageError, InvalidInputError, NotFoundError, StoreError
from liveedit.store import store
from liveedit.store.store import EditStore, NewEdit, StoredEdit, thumbnail_png
from liveedit.store.validation import expert_store_bytes


@pytest.fixture
def ids(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Ids to be given out next, in this order."""
    given: list[str] = []
    monkeypatch.setattr(store.secrets, "token_hex", lambda _: given.pop(0))
    return given


# Round trip


def test_every_field_comes_back_after_closing_and_opening(location: Path | str) -> None:
    edit = NewEdit(
        prompt="Was für ein Auto ist das?\n\x01🚗",
        answer="ein roter Käfer",
        editor="liveedit",
        answer_before="a blue van",
        answer_after="",
        milliseconds=41.25,
        refine_steps=3,
        subject="car",
        relation="make",
        image_sha256="0f" * 32,
        image_name="my car.png",
    )
    picture = thumbnail_png(Image.new("RGB", (640, 480), "red"))
    with bound(location) as opened:
        added = opened.add(edit, make_expert(1), picture)
    with EditStore(location) as opened:
        found = opened.get(added.id)
        assert found == added
        assert found.thumbnail == picture
        assert found.expert == make_expert(1)
    assert {name: getattr(found, name) for name in vars(edit)} == vars(edit)
    assert re.fullmatch(r"[0-9a-f]{8}", found.id)
    assert found.number == 1
    assert found.undone_at is None
    assert found.is_active
    made = datetime.fromisoformat(found.created_at)
    assert made.utcoffset() == timedelta(0)
    assert abs(datetime.now(UTC) - made) < timedelta(minutes=5)


def test_experts_of_any_parts_come_back_to_the_bit(location: Path | str) -> None:
    odd = np.array([-0.0, 1e-45, np.finfo(np.float32).max, 1 / 3], np.float32)
    expert = save({"any": odd, "names": odd.reshape(2, 2)})
    with bound(location) as opened:
        added = opened.add(make_edit(), expert)
    with EditStore(location) as opened:
        assert opened.expert(added.id) == expert
        assert opened.get(added.id).expert_digest == hashlib.sha256(expert).hexdigest()
        assert opened.verify() == ()


def test_the_size_of_an_expert_is_that_of_its_tensors() -> None:
    assert expert_store_bytes(make_expert(rank=5)) == 4 * (2 * 5 * 3 + 2 * 4)


def test_numbers_of_numpy_are_stored_as_numbers(location: Path | str) -> None:
    edit = dataclasses.replace(make_edit(), milliseconds=np.float32(1.5), refine_steps=np.int64(4))
    with bound(location) as opened:
        found = opened.add(edit, make_expert())
    assert (found.milliseconds, found.refine_steps) == (1.5, 4)
    assert (type(found.milliseconds), type(found.refine_steps)) == (float, int)


def test_stored_edits_can_be_turned_into_json_and_outlive_the_file(location: Path | str) -> None:
    with bound(location) as opened:
        edit = opened.add(make_edit(), make_expert())
    assert dataclasses.asdict(edit)["answer"] == "red"
    with pytest.raises(StoreError, match="is closed"):
        _ = edit.expert
    with pytest.raises(StoreError, match="copy without its file"):
        _ = dataclasses.replace(edit, answer="blue").expert


def test_an_edit_without_a_picture_has_no_thumbnail(location: Path | str) -> None:
    with bound(location) as opened:
        assert opened.add(make_edit(), make_expert()).thumbnail is None


def test_thumbnails_are_small_and_keep_their_shape() -> None:
    with Image.open(io.BytesIO(thumbnail_png(Image.new("RGBA", (1000, 500), "red")))) as small:
        assert (small.format, small.size, small.mode, small.info) == ("PNG", (128, 64), "RGB", {})
    with Image.open(io.BytesIO(thumbnail_png(Image.new("L", (7, 5))))) as tiny:
        assert tiny.size == (7, 5)


def test_stored_edits_compare_by_what_they_say(location: Path | str) -> None:
    with bound(location) as opened:
        edit = opened.add(make_edit(), make_expert())
        assert opened.get(edit.id) == edit
        assert isinstance(edit, StoredEdit)
        assert "_read" not in repr(edit)


# What is refused


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt": ""}, "prompt is empty"),
        ({"answer": ""}, "answer is empty"),
        ({"answer": "\ud800"}, "answer holds half of a surrogate pair"),
        ({"milliseconds": float("nan")}, "took nan milliseconds"),
        ({"refine_steps": -1}, "took -1 refine steps"),
        ({"image_sha256": "abc"}, "64 lower-case hexadecimal digits"),
        ({"image_name": "/home/me/car.png"}, "file name only"),
        ({"image_name": r"C:\me\car.png"}, "file name only"),
    ],
)
def test_edits_that_cannot_be_stored(location: Path | str, change: dict[str, object], message: str) -> None:
    with bound(location) as opened:
        with pytest.raises(InvalidInputError, match=message):
            opened.add(dataclasses.replace(make_edit(), **change), make_expert())
        assert (len(opened), opened.history()) == (0, ())


@pytest.mark.parametrize(
    ("expert", "message"),
    [
        (b"", "The expert of 0 bytes cannot be stored: it is not safetensors"),
        (b"pickle?", "not safetensors"),
        (save({}), "it has no tensors"),
        (save({"u": np.zeros((2, 3))}), "its u is float64, not float32"),
        (save({"u": np.full((2, 3), np.nan, np.float32)}), "its u holds NaN or infinity"),
        (save({"u": np.full((2, 3), -np.inf, np.float32)}), "its u holds NaN or infinity"),
    ],
)
def test_experts_that_cannot_be_stored(location: Path | str, expert: bytes, message: str) -> None:
    with bound(location) as opened:
        with pytest.raises(InvalidInputError, match=message):
            opened.add(make_edit(), expert)
        assert len(opened) == 0


def test_thumbnails_that_cannot_be_stored(location: Path | str) -> None:
    large, jpeg = io.BytesIO(), io.BytesIO()
    Image.new("RGB", (129, 4)).save(large, format="PNG")
    Image.new("RGB", (4, 4)).save(jpeg, format="JPEG")
    with bound(location) as opened:
        for data, message in [
            (large.getvalue(), "129 x 4"),
            (jpeg.getvalue(), "not a PNG"),
            (b"", "not a PNG"),
        ]:
            with pytest.raises(ImageError, match=message):
                opened.add(make_edit(), make_expert(), data)
        assert len(opened) == 0


# Undo, history, listing


def test_undo_keeps_the_edit_and_its_history(location: Path | str) -> None:
    with bound(location) as opened:
        first, second = (opened.add(make_edit(), make_expert(seed)) for seed in range(2))
        undone = opened.undo(first.id)
        assert undone.undone_at is not None
        assert not undone.is_active
        assert undone.revision_removed == 3
        assert dataclasses.replace(undone, undone_at=None, revision_removed=None) == first
    with EditStore(location) as opened:
        assert len(opened) == 1
        assert opened.list() == (second,)
        assert opened.list(include_undone=True) == (undone, second)
        assert [edit_id for edit_id, _ in opened.active_experts()] == [second.id]
        assert opened.get(first.id).expert == make_expert(0)
        events = opened.history()
        assert [(event.revision, event.kind, event.edit_id) for event in events] == [
            (1, "edit", first.id),
            (2, "edit", second.id),
            (3, "undo", first.id),
        ]
        assert [event.at for event in events] == [first.created_at, second.created_at, undone.undone_at]
        assert opened.verify() == ()


def test_undoing_twice_says_when_it_was_undone(location: Path | str) -> None:
    with bound(location) as opened:
        undone = opened.undo(opened.add(make_edit(), make_expert()).id)
        with pytest.raises(NotFoundError, match=f"already undone, at {re.escape(str(undone.undone_at))}"):
            opened.undo(undone.id)
        assert opened.get(undone.id) == undone
        assert len(opened.history()) == 2


def test_a_file_keeps_zero_bytes_in_texts(path: Path) -> None:
    with bound(path) as opened:
        assert opened.add(make_edit("a\x00b"), make_expert()).answer == "a\x00b"


def test_the_history_cannot_be_rewritten(path: Path) -> None:
    with bound(path) as opened:
        opened.add(make_edit(), make_expert())
    with closing(sqlite3.connect(path)) as connection:
        for statement in ("UPDATE events SET kind = 'undo'", "UPDATE events SET note = 'other'", "DELETE FROM events"):
            with pytest.raises(sqlite3.IntegrityError, match="only appended to"):
                connection.execute(statement)


def test_numbers_keep_rising(location: Path | str) -> None:
    with bound(location) as opened:
        opened.undo(opened.add(make_edit(), make_expert()).id)
    with bound(location) as opened:
        second = opened.add(make_edit(), make_expert())
        assert second.number == 2
        (first,) = (edit.id for edit in opened.list(include_undone=True) if edit.id != second.id)
        assert opened.numbers([second.id, first, "0" * 8, "unknown"]) == {first: 1, second.id: 2}
        assert opened.numbers([]) == {}


def test_active_experts_are_settled_at_the_call(location: Path | str) -> None:
    with bound(location) as opened:
        added = [opened.add(make_edit(), make_expert(seed)).id for seed in range(3)]
        experts = opened.active_experts()
        opened.undo(added[2])
        opened.add(make_edit(), make_expert(3))
        assert [edit_id for edit_id, _ in experts] == added


def test_an_empty_store_is_still_a_store(location: Path | str) -> None:
    with EditStore(location) as opened:
        assert (len(opened), opened.list(), opened.history(), opened.verify()) == (0, (), (), ())
        assert opened
        assert opened.binding is None


# Ids


def test_an_edit_is_found_by_the_beginning_of_its_id(location: Path | str, ids: list[str]) -> None:
    ids += ["abc00000", "abd00000", "ff000000"]
    with bound(location) as opened:
        first, _, third = (opened.add(make_edit(), make_expert(seed)) for seed in range(3))
        assert opened.get("abc") == opened.get(" ABC0 ") == first
        assert opened.get("f") == third
        assert opened.expert("abc") == make_expert(0)
        assert opened.undo("ff").id == third.id


def test_a_shared_beginning_is_refused_with_the_ids(location: Path | str, ids: list[str]) -> None:
    ids += ["abc00000", "abd00000"]
    with bound(location) as opened:
        for _ in range(2):
            opened.add(make_edit(), make_expert())
        for call in (opened.get, opened.undo, opened.expert):
            with pytest.raises(InvalidInputError, match="2 edits begin with 'ab': abc00000, abd00000"):
                call("ab")
        assert len(opened) == 2


def test_an_undone_edit_still_counts_as_sharing_a_beginning(location: Path | str, ids: list[str]) -> None:
    ids += ["abc00000", "abd00000"]
    with bound(location) as opened:
        opened.undo(opened.add(make_edit(), make_expert()).id)
        opened.add(make_edit(), make_expert())
        with pytest.raises(InvalidInputError, match="2 edits begin with 'ab'"):
            opened.undo("ab")


def test_unknown_ids_bring_suggestions(location: Path | str, ids: list[str]) -> None:
    with bound(location) as opened:
        with pytest.raises(NotFoundError, match="holds no edits yet"):
            opened.get("abc")
        ids.append("abc01234")
        opened.add(make_edit(), make_expert())
        for call in (opened.get, opened.undo, opened.expert, opened.thumbnail):
            with pytest.raises(NotFoundError, match=r"no edit 'abc10234'\. Did you mean abc01234\?"):
                call("abc10234")
        for unknown in ("999", "%", "________", "ä", "\ud800", "abc01234f"):
            with pytest.raises(NotFoundError, match="no edit"):
                opened.get(unknown)
        with pytest.raises(InvalidInputError, match="is empty"):
            opened.get(" ")


def test_an_id_that_is_taken_is_drawn_again(location: Path | str, ids: list[str]) -> None:
    ids += ["aaaaaaaa", "aaaaaaaa", "bbbbbbbb"]
    with bound(location) as opened:
        assert [opened.add(make_edit(), make_expert()).id for _ in range(2)] == ["aaaaaaaa", "bbbbbbbb"]


# One backbone, one editor


def test_a_file_belongs_to_one_backbone_and_one_editor(location: Path | str) -> None:
    with bound(location) as opened:
        opened.add(make_edit(), make_expert())
    with EditStore(location) as opened:
        opened.bind(BACKBONE, EDITOR, backbone="another name of it", editor="liveedit")
        assert opened.binding == store.Binding(BACKBONE, EDITOR, "tiny-llava", "liveedit")
    for backbone, editor in [("c" * 64, EDITOR), (BACKBONE, "f" * 64)]:
        message = "belongs to the model 'tiny-llava' .* loaded is the model 'blip2' .* Load that model"
        with EditStore(location) as opened:
            with pytest.raises(StoreError, match=message):
                opened.bind(backbone, editor, backbone="blip2", editor="liveedit")
            with pytest.raises(StoreError, match="Call `bind`"):
                opened.add(make_edit(), make_expert())


def test_another_backbone_is_refused_whatever_its_editor(location: Path | str) -> None:
    with bound(location) as opened:
        opened.check_backbone("c" * 64, "blip2")  # It belongs to none yet.
        opened.add(make_edit(), make_expert())
        opened.check_backbone(BACKBONE, "another name of it")
        with pytest.raises(StoreError, match=r"belongs to the model 'tiny-llava' .* loaded is the model 'blip2'"):
            opened.check_backbone("c" * 64, "blip2")


def test_nothing_is_added_before_the_model_is_named(location: Path | str) -> None:
    with EditStore(location) as opened:
        with pytest.raises(StoreError, match="Call `bind`"):
            opened.add(make_edit(), make_expert())
        with pytest.raises(InvalidInputError, match="both digests"):
            opened.bind("", EDITOR, backbone="x", editor="y")
