"""A drawn world that is kept in a folder and drawn again only when it must be."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .cases import Part
from .write import write_world

_NOTE = "world.json"


def kept_world(
    folder: Path,
    seed: int,
    train: int,
    eval: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[Part, Path]:
    """The files of `write_world` in `folder`: those there, if whole and of these settings, or new ones."""
    counts: dict[Part, int] = {"train": train, "eval": eval}
    files: dict[Part, Path] = {part: folder / f"{part}.json" for part, count in counts.items() if count}
    wanted = {"seed": seed, "train": train, "eval": eval, "code_sha256": _code_sha256()}
    note = folder / _NOTE
    if _read(note) == wanted and all(file.is_file() for file in files.values()):
        return files
    note.unlink(missing_ok=True)
    files = write_world(folder, seed, train, eval, progress)
    note.write_text(json.dumps(wanted, indent=1) + "\n", encoding="utf-8")
    return files


def _read(note: Path) -> Any:
    try:
        return json.loads(note.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _code_sha256() -> str:
    """What draws a world decides what it shows: a world of other code is another world."""
    sources = sorted(Path(__file__).parent.glob("*.py"))
    return hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()
