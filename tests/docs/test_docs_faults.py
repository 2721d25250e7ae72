"""Every test that the table of faults names exists, and every test of a fault is in the table."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
FAULTS = ROOT / "docs" / "FAULTS.md"
NAMED = re.compile(r"`((?:tests|src)/[\w/]+\.py)(?:::(\w+))?`")


def names_of_tests(file: Path) -> set[str]:
    """The names of the test functions of a file, those of its classes included."""
    nodes = ast.walk(ast.parse(file.read_text(encoding="utf-8")))
    return {node.name for node in nodes if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}


def test_every_test_that_is_named_exists() -> None:
    named = NAMED.findall(FAULTS.read_text(encoding="utf-8"))
    assert len(named) > 20
    wrong = [
        f"{path}::{name}"
        for path, name in named
        if not (ROOT / path).is_file()
        or (name not in names_of_tests(ROOT / path) if name else not names_of_tests(ROOT / path))
    ]
    assert wrong == []


def test_every_row_names_a_test() -> None:
    rows = [line for line in FAULTS.read_text(encoding="utf-8").splitlines() if line.startswith("| ")][1:]
    assert len(rows) > 10 and all(NAMED.search(row) for row in rows)


def test_every_test_of_a_fault_is_in_the_table() -> None:
    named = {path for path, _ in NAMED.findall(FAULTS.read_text(encoding="utf-8"))}
    files = {path.relative_to(ROOT).as_posix() for path in (ROOT / "tests" / "faults").glob("test_*.py")}
    assert files and files <= named
