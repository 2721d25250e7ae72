"""Readers of annotation files: `read` gives cases, `check` looks a file and its images through.

To add a format, write its file with a `Reader` (see `base`) and name that in `_ALL` below.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from ..errors import NotFoundError
from ..samples import EditCase
from .base import OnError, Reader, Row, RowError
from .check import KEPT_PROBLEMS, DataReport, Problem, Progress, check_file
from .mmedit import MMEDIT
from .selfcheckgpt import SELFCHECKGPT
from .vlkeb import VLKEB
from .zsre import ZSRE

__all__ = [
    "DataReport",
    "Problem",
    "Reader",
    "Row",
    "RowError",
    "check",
    "read",
    "reader_named",
    "readers",
]

_ALL: Final = (MMEDIT, VLKEB, ZSRE, SELFCHECKGPT)

readers: Final[dict[str, Reader]] = {name: reader for reader in _ALL for name in (reader.name, *reader.aliases)}
"""Every format by its name and by its aliases."""


def reader_named(format: str) -> Reader:
    """The reader of a format. Raises `NotFoundError` for an unknown one."""
    try:
        return readers[format.lower()]
    except KeyError:
        known = ", ".join(sorted(readers))
        raise NotFoundError(f"There is no data format {format!r}. Give one of {known}.") from None


def read(
    format: str, file: str | Path, images: str | Path | None = None, on_error: OnError | None = None
) -> tuple[EditCase, ...]:
    """All cases of a file; see `Reader.read` for images and errors."""
    return reader_named(format).read(file, images, on_error)


def check(
    format: str,
    file: str | Path,
    images: str | Path | None = None,
    *,
    progress: Progress | None = None,
    keep: int = KEPT_PROBLEMS,
) -> DataReport:
    """Look a file and its images through; see `check_file`. Without `images` no image is looked for."""
    return check_file(reader_named(format), file, images, progress=progress, keep=keep)
