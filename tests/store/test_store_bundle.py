"""Export and import: one file, all or nothing, of the same model, with the same ids."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edit_examples import BACKBONE, EDITOR, bound, make_edit, make_expert
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import load_file, save, save_file

from liveedit.errors import InvalidInputError, StoreError
from liveedit.images import image_digest
from liveedit.store.evidence import EarlierEdit, Evidence
from liveedit.store.store import EditStore, NewEdit, thumbnail_png

IMAGE = Image.new("RGB", (40, 30), "green")


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return tmp_path / "edits.safetensors"


def fill(store: EditStore) -> list[str]:
    """Five edits: active, superseded, superseding, purged, undone and redone."""
    has_image = NewEdit(
        **{**vars(make_edit("1")), "image_sha256": image_digest(IMAGE), "author": "ada", "note": "by hand"}
    )
    png = thumbnail_png(IMAGE)
    ids = [store.add(has_image, make_expert(1), png, image=png).id]
    ids += [store.add(make_edit(str(seed)), make_expert(seed)).id for seed in (2, 3)]
    ids.append(store.add(make_edit("4"), make_expert(4), supersedes=[ids[1]]).id)
    store.purge(ids[2])
    ids.append(store.add(make_edit("5"), make_expert(5)).id)
    store.undo(ids[4], author="bob")
    store.redo(ids[4])
    return ids


def everything(store: EditStore) -> object:
    edits = store.list(include_undone=True)
    experts = {edit.id: edit.expert for edit in edits if edit.purged_at is None}
    files = [(store.thumbnail(edit.id), store.image(edit.id)) for edit in edits]
    past = [[edit_id for edit_id, _ in store.active_experts(at)] for at in range(store.latest_revision() + 1)]
    return edits, experts, files, past, store.history(), store.binding


def test_a_whole_bundle_makes_the_same_store_again(location: Path | str, bundle: Path, tmp_path: Path) -> None:
    with bound(location) as opened, EditStore(tmp_path / "other.db") as other:
        fill(opened)
        header = opened.export_bundle(bundle)
        done = other.import_bundle(bundle, on_conflict="keep")
        assert len(done.added) == 4 and header.revision == 8
        assert everything(other) == everything(opened)
        assert other.verify() == ()
        again = other.import_bundle(bundle)
        assert (again.added, set(again.already_there), again.purged_here) == ((), set(done.added), ())
        assert everything(other) == everything(opened)


def test_active_edits_come_into_another_store_as_new_changes(
    location: Path | str, bundle: Path, tmp_path: Path
) -> None:
    with bound(location) as opened, bound(tmp_path / "other.db") as other:
        ids = fill(opened)
        own = other.add(make_edit("own"), make_expert(9)).id
        assert not opened.export_bundle(bundle, whole=False).whole
        assert other.import_bundle(bundle, on_conflict="keep").added == (ids[0], ids[3], ids[4])
        assert [edit.id for edit in other.list()] == [own, ids[0], ids[3], ids[4]]
        assert [edit.id for edit in other.list(at=1)] == [own]
        moved, first = other.get(ids[0]), opened.get(ids[0])
        assert (moved.created_at, moved.author, moved.note) == (first.created_at, "ada", "by hand")
        assert moved.expert == make_expert(1) and other.image(ids[0]) == thumbnail_png(IMAGE)
        assert other.verify() == ()


def test_undone_edits_of_a_whole_bundle_stay_undone_in_another_store(path: Path, bundle: Path, tmp_path: Path) -> None:
    with bound(path) as opened, bound(tmp_path / "other.db") as other:
        ids = fill(opened)
        other.add(make_edit("own"), make_expert(9))
        opened.export_bundle(bundle)
        other.import_bundle(bundle, on_conflict="keep")
        assert not other.get(ids[1]).is_active and ids[2] not in {edit.id for edit in other.list(include_undone=True)}
        assert other.redo(ids[1]).is_active
        assert other.verify() == ()


def test_what_was_purged_here_does_not_come_back(location: Path | str, bundle: Path) -> None:
    with bound(location) as opened:
        ids = fill(opened)
        opened.export_bundle(bundle)
        opened.purge(ids[0])
        before = everything(opened)
        assert opened.import_bundle(bundle).purged_here == (ids[0],)
        assert everything(opened) == before


def test_an_edit_that_lost_what_it_quoted_is_still_the_same(path: Path, bundle: Path) -> None:
    with bound(path) as opened:
        gone = opened.add(make_edit(), make_expert(0)).id
        quoted = Evidence(earlier_edits=(EarlierEdit(gone, "before", "after", False),))
        kept = opened.add(dataclasses.replace(make_edit(), evidence=quoted), make_expert(1)).id
        opened.export_bundle(bundle)
        opened.purge(gone)
        found = opened.import_bundle(bundle)
        assert (found.added, found.already_there, found.purged_here) == ((), (kept,), (gone,))


def test_another_model_is_refused_with_both_digests(path: Path, bundle: Path, tmp_path: Path) -> None:
    with bound(path) as opened, EditStore(tmp_path / "other.db") as other:
        fill(opened)
        opened.export_bundle(bundle)
        other.bind("c" * 64, EDITOR, backbone="blip2", editor="liveedit")
        with pytest.raises(StoreError, match=f"{BACKBONE[:12]}.*{'c' * 12}.*Nothing was imported"):
            other.import_bundle(bundle)
        other.add(make_edit(), make_expert())
    with EditStore(tmp_path / "other.db") as other:
        with pytest.raises(StoreError, match=f"{BACKBONE[:12]}.*{'c' * 12}.*Nothing was imported"):
            other.import_bundle(bundle)
        assert len(other) == 1


def test_an_id_with_other_content_stops_the_import(
    path: Path, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = ["00000001", "00000002", "00000002"]
    monkeypatch.setattr("liveedit.store.store.secrets.token_hex", lambda _: given.pop(0))
    with bound(path) as opened, bound(tmp_path / "other.db") as other:
        for seed in (1, 2):
            opened.add(make_edit(str(seed)), make_expert(seed))
        other.add(make_edit("2"), make_expert(7))
        opened.export_bundle(bundle)
        before = everything(other)
        with pytest.raises(StoreError, match=r"The edit '00000002' .* other content .* Nothing was imported"):
            other.import_bundle(bundle)
        assert everything(other) == before, "the first edit was taken back as well"


Tensors = dict[str, np.ndarray]


def rewritten(bundle: Path, change: Callable[[dict[str, str], Tensors], None]) -> None:
    with safe_open(bundle, framework="numpy") as reader:
        header = dict(reader.metadata())
    tensors = {name: part.copy() for name, part in load_file(bundle).items()}
    change(header, tensors)
    save_file(tensors, bundle, header)


def bytes_of(text: bytes) -> np.ndarray:
    return np.frombuffer(text, np.uint8).copy()


def forge(header: dict[str, str], tensors: Tensors, change: Callable[[dict[str, Any]], None]) -> None:
    """Other records, with the digest that they should have."""
    records = json.loads(tensors["records"].tobytes())
    change(records)
    text = json.dumps(records).encode()
    tensors["records"], header["contents_sha256"] = bytes_of(text), hashlib.sha256(text).hexdigest()


def spoil_expert(header: dict[str, str], tensors: Tensors) -> None:
    tensors["blobs"][len(make_expert()) - 1] ^= 1


def drop_blobs(header: dict[str, str], tensors: Tensors) -> None:
    del tensors["blobs"]


def cut_blobs(header: dict[str, str], tensors: Tensors) -> None:
    tensors["blobs"] = tensors["blobs"][:-1].copy()


def swap_experts(header: dict[str, str], tensors: Tensors) -> None:
    """The last two, with the digests that go with the bytes: only the edits still name the right ones."""
    size = len(make_expert())
    blobs = tensors["blobs"]
    blobs[-2 * size :] = np.concatenate([blobs[-size:], blobs[-2 * size : -size]])

    def swap(records: dict[str, Any]) -> None:
        first, second = list(records["blobs"])[-2:]
        records["blobs"] |= {first: records["blobs"][second], second: records["blobs"][first]}

    forge(header, tensors, swap)


def no_expert(header: dict[str, str], tensors: Tensors) -> None:
    forge(header, tensors, lambda records: records["blobs"].pop(records["edits"][-1]["id"]))


def other_type(header: dict[str, str], tensors: Tensors) -> None:
    """The last expert, of another type and with digests to go with it."""
    data = save({"u": np.zeros(3)})
    tensors["blobs"] = np.concatenate([tensors["blobs"][: -len(make_expert())], bytes_of(data)])

    def change(records: dict[str, Any]) -> None:
        edit, sha256 = records["edits"][-1], hashlib.sha256(data).hexdigest()
        edit["expert_digest"], records["blobs"][edit["id"]]["expert"] = sha256, [len(data), sha256]

    forge(header, tensors, change)


def spoil_image(header: dict[str, str], tensors: Tensors) -> None:
    image = thumbnail_png(IMAGE)
    tensors["blobs"][tensors["blobs"].tobytes().rindex(image) + len(image) // 2] ^= 1


def spoil_text(header: dict[str, str], tensors: Tensors) -> None:
    tensors["records"] = bytes_of(tensors["records"].tobytes().replace(b"by hand", b"by head"))


def drop_records(header: dict[str, str], tensors: Tensors) -> None:
    del tensors["records"]


def other_records(header: dict[str, str], tensors: Tensors) -> None:
    forge(header, tensors, lambda records: records.update(more=1))


def negative_length(header: dict[str, str], tensors: Tensors) -> None:
    def change(records: dict[str, Any]) -> None:
        records["blobs"][records["edits"][0]["id"]]["expert"][0] = -5

    forge(header, tensors, change)


def earlier_format(header: dict[str, str], tensors: Tensors) -> None:
    header["format"] = "liveedit-edits-2"


def no_format(header: dict[str, str], tensors: Tensors) -> None:
    del header["format"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (spoil_expert, "the expert of edit .* does not have its digest"),
        (drop_blobs, "the expert of edit .* cannot be read"),
        (cut_blobs, "the expert of edit .* (cannot be read|does not have its digest)"),
        (swap_experts, "the expert of edit .* does not have the digest that the edit names"),
        (no_expert, "has no expert"),
        (other_type, "cannot be used: its u is float64, not float32"),
        (spoil_image, "the (image|thumbnail) of edit .* does not have its digest"),
        (spoil_text, "its records do not have the digest"),
        (drop_records, "its records do not have the digest"),
        (other_records, "more"),
        (negative_length, "is damaged"),
        (
            earlier_format,
            "cannot be read: its format is 'liveedit-edits-2'; .* reads 'liveedit-edits-3'.*Make",
        ),
        (no_format, "cannot be read: its format is None"),
    ],
)
def test_a_damaged_bundle_leaves_nothing(
    path: Path, bundle: Path, tmp_path: Path, change: Callable[[dict[str, str], Tensors], None], message: str
) -> None:
    with bound(path) as opened, EditStore(tmp_path / "other.db") as other:
        fill(opened)
        opened.export_bundle(bundle)
        rewritten(bundle, change)
        with pytest.raises(StoreError, match=message):
            other.import_bundle(bundle)
        assert (len(other), other.history(), other.binding) == (0, (), None)
    assert not (tmp_path / "other.db").exists()


def test_forged_records_that_contradict_themselves_are_refused(path: Path, bundle: Path, tmp_path: Path) -> None:
    with bound(path) as opened, EditStore(tmp_path / "other.db") as other:
        fill(opened)
        opened.export_bundle(bundle)
        rewritten(bundle, lambda header, tensors: forge(header, tensors, lambda records: records["intervals"].pop()))
        with pytest.raises(StoreError, match="does not agree with itself"):
            other.import_bundle(bundle, on_conflict="keep")
        assert len(other) == 0


def test_experts_of_several_shapes_and_none_at_all(path: Path, bundle: Path, tmp_path: Path) -> None:
    with bound(path) as opened, EditStore(tmp_path / "other.db") as other:
        for seed, rank in enumerate((2, 3, 2, 1, 3)):
            opened.add(make_edit(str(seed)), make_expert(seed, rank))
        opened.export_bundle(bundle)
        other.import_bundle(bundle, on_conflict="keep")
        assert everything(other) == everything(opened)
        for edit in opened.list():
            opened.purge(edit.id)
        opened.export_bundle(tmp_path / "empty", whole=False)
        opened.export_bundle(tmp_path / "purged")
    for name, count in {"empty": 0, "purged": 5}.items():
        with EditStore(tmp_path / f"{name}.db") as other:
            assert other.import_bundle(tmp_path / name).added == ()
            assert len(other.list(include_undone=True)) == count


def test_the_header_does_not_grow_with_the_edits(path: Path, bundle: Path) -> None:
    """safetensors reads headers of at most 100 MB."""
    with bound(path) as opened:
        for seed in range(40):
            opened.add(make_edit(str(seed)), make_expert(seed))
        opened.export_bundle(bundle)
    assert int.from_bytes(bundle.read_bytes()[:8], "little") < 1000
    tensors = load_file(bundle)
    assert tensors.keys() == {"blobs", "records"}
    assert tensors["blobs"].tobytes() == b"".join(make_expert(seed) for seed in range(40))


def test_an_edit_without_an_expert_is_not_exported_as_if_it_had_one(path: Path, bundle: Path) -> None:
    with bound(path) as opened:
        edit_id = opened.add(make_edit(), make_expert()).id
    with sqlite3.connect(path) as raw:
        raw.execute("DELETE FROM blobs")
    raw.close()
    with bound(path) as opened, pytest.raises(StoreError, match=f"The edit '{edit_id}' has no expert"):
        opened.export_bundle(bundle)
    assert not bundle.exists()


def test_files_that_are_no_bundle(path: Path, bundle: Path, tmp_path: Path) -> None:
    with bound(path) as opened:
        opened.add(make_edit(), make_expert())
        opened.export_bundle(bundle)
        with pytest.raises(StoreError, match="is there already"):
            opened.export_bundle(bundle)
        with pytest.raises(StoreError, match=r"could not be written .*Nothing was left"):
            opened.export_bundle(tmp_path / "missing" / "x.safetensors")
        (tmp_path / "text").write_text("hello")
        with pytest.raises(StoreError, match="not safetensors"):
            opened.import_bundle(tmp_path / "text")
        with pytest.raises(StoreError, match="no bundle"):
            opened.import_bundle(tmp_path / "absent")
        assert {file.name for file in tmp_path.iterdir()} >= {"edits.safetensors", "text"}
        assert not [file for file in tmp_path.iterdir() if ".tmp" in file.name or "missing" in file.name]


@pytest.mark.parametrize("room", [0, 3000, 20_000, 200_000])
def test_a_bundle_that_there_is_no_room_for_leaves_nothing(path: Path, bundle: Path, room: int) -> None:
    resource = pytest.importorskip("resource")
    with bound(path) as opened:
        for seed in range(200):
            opened.add(make_edit(str(seed)), make_expert(seed, rank=30))
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
        try:
            with pytest.raises(StoreError, match=r"could not be written .*too large.*Nothing was left"):
                opened.export_bundle(bundle)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert {file.name for file in path.parent.iterdir()} <= {path.name, f"{path.name}-wal", f"{path.name}-shm"}
        opened.export_bundle(bundle)


def test_an_image_of_another_edit_is_refused(path: Path) -> None:
    edit = dataclasses.replace(make_edit(), image_sha256="0" * 64)
    with bound(path) as opened:
        with pytest.raises(InvalidInputError, match="not the one that the edit was made with"):
            opened.add(edit, make_expert(), image=thumbnail_png(IMAGE))
        assert len(opened) == 0
