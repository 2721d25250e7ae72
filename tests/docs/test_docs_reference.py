"""The reference is made from the code, and says all that the code has."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from test_docs_links import loaded
from typer.testing import CliRunner

import liveedit
from liveedit import errors
from liveedit.cli import app
from liveedit.editors import editor_class
from liveedit.serving.settings import ServingSettings

ROOT = Path(__file__).parents[2]
generate = loaded("generate")


def subclasses(kind: type[Exception]) -> set[type[Exception]]:
    return {kind}.union(*(subclasses(one) for one in kind.__subclasses__()))


def section(page: str, heading: str) -> str:
    match = re.search(rf"^## {re.escape(heading)}$(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL)
    assert match is not None, heading
    return match[1]


@pytest.mark.parametrize("name", [name for name, _ in generate.commands()])
def test_every_option_that_help_prints_is_on_the_page_of_commands(name: str) -> None:
    """Independent of how the page is made: what a person sees with --help is the expectation."""
    printed = CliRunner().invoke(app, [*name.split(), "--help"], env={"COLUMNS": "200", "TERMINAL_WIDTH": "200"}).output
    options = set(re.findall(r"^\s+(--[\w-]+)", printed, re.MULTILINE)) - {"--help"}
    part = section(generate.command_page(), f"liveedit {name}")
    assert options
    assert [option for option in sorted(options) if f"`{option}`" not in part] == []


def test_no_group_of_commands_is_left_out() -> None:
    printed = CliRunner().invoke(app, ["--help"]).output
    listed = set(re.findall(r"^  ([a-z][\w-]+)  ", printed.split("Commands:")[1], re.MULTILINE))
    assert {name.split()[0] for name, _ in generate.commands()} == listed


def test_every_limit_is_on_its_page_with_its_default() -> None:
    page = generate.limits_page()
    for name, field in ServingSettings.model_fields.items():
        (line,) = [
            line for line in page.splitlines() if f"| `{name}`" in line or f"| `--{name.replace('_', '-')}`" in line
        ]
        assert f"`{field.default}`" in line and str(field.description).split("|")[0] in line


def test_every_setting_of_every_editor_is_on_its_page() -> None:
    page = generate.settings_page()
    for name in generate.built_in_editors():
        part = section(page, name)
        kind = editor_class(name)
        config = getattr(kind, "settings_class", None) or getattr(kind, "config_class", None)
        for field in getattr(config, "model_fields", {}):
            assert f"| `{field}` |" in part


def test_the_public_names_are_those_of_the_package() -> None:
    headings = re.findall(r"^## (\w+)$", generate.public_page(), re.MULTILINE)
    assert headings == list(liveedit.__all__)


def test_every_error_is_on_the_troubleshooting_page() -> None:
    page = (ROOT / "docs" / "TROUBLESHOOTING.md").read_text(encoding="utf-8")
    defined = {kind for kind in subclasses(errors.LiveEditError) if kind.__module__ == errors.__name__}
    rows = set(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE))
    assert rows == {kind.__name__ for kind in defined}
    for line in page.splitlines():
        if line.startswith("| `"):
            assert all(cell.strip() for cell in line.strip("|").split("|"))


def test_the_glossary_can_be_read_by_a_program() -> None:
    text = (ROOT / "docs" / "GLOSSARY.md").read_text(encoding="utf-8")
    tables = text.split("| Write | Do not write | Meaning |\n|---|---|---|\n")[1:]
    rows = [line.strip("|").split("|") for table in tables for line in table.split("\n\n")[0].splitlines()]
    assert rows and all(len(row) == 3 for row in rows)
    refused = [word.strip() for row in rows for word in row[1].split(",") if word.strip()]
    assert {"in force", "picture", "interception", "lanes", "so many", "is told"} <= set(refused)
    assert len(refused) == len(set(refused))


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    loads = re.compile(
        r'<(?:script|img|iframe)[^>]*src="(?:https?:)?//|<link[^>]*rel="stylesheet"[^>]*href="(?:https?:)?//'
    )
    for page in (tmp_path / "site").rglob("*.html"):
        assert loads.search(page.read_text(encoding="utf-8")) is None, page
