"""Hooks of mkdocs: generated pages, documents from the root of the repository, notebooks as pages, and links."""

from __future__ import annotations

import importlib.util
import json
import posixpath
import re
from pathlib import Path
from types import ModuleType
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
ROOT_DOCUMENTS = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")
_LINK = re.compile(r"(!?)\[([^\]\n]*)\]\(([^)\s]+)\)")
_FENCE = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are not written by hand."""
    for path, write in _generator().PAGES.items():
        files.append(File.generated(config, path, content=write()))
    for name in ROOT_DOCUMENTS:
        text = (ROOT / name).read_text(encoding="utf-8")
        files.append(File.generated(config, f"project/{name}", content=_moved(text, name)))
    for notebook in sorted((ROOT / "docs" / "notebooks").glob("*.ipynb")):
        content = notebook_page(json.loads(notebook.read_text(encoding="utf-8")))
        files.append(File.generated(config, f"notebooks/{notebook.stem}.md", content=content))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Point links to what the site has: root documents and notebooks are pages, other files of the tree are names."""
    folder = posixpath.dirname(page.file.src_uri)

    def point(match: re.Match[str]) -> str:
        bang, text, target = match.groups()
        path, _, anchor = target.partition("#")
        if not path or "://" in path or path.startswith(("mailto:", "/")):
            return match[0]
        inside = posixpath.normpath(posixpath.join("docs", folder, path))
        if inside in ROOT_DOCUMENTS:
            found = f"project/{inside}"
        elif inside.endswith(".ipynb") and inside.startswith("docs/"):
            found = inside[len("docs/") :].removesuffix(".ipynb") + ".md"
        elif inside.startswith("docs/") and files.get_file_from_path(inside[len("docs/") :]) is not None:
            return match[0]
        elif (ROOT / inside).exists():
            return f"{text} (`{inside}`)" if inside not in text else text
        else:
            return match[0]  # The strict build reports it.
        return f"{bang}[{text}]({posixpath.relpath(found, folder or '.')}{'#' + anchor if anchor else ''})"

    parts = _FENCE.split(markdown)
    return "".join(part if part.startswith("```") else _LINK.sub(point, part) for part in parts)


def notebook_page(notebook: dict[str, Any]) -> str:
    """The cells of a notebook as Markdown, with the text that they printed."""
    parts = []
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(f"```python\n{source}\n```")
        printed = "".join("".join(output.get("text", "")) for output in cell.get("outputs", []))
        if printed:
            parts.append(f"```text\n{printed.rstrip()}\n```")
    return "\n\n".join(parts) + "\n"


def _moved(text: str, name: str) -> str:
    """Links of a document in the root, as seen from docs/project/."""

    def point(match: re.Match[str]) -> str:
        bang, label, target = match.groups()
        if "://" in target or target.startswith(("#", "mailto:", "/")):
            return match[0]
        moved = target[len("docs/") :] if target.startswith("docs/") else f"../{target}"
        return f"{bang}[{label}](../{moved})"

    return _LINK.sub(point, text)


def _generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("liveedit_docs_generate", ROOT / "docs" / "generate.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
