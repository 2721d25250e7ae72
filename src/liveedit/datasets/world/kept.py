"""A world in a folder, drawn again only if its settings or the drawing code changed."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from ...files import write_json
from ...progress import Progress, no_progress
from .cases import Part
from .harder import HarderShares
from .write import write_world

_NOTE = "world.json"


def kept_world(
    folder: Path,
    seed: int,
    train: int,
    eval: int,
    progress: Progress = no_progress,
    harder: HarderShares | None = None,
) -> dict[Part, Path]:
    """The files of `write_world` in `folder`; existing ones if they are complete and have these settings."""
    counts: dict[Part, int] = {"train": train, "eval": eval}
    files: dict[Part, Path] = {part: folder / f"{part}.json" for part, count in counts.items() if count}
    wanted = {"seed": seed, "train": train, "eval": eval, "code_sha256": _code_sha256()}
    if harder:
        wanted["harder"] = str(harder)
    note = folder / _NOTE
    if _read(note) == wanted and all(file.is_file() for file in files.values()):
        return files
    note.unlink(missing_ok=True)
    files = write_world(folder, seed, train, eval, progress, harder)
    write_json(note, wanted)
    return files


def _read(note: Path) -> Any:
    try:
        return json.loads(note.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _code_sha256() -> str:
    """Digest of the code that draws worlds: other code may draw other images."""
    sources = sorted(Path(__file__).parent.glob("*.py"))
    return hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()
