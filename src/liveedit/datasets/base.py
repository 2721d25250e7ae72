"""The base of all annotation readers: open the file, read rows field by field, report problems.

A format is a function from a `Row` to an `EditCase`, wrapped in a `Reader`. The function gets the fields of the row
(`row.prompt("src")`, `row.image("image")`, ...). For a field that is missing or of the wrong type the row records a
problem and returns a placeholder, so that one pass finds all problems of a row. `Reader.read` raises the first problem
or passes all of them to a callback.

Rows of a JSON list are counted from 0, as in the list; rows of JSON Lines and CSV are named by their line.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from ..errors import DatasetError
from ..samples import EditCase
from .row_files import CsvCell, JsonNumber, RawRow, from_json, load_rows, shown

_INVISIBLE: Final = str.maketrans("", "", "\ufeff\u200b")
"""Byte-order marks and zero-width spaces, which some text questions of the published files contain."""

_MISSING: Final = object()


class RowError(DatasetError):
    """A problem of an annotation file, with its row (counted from 0), its line (from 1) and its key.

    `row` is None for a problem of the whole file, `key` for one of the whole row, `line` in a JSON list.
    """

    def __init__(self, file: Path, row: int | None, key: str | None, reason: str, line: int | None = None) -> None:
        super().__init__(file, row, key, reason, line)
        self.file = file
        self.row = row
        self.key = key
        self.reason = reason
        self.line = line

    def __str__(self) -> str:
        where = str(self.file)
        if self.line is not None:
            where += f", line {self.line}"
        elif self.row is not None:
            where += f", row {self.row} (counted from 0)"
        if self.key is not None:
            where += f", key {self.key!r}"
        return f"{where}: {self.reason}"


OnError = Callable[[RowError], None]


def fold(text: str) -> str:
    """Remove invisible marks, replace runs of white space by one space, and strip both ends."""
    return " ".join(text.translate(_INVISIBLE).split())


@dataclass
class Row:
    """One row of an annotation file, read field by field.

    An accessor records a missing key or a wrong type in `problems` and returns a placeholder; the case of such a row is
    discarded. `images` collects each image with its key, `empty` the keys with blank text, `used` the keys that were
    read.
    """

    file: Path
    index: int
    values: Mapping[str, Any]
    images_dir: Path
    line: int | None = None
    prefix: str = ""
    problems: list[RowError] = field(default_factory=list)
    images: list[tuple[str, Path]] = field(default_factory=list)
    empty: list[str] = field(default_factory=list)
    used: set[str] = field(default_factory=set)

    @property
    def name(self) -> str:
        """The row's `id` if it has one, otherwise the file's stem and the row number."""
        given = self.optional_answer("id")
        return given or f"{self.file.stem}-{self.index}"

    @property
    def place(self) -> str:
        """Where the row is: "line 3", or "row 2" of a JSON list."""
        return f"row {self.index}" if self.line is None else f"line {self.line}"

    def has(self, key: str) -> bool:
        """Whether the key exists and is not null."""
        self.used.add(key)
        return self.values.get(key) is not None

    def prompt(self, key: str, *, drop_prefix: str = "") -> str:
        """A question, normalised by `fold`; `drop_prefix` is removed from its start, in any case of letters."""
        text = fold(self._string(key, "a question"))
        if drop_prefix and text.lower().startswith(drop_prefix.lower()):
            text = text[len(drop_prefix) :].lstrip()
        return self._noting_empty(key, text)

    def verbatim(self, key: str) -> str:
        """A text as it is in the file, white space included."""
        return self._noting_empty(key, self._string(key, "a text"))

    def passage(self, key: str) -> str:
        """Running text that the model continues: as it is in the file, without the white space at its ends."""
        return self._noting_empty(key, self._string(key, "a text to continue").strip())

    def passages(self, key: str) -> tuple[str, ...]:
        """A list of such texts without the blank ones; empty if the key is absent or null."""
        given = self.texts(key)
        if any(isinstance(text, JsonNumber) for text in given):
            self._wrong(key, list(given), "a list of texts")
        return tuple(text.strip() for text in given if text.strip())

    def answer(self, key: str) -> str:
        """An answer as exact text: strings untouched, numbers as written, `true` and `false` as in JSON.

        Nothing is trimmed or normalised, because the model is compared with the answer character by character: the
        trailing blanks of many E-IC captions are kept.
        """
        value = self._value(key)
        if value is _MISSING:
            return ""
        if isinstance(value, bool):
            return "true" if value else "false"
        if isinstance(value, str):
            return self._noting_empty(key, self._encodable(key, str(value)))
        self._wrong(key, value, 'text, a number, true or false (an answer such as "2" or 2)')
        return ""

    def optional_answer(self, key: str) -> str | None:
        """As `answer`; None if the key is absent or null."""
        return self.answer(key) if self.has(key) else None

    def nullable_answer(self, key: str) -> str | None:
        """As `answer`; the key is required but may be null, for labels that are not used in measurements."""
        if self.values.get(key, _MISSING) is None:
            self.used.add(key)
            return None
        return self.answer(key)

    def optional_text(self, key: str) -> str | None:
        """A normalised string; None if the key is absent, null or blank."""
        return (fold(self._string(key, "text or null")) or None) if self.has(key) else None

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of strings; empty if the key is absent or null."""
        if not self.has(key):
            return ()
        value = self.parsed(key)
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            self._wrong(key, value, "a list of texts")
            return ()
        return tuple(self._encodable(key, item) for item in value)

    def image(self, key: str) -> Path:
        """An image's path, resolved against the image folder. The file is not opened."""
        text = self._string(key, "the path of an image")
        if not text.strip():
            given = self.values.get(key)
            if isinstance(given, str) and not given.strip():  # Otherwise the problem is recorded already.
                self.empty.append(self._full(key))
                self.problem(key, "is empty. Give the path of an image, relative to the image folder.")
            return self.images_dir
        path = self.images_dir / text
        self.images.append((self._full(key), path))
        return path

    def optional_image(self, key: str) -> Path | None:
        """As `image`; None if the key is absent or null."""
        return self.image(key) if self.has(key) else None

    def child(self, key: str) -> Row:
        """An object as a row, with keys reported as `key.inner`; a row without keys if it is missing or no object."""
        value = self._value(key)
        value = value if value is _MISSING else self.parsed(key)
        if value is not _MISSING and not isinstance(value, dict):
            self._wrong(key, value, "an object")
        return self.inner(key, value if isinstance(value, dict) else {})

    def children(self, key: str) -> list[Row]:
        """The objects of a list as rows, with keys reported as `key[0].inner`; empty if absent or null."""
        if not self.has(key):
            return []
        value = self.parsed(key)
        if not isinstance(value, list):
            self._wrong(key, value, "a list of objects")
            return []
        rows = []
        for position, item in enumerate(value):
            label = f"{key}[{position}]"
            if not isinstance(item, dict):
                self._wrong(label, item, "an object")
                continue
            rows.append(self.inner(label, item))
        return rows

    def problem(self, key: str | None, reason: str) -> None:
        """Record a problem at `key`."""
        self.problems.append(RowError(self.file, self.index, key and self._full(key), reason, self.line))

    def inner(self, label: str, values: Mapping[str, Any]) -> Row:
        """Values inside of this row as a row, with keys reported as `label.key`."""
        # The lists are shared: problems of a child are problems of this row.
        lists = self.problems, self.images, self.empty
        return Row(self.file, self.index, values, self.images_dir, self.line, f"{self.prefix}{label}.", *lists)

    def parsed(self, key: str) -> Any:
        """The value of a key that is there; what a cell holds as JSON, if it does."""
        value = self.values[key]
        if isinstance(value, CsvCell):
            try:
                return from_json(value)
            except (ValueError, RecursionError):
                return value
        return value

    def _full(self, key: str) -> str:
        return f"{self.prefix}{key}"

    def _value(self, key: str) -> Any:
        self.used.add(key)
        value = self.values.get(key, _MISSING)
        if value is _MISSING:
            self.problem(key, f"is missing; the row has {_listed(self.values)}. Add the key.")
        return value

    def _string(self, key: str, wanted: str) -> str:
        value = self._value(key)
        if isinstance(value, str) and not isinstance(value, JsonNumber):
            return self._encodable(key, value)
        if value is not _MISSING:
            self._wrong(key, value, wanted)
        return ""

    def _encodable(self, key: str, text: str) -> str:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            self.problem(key, f"holds half a character ({error.reason}). Write the text as UTF-8.")
            return ""
        return text

    def _noting_empty(self, key: str, text: str) -> str:
        if not text.strip():
            self.empty.append(self._full(key))
        return text

    def _wrong(self, key: str, value: Any, wanted: str) -> None:
        written = " as JSON" if isinstance(value, CsvCell) else ""
        self.problem(key, f"holds {shown(value)}. Give {wanted}{written}.")


@dataclass(frozen=True)
class Reader:
    """One annotation format: its name, a description in one line, and the function from a row to a case.

    row_of: the way back, from a case to a row with its edit, its rephrasings (text_generality) and its locality probes;
    images are written as paths. None if the format is only read.
    """

    name: str
    about: str
    case: Callable[[Row], EditCase]
    row_of: Callable[[EditCase], dict[str, Any]] | None = None

    def read(
        self, file: str | Path, images: str | Path | None = None, on_error: OnError | None = None
    ) -> tuple[EditCase, ...]:
        """All cases of a file, in its order.

        images: the folder of the images, by default that of the file; no image is opened. on_error: called with every
        problem; the valid rows are returned, for broken JSON those before the break. Without it, the first problem is
        raised as a `RowError`, a `DatasetError` with file, row and key. A file that is missing or is not text raises
        `DatasetError` in both cases.
        """
        if on_error is None:
            on_error = _raise
        return tuple(case for _, case in self.rows(file, images, on_error) if case is not None)

    def rows(
        self, file: str | Path, images: str | Path | None, on_error: OnError
    ) -> Iterator[tuple[Row, EditCase | None]]:
        """Each row with its case, or with None if the row has a problem."""
        file = Path(file)
        images_dir = file.parent if images is None else Path(images)
        first_with: dict[str, Row] = {}
        for raw in load_rows(file):
            if raw.problem is not None and raw.line is None:  # The end of what can be read; no row of its own.
                on_error(RowError(file, raw.index, None, raw.problem))
                return
            values = raw.value if isinstance(raw.value, dict) else {}
            row = Row(file, raw.index or 0, values, images_dir, raw.line)
            case = self._build(row, raw, first_with)
            for problem in row.problems:
                on_error(problem)
            yield row, None if row.problems else case

    def _build(self, row: Row, raw: RawRow, first_with: dict[str, Row]) -> EditCase | None:
        if raw.problem is not None:
            row.problem(None, raw.problem)
            return None
        if not isinstance(raw.value, dict):
            row.problem(None, f"is {shown(raw.value)}. Every row is a JSON object.")
            return None
        case = self.case(row)
        if case.follows is not None and case.follows not in first_with:
            row.problem("follows", f"{case.follows!r} is no id of an earlier row. Put the case that it follows first.")
        first = first_with.setdefault(case.id, row)
        if first is not row:
            # Reports and the store identify a case by its id.
            row.problem("id", f"{case.id!r} is already the id of {first.place}. Make the ids distinct.")
        return case


def _raise(error: RowError) -> None:
    raise error


def _listed(values: Mapping[str, Any]) -> str:
    return ", ".join(map(repr, values)) if values else "no keys"
