"""Files: written whole or not at all, and the cache folder."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4


@contextmanager
def written_atomically(path: Path, *, durable: bool = False, mode: int | None = None) -> Iterator[Path]:
    """Yield a temporary path beside `path`; if the block succeeds, what was written there replaces `path`.

    After an exception the temporary file is removed and `path` is as it was. Several processes may write the same file
    at once: the last one wins, and readers always see a whole file. durable: sync the file to the disk first. mode: the
    permissions of the file, such as 0o600, from the start; by default those of any new file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid4().hex}.tmp")
    try:
        if mode is not None:
            os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode))
        yield temporary
        if durable:
            with temporary.open("rb+") as stream:
                os.fsync(stream.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file atomically."""
    with written_atomically(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any, *, indent: int = 1) -> None:
    """Write a JSON file atomically."""
    write_text(path, json.dumps(value, indent=indent, ensure_ascii=False) + "\n")


def cache_folder() -> Path:
    """Where drawn worlds and calibrations are kept: $LIVEEDIT_CACHE, or ~/.cache/liveedit."""
    given = os.environ.get("LIVEEDIT_CACHE")
    return Path(given) if given else Path.home() / ".cache" / "liveedit"
