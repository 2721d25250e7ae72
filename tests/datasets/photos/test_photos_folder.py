"""Which photographs of a folder are for what."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from drawn_photos import FolderMaker

from liveedit.datasets.photos.folder import PARTS, read_folder
from liveedit.errors import InvalidInputError


@pytest.mark.parametrize(
    ("count", "sizes"), [(24, (14, 4, 2, 4)), (7, (1, 2, 2, 2)), (8, (2, 2, 2, 2)), (60, (35, 10, 5, 10))]
)
def test_a_class_is_divided_into_disjoint_parts(
    make_folder: FolderMaker, count: int, sizes: tuple[int, int, int, int]
) -> None:
    folder = read_folder(make_folder(cup=count, ant=7))
    ant, cup = folder.classes
    assert (ant.key, cup.key) == ("ant", "cup")
    parts = [cup.part(part) for part in PARTS]
    assert tuple(map(len, parts)) == sizes
    assert sorted(photo for part in parts for photo in part) == [f"cup/{index:03d}.png" for index in range(count)]
    assert all(list(part) == sorted(part) for part in parts)


def test_the_division_depends_on_names_alone_and_not_on_their_order(make_folder: FolderMaker) -> None:
    here = make_folder(ant=24, cup=24)
    there = here.parent / "elsewhere"
    for file in sorted(here.rglob("*.png"), reverse=True):
        (there / file.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copy(file, there / file.parent.name)
    first, second = read_folder(here), read_folder(there)
    assert first.classes == second.classes
    ant, cup = first.classes
    places = [{photo.split("/")[1] for photo in each.evaluation} for each in (ant, cup)]
    assert places[0] != places[1], "file names that classes share are not always in the same part"


def test_only_photographs_count(make_folder: FolderMaker) -> None:
    root = make_folder(ant=7, cup=7)
    (root / "ant" / "notes.txt").write_text("x")
    (root / "ant" / ".hidden.png").write_bytes(b"x")
    (root / "ant" / "000.png").rename(root / "ant" / "000.PNG")
    (root / "ant" / "below.png").mkdir()
    (root / ".git").mkdir()
    (root / "readme.png").write_bytes(b"x")
    folder = read_folder(root)
    assert [each.key for each in folder.classes] == ["ant", "cup"]
    ant = folder.classes[0]
    photos = {photo for part in PARTS for photo in ant.part(part)}
    assert photos == {"ant/000.PNG", *(f"ant/{index:03d}.png" for index in range(1, 7))}


def test_equal_photographs_are_in_no_part(make_folder: FolderMaker) -> None:
    root = make_folder(ant=7, cup=7)
    shutil.copy(root / "ant" / "002.png", root / "ant" / "900.png")
    shutil.copy(root / "ant" / "002.png", root / "cup" / "901.png")
    folder = read_folder(root)
    assert folder.copies == ("ant/900.png", "cup/901.png")
    assert [sum(len(each.part(part)) for part in PARTS) for each in folder.classes] == [7, 7]


def test_small_classes_are_left_out_and_named(make_folder: FolderMaker) -> None:
    root = make_folder(ant=7, cup=7, emu=4)
    (root / "empty").mkdir()
    folder = read_folder(root)
    assert [each.key for each in folder.classes] == ["ant", "cup"]
    assert folder.left_out == {"emu": 4, "empty": 0}


def test_folders_without_two_classes_are_refused(make_folder: FolderMaker, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"1 class folders .* others with fewer: cup \(3\)"):
        read_folder(make_folder(ant=7, cup=3))
    with pytest.raises(InvalidInputError, match="0 class folders"):
        read_folder(tmp_path / "images" / "ant")
    with pytest.raises(InvalidInputError, match="does not exist"):
        read_folder(tmp_path / "absent")


def test_names_that_are_not_text_are_refused(make_folder: FolderMaker) -> None:
    root = make_folder(ant=7, cup=7)
    (root / "ant" / "000.png").rename(root / "ant" / os.fsdecode(b"\xff.png"))
    with pytest.raises(InvalidInputError, match="is not readable text"):
        read_folder(root)
