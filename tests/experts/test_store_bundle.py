"""Export and import: one file, all or nothing, of the same model, with the same ids."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from edit_examples import BACKBONE, EDITOR, bits, bound, make_edit, make_expert
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from liveedit.errors import InvalidInputError, StoreError
from liveedit.experts.store import EditStore, NewEdit, thumbnail_png
from liveedit.images import image_digest

PICTURE = Image.new("RGB", (40, 30), "green")


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return tmp_path / "edits.safetensors"


def fill(store: EditStore) -> list[str]:
    """Five edits: in force, superseded, superseding, purged, undone and redone."""
    pictured = NewEdit(
        **{**vars(make_edit("1")), "image_sha256": image_digest(PICTURE), "author": "ada", "note": "by hand"}
    )
    png = thumbnail_png(PICTURE)
    ids = [store.add(pictured, make_expert(1), png, picture=png).id]
    ids += [store.add(make_edit(str(seed)), make_expert(seed)).id for seed in (2, 3)]
    ids.append(store.add(make_edit("4"), make_expert(4), supersedes=[ids[1]]).id)
    store.purge(ids[2])
    ids.append(store.add(make_edit("5"), make_expert(5)).id)
    store.undo(ids[4], author="bob")
    store.redo(ids[4])
    return ids


def everything(store: EditStore) -> object:
    edits = store.list(include_undone=True)
    experts = {edit.id: bits(edit.expert) for edit in edits if edit.purged_at is None}
    files = [(store.thumbnail(edit.id), store.picture(edit.id)) for edit in edits]
    past = [[edit_id for edit_id, _ in store.active_experts(at)] for at in range(store.latest_revision() + 1)]
    return edits, experts, files, past, store.history(), store.binding


def test_a_whole_bundle_makes_the_same_store_again(location: Path | str, bundle: Path, tmp_path: Path) -> None:
    with bound(location) as opened, EditStore(tmp_path / "other.db") as other:
        fill(opened)
        header = opened.export_bundle(bundle)
        done = other.import_bundle(bundle)
        assert len(done.added) == 4 and header.revision == 8
        assert everything(other) == everything(opened)
        assert other.verify() == ()
        again = other.import_bundle(bundle)
        assert (again.added, set(again.already_there), again.purged_here) == ((), set(done.added), ())
        assert everything(other) == everything(opened)


def test_edits_in_force_come_into_another_store_as_new_changes(
    location: Path | str, bundle: Path, tmp_path: Path
) -> None:
    with bound(location) as opened, bound(tmp_path / "other.db") as other:
        ids = fill(opened)
        own = other.add(make_edit("own"), make_expert(9)).id
        assert not opened.export_bundle(bundle, whole=False).whole
        assert other.import_bundle(bundle).added == (ids[0], ids[3], ids[4])
        assert [edit.id for edit in other.list()] == [own, ids[0], ids[3], ids[4]]
        assert [edit.id for edit in other.list(at=1)] == [own]
        moved, first = other.get(ids[0]), opened.get(ids[0])
        assert (moved.created_at, moved.author, moved.note) == (first.created_at, "ada", "by hand")
        assert bits(moved.expert) == bits(make_expert(1)) and other.picture(ids[0]) == thumbnail_png(PICTURE)
        assert other.verify() == ()


def test_undone_edits_of_a_whole_bundle_stay_undone_in_another_store(path: Path, bundle: Path, tmp_path: Path) -> None:
    with bound(path) as opened, bound(tmp_path / "other.db") as other:
        ids = fill(opened)
        other.add(make_edit("own"), make_expert(9))
        opened.export_bundle(bundle)
        other.import_bundle(bundle)
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
    monkeypatch.setattr("liveedit.experts.store.secrets.token_hex", lambda _: given.pop(0))
    with bound(path) as opened, bound(tmp_path / "other.db") as other:
        for seed in (1, 2):
            opened.add(make_edit(str(seed)), make_expert(seed))
        other.add(make_edit("2"), make_expert(7))
        opened.export_bundle(bundle)
        before = everything(other)
        with pytest.raises(StoreError, match=r"The edit '00000002' .* other content .* Nothing was imported"):
            other.import_bundle(bundle)
        assert everything(other) == before, "the first edit was taken back as well"


def rewritten(bundle: Path, change: Callable[[dict[str, str], dict[str, object]], None]) -> None:
    with safe_open(bundle, framework="pt") as reader:
        header = dict(reader.metadata())
    tensors: dict[str, object] = dict(load_file(bundle))
    change(header, tensors)
    save_file(tensors, bundle, header)  # type: ignore[arg-type]


def spoil_expert(header: dict[str, str], tensors: dict[str, object]) -> None:
    name = next(name for name in tensors if name.endswith(".u"))
    tensors[name] = tensors[name] + 1  # type: ignore[operator]


def drop_expert(header: dict[str, str], tensors: dict[str, object]) -> None:
    del tensors[next(name for name in tensors if name.endswith(".v"))]


def spoil_picture(header: dict[str, str], tensors: dict[str, object]) -> None:
    name = next(name for name in tensors if name.endswith(".picture"))
    tensors[name] = tensors[name] ^ 1  # type: ignore[operator]


def spoil_text(header: dict[str, str], tensors: dict[str, object]) -> None:
    header["contents"] = header["contents"].replace("by hand", "by head")


def other_format(header: dict[str, str], tensors: dict[str, object]) -> None:
    header["format"] = "liveedit-edits-9"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (spoil_expert, "does not have its digest"),
        (drop_expert, "cannot be read"),
        (spoil_picture, "the picture of edit .* does not have its digest"),
        (spoil_text, "header says does not have the digest"),
        (other_format, "its format is 'liveedit-edits-9'"),
    ],
)
def test_a_damaged_bundle_leaves_nothing(
    path: Path,
    bundle: Path,
    tmp_path: Path,
    change: Callable[[dict[str, str], dict[str, object]], None],
    message: str,
) -> None:
    with bound(path) as opened, EditStore(tmp_path / "other.db") as other:
        fill(opened)
        opened.export_bundle(bundle)
        rewritten(bundle, change)
        with pytest.raises(StoreError, match=message):
            other.import_bundle(bundle)
        assert (len(other), other.history(), other.binding) == (0, (), None)
    assert not (tmp_path / "other.db").exists()


def test_a_forged_header_that_contradicts_itself_is_refused(path: Path, bundle: Path, tmp_path: Path) -> None:
    import hashlib

    def forge(header: dict[str, str], tensors: dict[str, object]) -> None:
        contents = json.loads(header["contents"])
        contents["spans"].pop()
        header["contents"] = json.dumps(contents)
        header["contents_sha256"] = hashlib.sha256(header["contents"].encode()).hexdigest()

    with bound(path) as opened, EditStore(tmp_path / "other.db") as other:
        fill(opened)
        opened.export_bundle(bundle)
        rewritten(bundle, forge)
        with pytest.raises(StoreError, match="does not agree with itself"):
            other.import_bundle(bundle)
        assert len(other) == 0


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
        assert not [file for file in tmp_path.iterdir() if "unfinished" in file.name]


def test_a_bundle_that_could_not_be_read_again_is_not_written(
    path: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with bound(path) as opened:
        opened.add(make_edit(), make_expert())
        monkeypatch.setattr("liveedit.experts.bundle.LARGEST_HEADER_BYTES", 1000)
        with pytest.raises(StoreError, match="safetensors allows 1,000"):
            opened.export_bundle(bundle)
    assert [file.name for file in path.parent.iterdir()] == ["edits.db"]


def test_a_picture_of_another_edit_is_refused(path: Path) -> None:
    edit = dataclasses.replace(make_edit(), image_sha256="0" * 64)
    with bound(path) as opened:
        with pytest.raises(InvalidInputError, match="not the one that the edit was made with"):
            opened.add(edit, make_expert(), picture=thumbnail_png(PICTURE))
        assert len(opened) == 0
