"""Names of classes with their articles, and entries of a file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from liveedit.datasets.photos.catalog import KNOWN, PhotoClass, photo_classes, read_classes
from liveedit.errors import InvalidInputError


@pytest.mark.parametrize(
    ("key", "indefinite", "definite"),
    [
        ("wild_cat", "a wild cat", "the wild cat"),
        ("ant", "an ant", "the ant"),
        ("emu", "an emu", "the emu"),
        ("euphonium", "a euphonium", "the euphonium"),
        ("ewer", "a ewer", "the ewer"),
        ("umbrella", "an umbrella", "the umbrella"),
        ("okapi", "an okapi", "the okapi"),
        ("scissors", "a pair of scissors", "the pair of scissors"),
        ("Leopards", "a leopard", "the leopard"),
        ("garfield", "Garfield", "Garfield"),
        ("crocodile_head", "a crocodile head", "the crocodile head"),
    ],
)
def test_articles(key: str, indefinite: str, definite: str) -> None:
    assert (KNOWN[key].indefinite, KNOWN[key].definite) == (indefinite, definite)


@pytest.mark.parametrize(
    ("name", "indefinite"),
    [("unicycle", "a unicycle"), ("hourglass", "an hourglass"), ("urn", "an urn"), ("hen", "a hen"), ("oar", "an oar")],
)
def test_articles_of_other_names(name: str, indefinite: str) -> None:
    assert PhotoClass("x", name).indefinite == indefinite
    assert PhotoClass("x", name, article="an").indefinite == f"an {name}"


def test_of_every_known_class_it_is_known_what_it_is_for_or_where_it_lives() -> None:
    assert len(KNOWN) == 99
    assert len({found.name for found in KNOWN.values()}) == 99
    for key, found in KNOWN.items():
        assert found.key == key and found.group
        assert (found.use is None) != (found.home is None), key


def test_a_folder_without_an_entry_is_called_what_it_is_called() -> None:
    (found,) = photo_classes(["garden__gnome"])
    assert found == PhotoClass("garden__gnome", "garden gnome")


def test_entries_add_to_what_is_known_and_replace_it(tmp_path: Path) -> None:
    file = tmp_path / "classes.json"
    entries = {"gnome": {"group": "ornament", "use": "guarding"}, "ant": {"name": "fire ant"}}
    file.write_text(json.dumps(entries), encoding="utf-8")
    assert photo_classes(["gnome", "ant", "emu"], read_classes(file)) == (
        PhotoClass("gnome", "gnome", "ornament", "guarding"),
        PhotoClass("ant", "fire ant"),
        KNOWN["emu"],
    )


def test_two_classes_of_one_name_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="'wild cat' and 'wild_cat' are both called 'wild cat'"):
        photo_classes(["ant", "wild cat", "wild_cat"])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "cannot be read as JSON"),
        ("[]", "holds no object"),
        ('{"ant": 3}', "class 'ant': allowed are name, group, use, home, article"),
        ('{"ant": {"color": "red"}}', "class 'ant': allowed are name, group, use, home, article"),
        ('{"ant": {"name": 3}}', "name holds 3"),
        ('{"ant": {"group": " "}}', "group holds ' '"),
        ('{"ant": {"article": "the"}}', "article holds 'the'"),
    ],
)
def test_other_files_of_classes_are_refused(tmp_path: Path, content: str, words: str) -> None:
    file = tmp_path / "classes.json"
    file.write_text(content, encoding="utf-8")
    with pytest.raises(InvalidInputError, match=words) as error:
        read_classes(file)
    assert "classes.json" in str(error.value)


def test_an_absent_file_of_classes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"absent\.json cannot be read"):
        read_classes(tmp_path / "absent.json")
