"""The example editor, installed as `pip install` would do it."""

from __future__ import annotations

import importlib
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "one_file_editor"


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as `pip install` leaves it: the module's path and its entry points, from pyproject.toml."""
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    folder = tmp_path_factory.mktemp("site")
    info = folder / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir()
    lines = [f"Name: {project['name']}", f"Version: {project['version']}"]
    (info / "METADATA").write_text("\n".join(["Metadata-Version: 2.1", *lines]) + "\n", encoding="utf-8")
    points = project["entry-points"]["liveedit.editors"]
    written = "".join(f"{name} = {target}\n" for name, target in points.items())
    (info / "entry_points.txt").write_text(f"[liveedit.editors]\n{written}", encoding="utf-8")
    (folder / "liveedit_lookup.py").write_text((EXAMPLE / "liveedit_lookup.py").read_text(encoding="utf-8"))
    return folder


@pytest.fixture(scope="module")
def module(installed: Path) -> Iterator[ModuleType]:
    sys.path.insert(0, str(installed))
    importlib.invalidate_caches()
    try:
        yield importlib.import_module("liveedit_lookup")
    finally:
        sys.path.remove(str(installed))
        sys.modules.pop("liveedit_lookup", None)
