"""Links and file names in the documents lead somewhere, and the site is complete."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest
import yaml

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted(
    [path for name in ("README", "CONTRIBUTING", "CHANGELOG", "SECURITY") if (path := ROOT / f"{name}.md").exists()]
    + list((ROOT / "docs").rglob("*.md"))
)
LINK = re.compile(r"!?\[[^\]\n]*\]\(([^)\s]+)\)")
FENCE = re.compile(r"^\s*```.*?^\s*```", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"`([^`\n]+)`")
MENTIONED = re.compile(r"(?:docs|src|tests|benchmarks|models)/[\w./*-]*[\w*]\.(?:md|py|png|json|csv|toml|ipynb|svg)")
BARE_NAME = re.compile(r"[A-Z][A-Z0-9_]+\.(?:md|cff)")


def loaded(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"docs_{name}", ROOT / "docs" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def prose(path: Path) -> str:
    return FENCE.sub("", path.read_text(encoding="utf-8"))


def anchors(path: Path) -> set[str]:
    """Anchors as GitHub and mkdocs make them from headings."""
    found = re.findall(r"^#+ (.+)$", FENCE.sub("", path.read_text(encoding="utf-8")), re.MULTILINE)
    plain = (re.sub(r"[`*]|\]\([^)]*\)|\[", "", heading) for heading in found)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in plain}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_relative_link_resolves(path: Path) -> None:
    generated = {ROOT / "docs" / page for page in loaded("generate").PAGES}
    wrong = []
    for target in LINK.findall(prose(path)):
        if "://" in target or target.startswith("mailto:"):
            continue
        name, _, anchor = target.partition("#")
        file = (path.parent / name).resolve() if name else path
        if file in generated:
            continue
        if not file.exists() or (anchor and file.suffix == ".md" and anchor not in anchors(file)):
            wrong.append(target)
    assert wrong == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_document_mentions_a_file_that_is_not_there(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    named = set(MENTIONED.findall(text))
    assert [name for name in sorted(named) if not list(ROOT.glob(name))] == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_documents_name_each_other_by_links(path: Path) -> None:
    """A document that is only named in code style cannot be clicked."""
    if path.name == "CHANGELOG.md":
        return
    unlinked = [span for span in CODE.findall(prose(path)) if re.fullmatch(r"(?:docs/)?[A-Z][A-Z0-9_]+\.md", span)]
    assert unlinked == []


def test_the_navigation_names_every_page() -> None:
    config = yaml.load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"), Loader=yaml.BaseLoader)

    def pages(entry: object) -> list[str]:
        if isinstance(entry, str):
            return [entry]
        values = entry.values() if isinstance(entry, dict) else entry
        return [page for value in values for page in pages(value)]  # type: ignore[union-attr]

    shown = pages(config["nav"])
    hooks = loaded("site_hooks")
    written = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    notebooks = {f"notebooks/{path.stem}.md" for path in (ROOT / "docs" / "notebooks").glob("*.ipynb")}
    made = set(loaded("generate").PAGES) | notebooks | {f"project/{name}" for name in hooks.ROOT_DOCUMENTS}
    assert len(shown) == len(set(shown))
    assert set(shown) == written | made


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) < 150


def test_the_figure_loads_nothing_and_says_what_it_shows() -> None:
    figure = (ROOT / "docs" / "images" / "architecture.svg").read_text(encoding="utf-8")
    assert "<title" in figure and "<desc" in figure
    assert "href" not in figure and figure.count("http") == 1  # The name space.
