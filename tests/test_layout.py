"""The rules of the layout, read off the sources: the order of rooms, no cycles, no editor outside its folder, words."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import liveedit
from liveedit.editors import editor_names

PACKAGE = Path(liveedit.__file__).parent
ROOT = Path(__file__).parents[1]
SOURCES = sorted(PACKAGE.rglob("*.py"))
LONGEST_FILE = 500
LONGEST_FUNCTION = 60

ROOMS = (
    "errors",
    "samples",
    "answers",
    "progress",
    "files",
    "images",
    "registry",
    "hub",
    "datasets",
    "experts",
    "backbones",
    "store",
    "training",
    "editors",
    "pretraining",
    "answering",
    "edited",
    "evaluation",
    "experiments",
    "testing",
    "doctor",
    "demo",
    "serving",
    "vllm",
    "cli",
    "__main__",
)
"""Every module and package of `liveedit`, from the lowest to the highest. A room imports only rooms before it."""

SHARED_EDITOR_ROOMS = {
    "base",
    "pretrained",
    "trained",
    "training_estimate",
    "shared",
    "heat_map",
    "occlusion",
    "reference",
}
"""What in `editors` belongs to no method."""

NAMING_EDITORS = (
    "liveedit",
    "liveedit.registry",
    "liveedit.editors.reference",
    "liveedit.experiments.papers",
)
"""The public names, the registry, the editor that checks of a model use, and what the two papers show."""


def module_of(file: Path) -> str:
    parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(file): file for file in SOURCES}


@cache
def imports_of(module: str) -> frozenset[str]:
    """The modules of this package that a module imports: at its top, in functions, and for type checking only."""
    file = MODULES[module]
    package = module.split(".") if file.name == "__init__.py" else module.split(".")[:-1]
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            home = ".".join([*base, *([node.module] if node.module else [])])
            # `from . import name` is the module `name` if there is one, else something that the package defines.
            found |= {f"{home}.{alias.name}" if f"{home}.{alias.name}" in MODULES else home for alias in node.names}
    return frozenset(found & MODULES.keys() - {module})


def room_of(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def all_imports() -> Iterator[tuple[str, str]]:
    return ((module, name) for module in MODULES for name in sorted(imports_of(module)))


def test_the_reader_of_imports_sees_every_kind() -> None:
    """Relative, lazy and type-checking imports, of modules and of names in packages."""
    assert "liveedit.backbones" in imports_of("liveedit.editors.ft")
    assert "liveedit.edited.model" in imports_of("liveedit"), "under TYPE_CHECKING"
    assert "liveedit.editors" in imports_of("liveedit.cli.editing"), "in a function"


def test_every_room_has_its_place_in_the_order() -> None:
    assert {room_of(module) for module in MODULES if room_of(module)} == set(ROOMS)
    assert len(set(ROOMS)) == len(ROOMS)


def test_rooms_import_only_what_lies_below_them() -> None:
    order = {room: place for place, room in enumerate(ROOMS)}
    upwards = [
        f"{module} -> {name}"
        for module, name in all_imports()
        if room_of(module) and room_of(name) and order[room_of(name)] > order[room_of(module)]
    ]
    assert upwards == []


def test_there_is_no_cycle_under_any_kind_of_import() -> None:
    cycles: list[str] = []
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        if module in path:
            cycles.append(" -> ".join((*path[path.index(module) :], module)))
        elif module not in done:
            for name in sorted(imports_of(module) - {"liveedit"}):
                visit(name, (*path, module))
            done.add(module)

    for module in MODULES:
        visit(module, ())
    assert cycles == []


def test_only_the_commands_import_experiments() -> None:
    assert [f"{module} -> {name}" for module, name in all_imports() if reaches_into(module, name, "experiments")] == []


def test_evaluation_and_answering_know_only_the_base_of_editors() -> None:
    wrong = [
        f"{module} -> {name}"
        for module, name in all_imports()
        if room_of(module) in ("answering", "evaluation")
        and room_of(name) == "editors"
        and name != "liveedit.editors.base"
    ]
    assert wrong == []


def test_samples_and_errors_stand_alone() -> None:
    assert [name for room in ("samples", "errors") for name in imports_of(f"liveedit.{room}")] == []


def reaches_into(module: str, name: str, room: str) -> bool:
    """Whether a module outside a room, other than a command, imports something in it."""
    return room_of(name) == room and room_of(module) not in (room, "cli")


def method_of(module: str) -> str | None:
    """The editing method a module belongs to, None if it belongs to none."""
    parts = module.split(".")
    if parts[1:2] != ["editors"] or len(parts) < 3 or parts[2] in SHARED_EDITOR_ROOMS:
        return None
    return parts[2]


def test_no_method_imports_another() -> None:
    siblings = [
        f"{module} -> {name}"
        for module, name in all_imports()
        if method_of(module) and method_of(name) and method_of(module) != method_of(name)
    ]
    assert siblings == []


def may_name_editors(module: str) -> bool:
    return method_of(module) is not None or module in NAMING_EDITORS or is_experiment_on_a_method(module)


def is_experiment_on_a_method(module: str) -> bool:
    """Experiments that show how one method works lie in a folder of its name."""
    parts = module.split(".")
    return parts[1:2] == ["experiments"] and len(parts) > 3 and parts[2] in {method_of(name) for name in MODULES}


def test_no_editor_is_named_outside_its_folder() -> None:
    names = set(editor_names()) - {"none", "liveedit"}  # These two are ordinary words of the code as well.
    wrong = []
    for module, file in MODULES.items():
        if may_name_editors(module):
            continue
        wrong += [f"{module} -> {name}" for name in imports_of(module) if method_of(name)]
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in names:
                wrong.append(f"{module}:{node.lineno} {node.value!r}")
            if isinstance(node, ast.Compare):
                values = {part.value for part in ast.walk(node) if isinstance(part, ast.Constant)}
                if "liveedit" in values:
                    wrong.append(f"{module}:{node.lineno} compares with 'liveedit'")
    assert wrong == []


# -- size and words ------------------------------------------------------------------------------------------


def test_no_file_is_too_long() -> None:
    lengths = {module: len(file.read_text(encoding="utf-8").splitlines()) for module, file in MODULES.items()}
    assert {name: lines for name, lines in lengths.items() if lines > LONGEST_FILE} == {}


def test_no_function_is_too_long() -> None:
    found = {}
    for module, file in MODULES.items():
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > LONGEST_FUNCTION:
                    found[f"{module}.{node.name}"] = lines
    assert found == {}


def test_there_is_no_drawer_for_everything() -> None:
    assert [file.name for file in SOURCES if file.stem in ("utils", "helpers", "common", "misc")] == []


def test_no_two_test_files_share_a_name() -> None:
    """Tests are no package: pytest would import the first file of a name for both, and refuse the second."""
    names = [file.name for file in (ROOT / "tests").rglob("test_*.py")]
    assert sorted(name for name in set(names) if names.count(name) > 1) == []


GLOSSARY = ROOT / "docs" / "GLOSSARY.md"


def private_words() -> list[str]:
    """The words and phrases in the columns "Do not write" of the glossary's tables."""
    words: list[str] = []
    place: int | None = None
    for line in GLOSSARY.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if not line.startswith("|"):
            place = None
        elif "Do not write" in cells:
            place = cells.index("Do not write")
        elif place is not None and not set(cells[place]) <= set("-:"):
            words += [word.strip(" `") for word in cells[place].split(",")]
    return words


def written() -> Iterator[tuple[str, int, str]]:
    """(file, line number, line) of the sources, the documents and the README, without the glossary itself."""
    pages = [*PACKAGE.rglob("*.py"), *PACKAGE.rglob("*.js"), *PACKAGE.rglob("*.html"), ROOT / "README.md"]
    for file in [*pages, *(ROOT / "docs").rglob("*.md")]:
        if file == GLOSSARY or "results" in file.relative_to(ROOT).parts:
            continue
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
            yield str(file.relative_to(ROOT)), number, line


TEXTS_FOR_MODELS = (
    "datasets/world",
    "datasets/facts",
    "datasets/photos/wordings.py",
    "liveedit/pretraining",
    "shared/everyday_questions.py",
)
"""Where the texts lie that models were trained on. Changing a word there changes answers."""


def test_private_words_are_not_written() -> None:
    words = private_words()
    assert len(words) > 20
    pattern = re.compile(r"(?<![\w-])(" + "|".join(map(re.escape, words)) + r")(?![\w-])", re.IGNORECASE)
    found = [
        f"{file}:{number} {match[0]!r}"
        for file, number, line in written()
        for match in [pattern.search(line.replace("_", " "))]
        if match and not any(place in file for place in TEXTS_FOR_MODELS)
    ]
    assert found == []
