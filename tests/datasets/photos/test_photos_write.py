"""The files: the same bytes for the same photographs and seed, and what is refused."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from drawn_photos import FolderMaker

from liveedit.datasets import check
from liveedit.datasets.photos import PhotoClass, WrittenPhotos, pixel_features, read_folder, write_photos
from liveedit.datasets.photos.catalog import KNOWN
from liveedit.datasets.photos.folder import PARTS
from liveedit.datasets.sources import open_data
from liveedit.errors import ImageError, InvalidInputError

DATA = Path(os.environ.get("LIVEEDIT_DATA", Path(__file__).parents[3] / ".." / "shared" / "data"))


def digests(folder: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(folder.iterdir())}


def test_the_same_seed_gives_the_same_bytes(images: Path, tmp_path: Path) -> None:
    for name, seed in (("first", 5), ("second", 5), ("other", 6)):
        write_photos(images, tmp_path / name, seed, 20, 20, pixel_features)
    first, second, other = (digests(tmp_path / name) for name in ("first", "second", "other"))
    assert set(first) == {"train.json", "eval.json", "about.json", "pretraining.txt", "editors.txt"}
    assert first == second
    assert {name for name in first if first[name] == other[name]} == {"pretraining.txt", "editors.txt"}


def test_the_place_of_the_photographs_does_not_matter(images: Path, tmp_path: Path) -> None:
    shutil.copytree(images, tmp_path / "moved")
    write_photos(images, tmp_path / "here", 5, 20, 20, pixel_features)
    write_photos(tmp_path / "moved", tmp_path / "there", 5, 20, 20, pixel_features)
    assert digests(tmp_path / "here") == digests(tmp_path / "there")


def test_a_part_does_not_depend_on_the_other_one(images: Path, tmp_path: Path) -> None:
    write_photos(images, tmp_path / "both", 5, 20, 20, pixel_features)
    for part, counts in (("train", (20, 0)), ("eval", (0, 20))):
        written = write_photos(images, tmp_path / part, 5, *counts, pixel_features)
        assert set(written.files) == {part}
        assert digests(tmp_path / part)[f"{part}.json"] == digests(tmp_path / "both")[f"{part}.json"]


def test_the_files_have_no_problems_and_can_be_measured_on(written: WrittenPhotos, images: Path) -> None:
    for file in written.files.values():
        report = check("vlkeb", file, images)
        assert report.ok and report.rows_read == report.rows > 0
        assert report.unused_keys == report.empty_fields == {}
    data = open_data(f"vlkeb:{written.files['eval']}:{images}")
    assert (len(data.cases), data.left_out) == (90, 0)


def test_the_rows_have_the_keys_of_vlkeb(written: WrittenPhotos) -> None:
    rows = json.loads(written.files["eval"].read_text(encoding="utf-8"))
    published = {"src", "rephrase", "pred", "alt", "image", "image_rephrase", "loc", "loc_ans", "m_loc", "m_loc_q"}
    assert all(published | {"m_loc_a"} <= set(row) for row in rows)
    hops = [hop for row in rows for hop in row.get("port_new", [])]
    assert hops
    for hop in hops:
        assert set(hop) == {"port_q", "port_a", "port_edit_q", "port_edit_a"}
        assert hop["port_a"] == hop["port_edit_a"]
        named = [found for found in KNOWN.values() if found.definite in hop["port_edit_q"]]
        assert hop["port_a"] in {value for found in named for value in (found.group, found.use, found.home)}


def test_about_describes_the_files(written: WrittenPhotos, images: Path) -> None:
    about = json.loads((written.files["eval"].parent / "about.json").read_text(encoding="utf-8"))
    assert about == written.about
    assert (about["seed"], about["train"], about["eval"], about["classes"]) == (3, 300, 90, 12)
    assert about["photographs"] == {"pretraining": 96, "editors": 36, "validation": 24, "evaluation": 36}
    names = sorted(file.relative_to(images).as_posix() for file in images.rglob("*.png"))
    assert about["names_sha256"] == hashlib.sha256("\n".join(names).encode()).hexdigest()
    assert (about["left_out"], about["copies"], about["features"]) == ({}, [], "pixel_features")


def test_photographs_for_pretraining_are_listed_and_no_case_shows_them(written: WrittenPhotos, images: Path) -> None:
    listed = (written.files["eval"].parent / "pretraining.txt").read_text(encoding="utf-8").splitlines()
    assert len(set(listed)) == len(listed) == written.about["photographs"]["pretraining"]
    assert all((images / photo).is_file() for photo in listed)
    for file in written.files.values():
        text = file.read_text(encoding="utf-8")
        assert not any(f'"{photo}"' in text for photo in listed)


def test_validation_shows_photographs_of_its_own_and_rephrases_as_no_editor_is_trained(written: WrittenPhotos) -> None:
    rows = {part: json.loads(file.read_text(encoding="utf-8")) for part, file in written.files.items()}
    shown = {part: {row[key] for row in found for key in ("image", "image_rephrase")} for part, found in rows.items()}
    assert len(rows["validation"]) == written.about["validation"] == 30
    assert not shown["validation"] & (shown["train"] | shown["eval"])
    asked = {part: {row["rephrase"] for row in found} for part, found in rows.items()}
    trained = {row[key] for row in rows["train"] for key in ("src", "rephrase")}
    assert not asked["validation"] & (trained | asked["eval"])


def test_classes_are_named_as_given(images: Path, tmp_path: Path) -> None:
    gnome = PhotoClass("garden_gnome", "stone elf", "ornament", "guarding", article="an")
    written = write_photos(images, tmp_path, 0, 200, 0, pixel_features, {"garden_gnome": gnome})
    text = written.files["train"].read_text(encoding="utf-8")
    assert "stone elf" in text and "garden gnome" not in text


def test_progress_counts_the_photographs_of_both_parts(images: Path, tmp_path: Path) -> None:
    reported: list[tuple[int, int]] = []
    write_photos(images, tmp_path, 0, 5, 5, pixel_features, progress=lambda *counts: reported.append(counts))
    assert reported[-1] == (72, 72)
    assert reported == sorted(reported) and len(reported) > 1


def test_two_classes_are_enough(make_folder: FolderMaker, tmp_path: Path) -> None:
    written = write_photos(make_folder(ant=7, cup=7), tmp_path / "out", 0, 30, 10, pixel_features)
    assert len(written.about["unedited"]) == 1
    assert all(check("vlkeb", file, tmp_path / "images").ok for file in written.files.values())


@pytest.mark.parametrize("counts", [(-1, 0, 1), (0, -1, 1), (0, 1, -1), (0, 0, 0)])
def test_impossible_sizes_are_refused(images: Path, tmp_path: Path, counts: tuple[int, int, int]) -> None:
    with pytest.raises(InvalidInputError, match="at least one case"):
        write_photos(images, tmp_path, *counts, pixel_features)


def test_more_cases_than_the_classes_allow_are_refused_before_anything_is_written(images: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"500 cases of evaluation .* The 12 classes allow 1\d\d without"):
        write_photos(images, tmp_path / "out", 0, 5, 500, pixel_features)
    assert not (tmp_path / "out").exists()


def test_a_folder_with_about_json_is_complete(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that breaks off leaves none, also if an earlier run wrote one."""
    write_photos(images, tmp_path, 0, 5, 5, pixel_features)
    before = digests(tmp_path)

    def broken_off(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("liveedit.datasets.photos.write._row", broken_off)
    with pytest.raises(KeyboardInterrupt):
        write_photos(images, tmp_path, 0, 5, 5, pixel_features)
    assert digests(tmp_path) == {name: digest for name, digest in before.items() if name != "about.json"}


def test_a_photograph_that_cannot_be_opened_is_named(make_folder: FolderMaker, tmp_path: Path) -> None:
    root = make_folder(ant=7, cup=7)
    broken = root / read_folder(root).classes[0].evaluation[0]
    broken.write_bytes(b"no image")
    with pytest.raises(ImageError, match=broken.name):
        write_photos(root, tmp_path / "out", 0, 0, 5, pixel_features)


def test_features_decide_what_is_near(images: Path, tmp_path: Path) -> None:
    """Features of the first letter of a class: a crocodile is near a crocodile head, a garden gnome near a piano."""

    def by_letter(paths: Sequence[Path]) -> np.ndarray:
        return np.eye(128)[[ord(path.parent.name[0]) for path in paths]]

    written = write_photos(images, tmp_path, 0, 0, 60, by_letter)
    unedited = {key[0] for key in written.about["unedited"]}
    assert {"c", "g"} <= unedited, "a letter that several classes have"
    rows = json.loads(written.files["eval"].read_text(encoding="utf-8"))
    near = {row["subject"]: row["probes"][2]["subject"] for row in rows}
    alike = {key for key in near if key[0] in unedited}
    assert len(alike) == 3 and all(near[key][0] == key[0] for key in alike)


def test_the_photographs_of_caltech_101_give_a_thousand_cases(tmp_path: Path) -> None:
    images = DATA / "caltech101"
    if not images.is_dir():
        pytest.skip(f"no caltech101 in {DATA}: set LIVEEDIT_DATA to a folder that has it")
    folder = read_folder(images)
    assert {each.key for each in folder.classes} == set(KNOWN)
    assert {tuple(len(each.part(part)) for part in PARTS) for each in folder.classes} == {(14, 4, 2, 4)}
    written = write_photos(images, tmp_path, 0, 0, 1000, pixel_features)
    assert len(open_data(f"vlkeb:{written.files['eval']}:{images}").cases) == 1000
    assert len(written.about["unedited"]) == 25
