"""The rows of a file, read and written: JSON Lines (.jsonl), CSV (.csv), or a JSON list (any other name).

In CSV, a cell is text. A list or an object is written as JSON in its cell; an empty cell means that the row lacks the
key.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TextIO

from ..errors import DatasetError
from ..files import written_atomically

ROW_SUFFIXES: Final = (".jsonl", ".csv", ".json")
"""How the names of files of rows end."""


class JsonNumber(str):
    """A number as it is written in the file, so that `2.50` and `1e3` are kept as answers."""

    __slots__ = ()


class CsvCell(str):
    """The text of a cell. If a list or an object is expected, it is read as JSON."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class RawRow:
    """A row as it is in its file, or what is wrong there.

    index: counted from 0; None for a problem of the whole file. line: where the row begins, counted from 1; None in a
    JSON list. problem: why there is no value.
    """

    index: int | None
    value: Any = None
    line: int | None = None
    problem: str | None = None


def load_rows(file: Path) -> Iterator[RawRow]:
    """The rows of a file. Numbers are `JsonNumber`, cells `CsvCell`.

    After a break in a JSON list or in the quotes of a CSV file nothing more can be read. Raises `DatasetError` if the
    file is missing or is not UTF-8 text.
    """
    text = _read_text(file)
    suffix = file.suffix.lower()
    return _json_lines(text) if suffix == ".jsonl" else _csv_rows(text) if suffix == ".csv" else _json_list(text)


def write_rows(file: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows, all or none, in the form that the name of the file says. The columns of CSV are those of all rows."""
    with (
        written_atomically(file, durable=True) as temporary,
        temporary.open("w", encoding="utf-8", newline="") as stream,
    ):
        if file.suffix.lower() == ".csv":
            _write_csv(stream, rows)
            return
        texts = [json.dumps(row, ensure_ascii=False) for row in rows]
        if file.suffix.lower() == ".jsonl":
            stream.writelines(f"{text}\n" for text in texts)
        else:
            stream.write("[\n" + ",\n".join(texts) + "\n]\n")


def from_json(text: str) -> Any:
    """The value of a JSON text. Raises `ValueError` or `RecursionError`."""
    return _DECODER.decode(text)


def shown(value: Any) -> str:
    """A value for messages, as in the file but cut short, with its JSON type."""
    kinds = {dict: "an object", list: "a list", bool: "a boolean", float: "no number", type(None): "null"}
    kind = "a number" if isinstance(value, JsonNumber) else kinds.get(type(value), "text")
    text = value if isinstance(value, JsonNumber) else json.dumps(value)
    text = text if len(text) <= 60 else f"{text[:57]}..."
    return kind if value is None else f"{kind} ({text})"


_DECODER: Final = json.JSONDecoder(parse_int=JsonNumber, parse_float=JsonNumber)


def _read_text(file: Path) -> str:
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            return stream.read()
    except FileNotFoundError as error:
        raise DatasetError(f"{file} does not exist. Give the path of an annotation file.") from error
    except UnicodeDecodeError as error:
        raise DatasetError(
            f"{file} is not UTF-8 text (byte {error.start}: {error.reason}). Give a JSON, JSON Lines or CSV file."
        ) from error
    except (OSError, ValueError) as error:
        # ValueError: a path with a zero byte.
        raise DatasetError(f"{file} cannot be read ({error}). Give the path of a JSON, JSON Lines or CSV file.") from (
            error
        )


# -- JSON Lines ------------------------------------------------------------------------------------------------


def _json_lines(text: str) -> Iterator[RawRow]:
    index = 0
    for line, content in enumerate(text.split("\n"), 1):  # Other ends of lines may stand inside of a string.
        if not content.strip():
            continue
        try:
            yield RawRow(index, from_json(content), line)
        except json.JSONDecodeError as error:
            yield RawRow(index, None, line, f"is not valid JSON at column {error.colno} ({error.msg}).")
        except RecursionError:
            yield RawRow(index, None, line, "is nested too deeply. Give a JSON object.")
        index += 1


# -- CSV -------------------------------------------------------------------------------------------------------


def _csv_rows(text: str) -> Iterator[RawRow]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    names: list[str] | None = None
    index, line = 0, 1
    try:
        for cells in reader:
            if cells and names is None:
                names = cells
                if len(set(names)) < len(names):
                    yield RawRow(None, problem=f"has the column names {', '.join(names)}. Give each name once.")
                    return
            elif cells and names is not None:
                yield _csv_row(index, line, names, cells)
                index += 1
            line = reader.line_num + 1
    except csv.Error as error:
        advice = "Quote cells with commas, quotes or line breaks, and double the quotes in them."
        yield RawRow(index, None, line, f"cannot be read, nor can the lines after it ({error}). {advice}")


def _csv_row(index: int, line: int, names: list[str], cells: list[str]) -> RawRow:
    if len(cells) != len(names):
        advice = "Leave the cell of a missing value empty, and quote cells with commas."
        return RawRow(index, None, line, f"has {len(cells)} cells, and the first line names {len(names)}. {advice}")
    return RawRow(index, {name: CsvCell(cell) for name, cell in zip(names, cells, strict=True) if cell}, line)


def _write_csv(stream: TextIO, rows: Sequence[Mapping[str, Any]]) -> None:
    names = list(dict.fromkeys(name for row in rows for name in row))
    writer = csv.writer(stream)
    writer.writerow(names)
    writer.writerows([_cell(row.get(name)) for name in names] for row in rows)


def _cell(value: Any) -> str:
    if isinstance(value, str):
        return value
    return "" if value is None or value == [] else json.dumps(value, ensure_ascii=False)


# -- a JSON list -----------------------------------------------------------------------------------------------


def _json_list(text: str) -> Iterator[RawRow]:
    """The rows of a JSON list; for broken JSON, the rows before the break and the problem."""
    try:
        values = from_json(text)
    except json.JSONDecodeError as error:
        yield from _rows_before_break(text, error)
        return
    except RecursionError:
        yield RawRow(None, problem="is nested too deeply. Give a JSON list of objects.")
        return
    if not isinstance(values, list):
        yield RawRow(None, problem=f"holds {shown(values)}. Give a JSON list of objects.")
        return
    yield from (RawRow(index, value) for index, value in enumerate(values))


def _rows_before_break(text: str, error: json.JSONDecodeError) -> Iterator[RawRow]:
    """Decode row by row up to the break, to find out in which row it is."""
    reason = f"is not valid JSON at line {error.lineno}, column {error.colno} ({error.msg})."
    if not text.strip():
        yield RawRow(None, problem="is empty. Give a JSON list of objects.")
        return
    position = _skip_blanks(text, 0)
    if text[position] != "[":
        yield RawRow(None, problem=f"{reason} Give one JSON list of objects.")
        return
    index = 0
    try:
        while True:
            value, position = _DECODER.raw_decode(text, _skip_blanks(text, position + 1))
            yield RawRow(index, value)
            index += 1
            position = _skip_blanks(text, position)
            if text[position : position + 1] != ",":
                break
    except (json.JSONDecodeError, RecursionError):
        pass
    whole = text[position : position + 1] == "]"
    advice = f"The {index} rows before it are whole. Repair the file or fetch it again."
    yield RawRow(None if whole else index, problem=f"{reason} {advice}")


def _skip_blanks(text: str, position: int) -> int:
    while position < len(text) and text[position] in " \t\r\n":
        position += 1
    return position
