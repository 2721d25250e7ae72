"""The layout rules of the house, read off the sources."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import liveedit
from liveedit.editors import editor_names

PACKAGE = Path(liveedit.__file__).parent
SOURCES = sorted(PACKAGE.rglob("*.py"))
LONGEST_FILE = 500


def module_of(file: Path) -> str:
    parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(file: Path) -> set[str]:
    """What a file imports of this package, also in functions: modules and their contents, by full names."""
    package = module_of(file).split(".")
    if file.name != "__init__.py":
        package = package[:-1]
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            home = ".".join([*base, *([node.module] if node.module else [])])
            found |= {home, *(f"{home}.{alias.name}" for alias in node.names)}
    return {name for name in found if name.startswith("liveedit.")}


def importing(folder: str) -> list[tuple[str, str]]:
    """(module, what it imports) of a module or of a folder and all below it."""
    root = f"liveedit.{folder}"
    return [
        (module_of(file), name)
        for file in SOURCES
        if module_of(file) == root or module_of(file).startswith(f"{root}.")
        for name in imports_of(file)
    ]


def is_in(name: str, folder: str) -> bool:
    return name == f"liveedit.{folder}" or name.startswith(f"liveedit.{folder}.")


def test_the_reader_of_imports_sees_relative_ones() -> None:
    assert ("liveedit.editors.ft", "liveedit.backbones.Backbone") in importing("editors")
    assert ("liveedit.pretraining.models", "liveedit.datasets.world") in importing("backbones")


@pytest.mark.parametrize("folder", ["samples", "errors", "images", "backbones", "experts", "datasets", "checkpoints"])
def test_what_lies_below_never_imports_editors(folder: str) -> None:
    found = importing(folder)
    assert found or folder in ("errors", "checkpoints", "images", "samples")
    assert [pair for pair in found if is_in(pair[1], "editors")] == []


@pytest.mark.parametrize("folder", ["training", "evaluation"])
def test_training_and_evaluation_know_only_the_base_of_editors(folder: str) -> None:
    allowed = ("liveedit.editors.base", "liveedit.editors.base.")
    wrong = [
        (module, name)
        for module, name in importing(folder)
        if is_in(name, "editors") and name != allowed[0] and not name.startswith(allowed[1])
    ]
    assert wrong == []


def test_nothing_imports_the_command_line() -> None:
    wrong = [
        (module_of(file), name)
        for file in SOURCES
        for name in imports_of(file)
        if (is_in(name, "cli") or is_in(name, "serving"))
        and not is_in(module_of(file), "cli")
        and not is_in(module_of(file), "serving")
        and module_of(file) != "liveedit.__main__"
    ]
    assert wrong == []


def test_only_the_command_line_imports_experiments() -> None:
    wrong = [
        (module_of(file), name)
        for file in SOURCES
        for name in imports_of(file)
        if is_in(name, "experiments")
        and not is_in(module_of(file), "experiments")
        and not is_in(module_of(file), "cli")
    ]
    assert wrong == []


@pytest.mark.parametrize("folder", ["samples", "errors"])
def test_the_ground_floor_stands_alone(folder: str) -> None:
    assert importing(folder) == []


def test_no_file_is_too_long() -> None:
    lengths = {module_of(file): len(file.read_text(encoding="utf-8").splitlines()) for file in SOURCES}
    assert {name: lines for name, lines in lengths.items() if lines > LONGEST_FILE} == {}


def test_there_is_no_drawer_for_everything() -> None:
    assert [file.name for file in SOURCES if file.stem in ("utils", "helpers", "common", "misc")] == []


def test_no_editor_is_named_outside_its_own_file() -> None:
    """Rule 1: no `if editor == ...` anywhere."""
    names = set(editor_names())
    wrong = []
    for file in SOURCES:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Compare):
                constants = {part.value for part in ast.walk(node) if isinstance(part, ast.Constant)}
                mentioned = {part.attr for part in ast.walk(node) if isinstance(part, ast.Attribute)} | {
                    part.id for part in ast.walk(node) if isinstance(part, ast.Name)
                }
                if constants & names and mentioned & {"editor", "editor_name"}:
                    wrong.append(f"{module_of(file)}:{node.lineno}")
    assert wrong == []
