"""Readers of annotation files, one per format, registered as `liveedit.datasets` entry points.

`read` gives the cases of a file; `check` reports what is wrong with a file and its images. A format is a function from
a `Row` to an `EditCase`, wrapped in a `Reader`. A package of its own can add one:

    # my_package.py
    from liveedit.datasets import Reader, Row
    from liveedit.samples import Edit, EditCase, Probe, Question

    def read_case(row: Row) -> EditCase:
        question = Question(row.prompt("question"), row.image("photo"))
        other = Question(row.prompt("paraphrase"), question.image)
        answer = row.answer("answer")
        return EditCase(row.name, Edit(question, answer), (Probe("text_generality", other, answer),))

    MY_FORMAT = Reader("my-format", "Questions about photographs: question, photo, paraphrase, answer", read_case)

    # pyproject.toml of the package
    [project.entry-points."liveedit.datasets"]
    my-format = "my_package:MY_FORMAT"

`liveedit bench --data my-format:FILE:IMAGES` and `liveedit data check my-format FILE` then work, and
`liveedit.testing.DatasetContract` tests the reader.
"""

from __future__ import annotations

from pathlib import Path

from .. import registry
from ..progress import Progress, no_progress
from ..registry import DATASETS
from ..samples import EditCase
from .base import OnError, Reader, Row, RowError
from .check import KEPT_PROBLEMS, DataReport, Problem, check_file

__all__ = [
    "DataReport",
    "Problem",
    "Reader",
    "Row",
    "RowError",
    "check",
    "format_names",
    "read",
    "reader_named",
]


def format_names() -> tuple[str, ...]:
    """Names of all installed formats, second names included."""
    return registry.names(DATASETS)


def reader_named(format: str) -> Reader:
    """The reader of a format, in any case of letters.

    Raises `NotFoundError` with the installed names, `ExtensionError` if the reader cannot be used.
    """
    found = registry.load(DATASETS, format.lower())
    if not isinstance(found, Reader):
        raise registry.wrong_kind(DATASETS, format, found, "an instance of liveedit.datasets.Reader")
    return found


def read(
    format: str, file: str | Path, images: str | Path | None = None, on_error: OnError | None = None
) -> tuple[EditCase, ...]:
    """All cases of a file. See `Reader.read` for image paths and errors."""
    return reader_named(format).read(file, images, on_error)


def check(
    format: str,
    file: str | Path,
    images: str | Path | None = None,
    *,
    progress: Progress = no_progress,
    keep: int = KEPT_PROBLEMS,
) -> DataReport:
    """Check a file and its images. See `check_file`; without `images` no image is opened."""
    return check_file(reader_named(format), file, images, progress=progress, keep=keep)
