"""Check an annotation file and its images before a long run uses them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..errors import DatasetError, ImageError
from ..images import open_image
from ..progress import Progress, no_progress
from ..samples import EditCase
from .base import Reader, Row, RowError

KEPT_PROBLEMS = 100
"""Default number of problems that a report keeps; all are counted."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One problem: its row (counted from 0; None: the whole file), its key, the reason, and its line (None: a JSON
    list)."""

    file: str
    row: int | None
    key: str | None
    message: str
    line: int | None = None

    def __str__(self) -> str:
        return str(RowError(Path(self.file), self.row, self.key, self.message, self.line))


@dataclass(frozen=True)
class DataReport:
    """What `check` found. Counts of images are counts of distinct files."""

    format: str
    file: str
    images_dir: str | None
    """Where images were looked for; None: they were not checked."""
    rows: int
    rows_read: int
    """Rows without a problem of their own; images do not count here."""
    unique_images: int
    shared_images: int
    """Images that more than one row names."""
    missing_images: int | None
    """Images that do not exist; None: not checked."""
    unreadable_images: int | None
    """Images that exist and cannot be opened; None: not checked."""
    empty_fields: Mapping[str, int]
    """For each key, in how many rows its text is blank."""
    unused_keys: Mapping[str, int]
    """Keys that the format does not know, with the number of rows that have them."""
    probes: Mapping[str, int]
    answer_types: Mapping[str, int]
    problem_count: int
    problems: tuple[Problem, ...] = ()
    """The first of the problems, in the order of the file; `problem_count` counts all of them."""

    @property
    def ok(self) -> bool:
        """Whether there is no problem. Empty fields and unused keys are no problems."""
        return self.problem_count == 0

    def to_dict(self) -> dict[str, Any]:
        """The report as plain JSON values, in the order of the fields, with `ok`."""
        return {**asdict(self), "problems": [asdict(problem) for problem in self.problems], "ok": self.ok}


@dataclass
class _ImageUse:
    row: Row
    key: str
    used_by: set[int] = field(default_factory=set)


@dataclass
class _Problems:
    keep: int
    count: int = 0
    kept: list[Problem] = field(default_factory=list)

    def add(self, error: RowError) -> None:
        self.count += 1
        if len(self.kept) < self.keep:
            self.kept.append(Problem(str(error.file), error.row, error.key, error.reason, error.line))


def check_file(
    reader: Reader,
    file: str | Path,
    images: str | Path | None = None,
    *,
    progress: Progress = no_progress,
    keep: int = KEPT_PROBLEMS,
) -> DataReport:
    """Read every row and, if `images` is given, open every image once.

    All problems are counted and the first `keep` are kept: problems of rows first, then problems of images, each image
    once under the first row and key that name it. progress: images opened, and their total. Raises `DatasetError` only
    if the file or the image folder is missing, or if the file is not text.
    """
    if images is not None and not Path(images).is_dir():
        raise DatasetError(f"The image folder {str(images)!r} does not exist. Give an existing folder.")
    problems = _Problems(keep)
    uses: dict[Path, _ImageUse] = {}
    empty, unused, probes, types = Counter(), Counter(), Counter(), Counter()
    rows = rows_read = 0
    for row, case in reader.rows(file, images, problems.add):
        rows += 1
        _note_images(row, uses)
        empty.update(set(row.empty))
        unused.update(row.values.keys() - row.used)
        if case is not None:
            rows_read += 1
            _note_case(case, probes, types)
    missing = unreadable = None
    if images is not None:
        missing, unreadable = _open_all(Path(file), uses, problems, progress)
    return DataReport(
        format=reader.name,
        file=str(file),
        images_dir=None if images is None else str(images),
        rows=rows,
        rows_read=rows_read,
        unique_images=len(uses),
        shared_images=sum(len(image.used_by) > 1 for image in uses.values()),
        missing_images=missing,
        unreadable_images=unreadable,
        empty_fields=dict(empty),
        unused_keys=dict(unused),
        probes=dict(probes),
        answer_types=dict(types),
        problem_count=problems.count,
        problems=tuple(problems.kept),
    )


def _note_images(row: Row, uses: dict[Path, _ImageUse]) -> None:
    for key, path in row.images:
        uses.setdefault(path, _ImageUse(row, key)).used_by.add(row.index)


def _note_case(case: EditCase, probes: Counter[str], types: Counter[str]) -> None:
    probes.update(probe.name for probe in case.probes)
    types[case.answer_type] += 1


def _open_all(file: Path, uses: Mapping[Path, _ImageUse], problems: _Problems, progress: Progress) -> tuple[int, int]:
    """Open each image once; returns the number of missing ones and of those that exist but cannot be opened."""
    missing = unreadable = 0
    for done, (path, image) in enumerate(uses.items(), start=1):
        try:
            open_image(path)
        except ImageError as error:
            if _exists(path):
                unreadable += 1
            else:
                missing += 1
            rows = f" Named by {len(image.used_by)} rows." if len(image.used_by) > 1 else ""
            problems.add(RowError(file, image.row.index, image.key, f"{error}{rows}", image.row.line))
        progress(done, len(uses))
    return missing, unreadable


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:
        # A path that cannot be examined (name too long, folder without access) counts as missing.
        return False
