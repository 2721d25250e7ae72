"""What every annotation reader shares: opening the file, looking at one row, naming what is wrong with it.

A format is a function from a `Row` to an `EditCase`, wrapped in a `Reader`. The function asks the row for
its fields (`row.prompt("src")`, `row.image("image")`, ...); the row notes what is missing or of the wrong
type and hands back a stand-in, so one pass over a row finds everything that is wrong with it. Whether the
first finding is raised or all of them are collected is decided once, in `Reader.read`.

Rows are counted from 0 everywhere, as in the JSON list.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from ..errors import DatasetError
from ..samples import EditCase

_INVISIBLE: Final = str.maketrans("", "", "\ufeff\u200b")
"""Byte-order marks and zero-width spaces, which the text questions of the real files carry here and there."""

_MISSING: Final = object()


class RowError(DatasetError):
    """Something wrong with an annotation file: in which row (counted from 0), at which key.

    `row` is None where the file as a whole is meant, `key` where the whole row is.
    """

    def __init__(self, file: Path, row: int | None, key: str | None, reason: str) -> None:
        super().__init__(file, row, key, reason)
        self.file = file
        self.row = row
        self.key = key
        self.reason = reason

    def __str__(self) -> str:
        where = str(self.file)
        if self.row is not None:
            where += f", row {self.row} (counted from 0)"
        if self.key is not None:
            where += f", key {self.key!r}"
        return f"{where}: {self.reason}"


OnError = Callable[[RowError], None]


class JsonNumber(str):
    """A number exactly as it is written in the file, so that `2.50` and `1e3` survive as answers."""

    __slots__ = ()


def fold(text: str) -> str:
    """A prompt with every run of white space as one space, none at the ends, and no invisible marks."""
    return " ".join(text.translate(_INVISIBLE).split())


@dataclass
class Row:
    """One row of an annotation file, asked for its fields one by one.

    Every accessor notes a missing key or a wrong type in `problems` and returns a stand-in; the case that is
    built from such a row is thrown away. `images` collects each image with the key that named it, `empty`
    the keys whose text was blank, `used` the keys that were asked for.
    """

    file: Path
    index: int
    values: Mapping[str, Any]
    images_dir: Path
    prefix: str = ""
    problems: list[RowError] = field(default_factory=list)
    images: list[tuple[str, Path]] = field(default_factory=list)
    empty: list[str] = field(default_factory=list)
    used: set[str] = field(default_factory=set)

    @property
    def name(self) -> str:
        """The row's own `id` where it has one, otherwise the file's stem and the row number."""
        given = self.optional_answer("id")
        return given or f"{self.file.stem}-{self.index}"

    def has(self, key: str) -> bool:
        """Whether the key is there and is not null."""
        self.used.add(key)
        return self.values.get(key) is not None

    def prompt(self, key: str, *, drop_prefix: str = "") -> str:
        """A question, folded (see `fold`); `drop_prefix` is taken off its start, in any case of letters."""
        text = fold(self._string(key, "a question"))
        if drop_prefix and text.lower().startswith(drop_prefix.lower()):
            text = text[len(drop_prefix) :].lstrip()
        return self._noting_empty(key, text)

    def answer(self, key: str) -> str:
        """An answer as exact text: strings untouched, numbers as written, `true` and `false` as in JSON.

        An answer is what the model is held to, character by character, so nothing is trimmed or folded: the
        trailing blanks of many E-IC captions are still there.
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
        """As `answer`; None where the key is absent or null."""
        return self.answer(key) if self.has(key) else None

    def nullable_answer(self, key: str) -> str | None:
        """As `answer`; the key must be there but may be null, for labels that nothing is measured against."""
        if self.values.get(key, _MISSING) is None:
            self.used.add(key)
            return None
        return self.answer(key)

    def optional_text(self, key: str) -> str | None:
        """A folded string; None where the key is absent, null or blank."""
        return (fold(self._string(key, "text or null")) or None) if self.has(key) else None

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of strings; empty where the key is absent or null."""
        if not self.has(key):
            return ()
        value = self.values[key]
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            self._wrong(key, value, "a list of texts")
            return ()
        return tuple(value)

    def image(self, key: str) -> Path:
        """An image's path, resolved against the image folder. Nothing is opened or looked for."""
        text = self._string(key, "the path of an image")
        if not text.strip():
            given = self.values.get(key)
            if isinstance(given, str) and not given.strip():  # Otherwise the problem is noted already.
                self.empty.append(self._full(key))
                self.problem(key, "is empty. Give the path of an image, relative to the image folder.")
            return self.images_dir
        path = self.images_dir / text
        self.images.append((self._full(key), path))
        return path

    def optional_image(self, key: str) -> Path | None:
        """As `image`; None where the key is absent or null."""
        return self.image(key) if self.has(key) else None

    def children(self, key: str) -> list[Row]:
        """The objects of a list as rows, with keys reported as `key[0].inner`; absent or null is none."""
        if not self.has(key):
            return []
        value = self.values[key]
        if not isinstance(value, list):
            self._wrong(key, value, "a list of objects")
            return []
        rows = []
        for position, item in enumerate(value):
            label = f"{key}[{position}]"
            if not isinstance(item, dict):
                self._wrong(label, item, "an object")
                continue
            # The lists are shared: what is found in a child is found in this row.
            rows.append(
                Row(
                    self.file,
                    self.index,
                    item,
                    self.images_dir,
                    f"{self.prefix}{label}.",
                    self.problems,
                    self.images,
                    self.empty,
                )
            )
        return rows

    def problem(self, key: str | None, reason: str) -> None:
        """Note that something is wrong at `key`."""
        self.problems.append(RowError(self.file, self.index, key and self._full(key), reason))

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
        self.problem(key, f"holds {_shown(value)}. Give {wanted}.")


@dataclass(frozen=True)
class Reader:
    """One annotation format: its name, what it is, and how a row of it becomes a case."""

    name: str
    about: str
    case: Callable[[Row], EditCase]

    def read(
        self, file: str | Path, images: str | Path | None = None, on_error: OnError | None = None
    ) -> tuple[EditCase, ...]:
        """All cases of a file, in its order.

        Image paths are resolved against `images`, or against the file's own folder where that is None; no
        image is opened. Without `on_error` the first problem is raised as a `RowError` (a `DatasetError`
        with file, row and key). With it, every problem is handed over and the good rows are returned, among
        them the rows before the place where broken JSON breaks off. A file that is missing or is no text is
        a `DatasetError` in any case.
        """
        if on_error is None:
            on_error = _raise
        return tuple(case for _, case in self.rows(file, images, on_error) if case is not None)

    def rows(
        self, file: str | Path, images: str | Path | None, on_error: OnError
    ) -> Iterator[tuple[Row, EditCase | None]]:
        """Each row with its case, or with None where something is wrong with it."""
        file = Path(file)
        values, broken = load_rows(file)
        images_dir = file.parent if images is None else Path(images)
        first_with: dict[str, int] = {}
        for index, value in enumerate(values):
            row = Row(file, index, value if isinstance(value, dict) else {}, images_dir)
            case = self._build(row, value, first_with)
            for problem in row.problems:
                on_error(problem)
            yield row, None if row.problems else case
        if broken is not None:
            on_error(broken)

    def _build(self, row: Row, value: Any, first_with: dict[str, int]) -> EditCase | None:
        if not isinstance(value, dict):
            row.problem(None, f"is {_shown(value)}. Every row is a JSON object.")
            return None
        case = self.case(row)
        first = first_with.setdefault(case.id, row.index)
        if first != row.index:
            # Reports and the expert store address a case by its id.
            row.problem("id", f"{case.id!r} is already the id of row {first}. Make the ids distinct.")
        return case


def load_rows(file: Path) -> tuple[list[Any], RowError | None]:
    """The rows of a JSON list; where it is broken, the rows before the break and what is wrong there.

    Numbers come as `JsonNumber`. Raises `DatasetError` where the file is missing or is not UTF-8 text.
    """
    text = _read_text(file)
    decoder = json.JSONDecoder(parse_int=JsonNumber, parse_float=JsonNumber)
    try:
        rows = decoder.decode(text)
    except json.JSONDecodeError as error:
        return _rows_before_break(file, text, decoder, error)
    except RecursionError:
        return [], RowError(file, None, None, "is nested too deeply. Give a JSON list of objects.")
    if not isinstance(rows, list):
        return [], RowError(file, None, None, f"holds {_shown(rows)}. Give a JSON list of objects.")
    return rows, None


def _read_text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise DatasetError(f"{file} does not exist. Give the path of an annotation file.") from error
    except UnicodeDecodeError as error:
        raise DatasetError(
            f"{file} is not UTF-8 text (byte {error.start}: {error.reason}). Give a JSON file."
        ) from error
    except (OSError, ValueError) as error:
        # ValueError: a path with a zero byte.
        raise DatasetError(f"{file} cannot be read ({error}). Give the path of a JSON file.") from error


def _rows_before_break(
    file: Path, text: str, decoder: json.JSONDecoder, error: json.JSONDecodeError
) -> tuple[list[Any], RowError]:
    """Decode row by row up to the break, so that the message can name the row."""
    reason = f"is not valid JSON at line {error.lineno}, column {error.colno} ({error.msg})."
    if not text.strip():
        return [], RowError(file, None, None, "is empty. Give a JSON list of objects.")
    rows: list[Any] = []
    position = _skip_blanks(text, 0)
    if text[position] != "[":
        return [], RowError(file, None, None, f"{reason} Give one JSON list of objects.")
    try:
        while True:
            row, position = decoder.raw_decode(text, _skip_blanks(text, position + 1))
            rows.append(row)
            position = _skip_blanks(text, position)
            if text[position : position + 1] != ",":
                break
    except (json.JSONDecodeError, RecursionError):
        pass
    whole = text[position : position + 1] == "]"
    advice = f"The {len(rows)} rows before it are whole. Repair the file or fetch it again."
    return rows, RowError(file, None if whole else len(rows), None, f"{reason} {advice}")


def _skip_blanks(text: str, position: int) -> int:
    while position < len(text) and text[position] in " \t\r\n":
        position += 1
    return position


def _raise(error: RowError) -> None:
    raise error


def _listed(values: Mapping[str, Any]) -> str:
    return ", ".join(map(repr, values)) if values else "no keys"


def _shown(value: Any) -> str:
    """A value as a person would look for it in the file, with its JSON type, cut short."""
    kinds = {dict: "an object", list: "a list", bool: "a boolean", float: "no number", type(None): "null"}
    kind = "a number" if isinstance(value, JsonNumber) else kinds.get(type(value), "text")
    text = value if isinstance(value, JsonNumber) else json.dumps(value)
    text = text if len(text) <= 60 else f"{text[:57]}..."
    return kind if value is None else f"{kind} ({text})"
