"""Tables on a console: words stay whole, and a table that is too wide goes on below itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import rich.table
from rich.cells import cell_len
from rich.text import Text

if TYPE_CHECKING:
    from .table import Table

_WIDEST: Final = 40
"""Words and numbers of more characters are broken."""


@dataclass(frozen=True, slots=True)
class _Column:
    """A column with its widths in characters: the least one, which breaks no word, and the one that breaks no line."""

    header: str
    cells: tuple[str, ...]
    is_text: bool
    least: int
    natural: int

    @classmethod
    def of(cls, header: str, cells: tuple[str, ...], is_text: bool) -> _Column:
        lines = [line for cell in cells for line in cell.split("\n")]
        words = [word for line in lines for word in line.split()] if is_text else lines
        least = min(_WIDEST, max(map(cell_len, (*header.split(), *words)), default=0))
        natural = max(map(cell_len, (header, *lines))) if is_text else least
        return cls(header, cells, is_text, least, max(least, natural))


def parts_of(table: Table, most: int) -> Iterator[rich.table.Table]:
    """The table for a console of `most` characters, in one part or in several, each with the key columns.

    The figures of a cell stand in one line if there is room for that in all columns, otherwise below each other.
    """
    columns = _columns(table, " / ")
    if _width([column.least for column in columns]) > most:
        columns = _columns(table, " /\n")
    parts = _split(columns, table.key_columns, most)
    for number, part in enumerate(parts):
        last = number == len(parts) - 1
        caption = Text("\n".join(table.notes)) if last and table.notes else None
        found = rich.table.Table(title=None if number else Text(table.title), caption=caption)
        for column, width in zip(part, _widths(part, most), strict=True):
            side = "left" if column.is_text else "right"
            found.add_column(Text(column.header), justify=side, overflow="fold", width=width)
        for cells in zip(*(column.cells for column in part), strict=True):
            found.add_row(*map(Text, cells))
        yield found


def _columns(table: Table, between: str) -> list[_Column]:
    """The columns, with `between` between the figures of a cell."""
    count = table.text_columns
    cells = list(zip(*table.rows, strict=True)) or [()] * len(table.header)
    return [
        _Column.of(header, own if i < count else tuple(cell.replace(" / ", between) for cell in own), i < count)
        for i, (header, own) in enumerate(zip(table.header, cells, strict=True))
    ]


def _split(columns: Sequence[_Column], keys: int, most: int) -> list[list[_Column]]:
    """The columns of each part: the key columns, and as many of the others as fit, one at least."""
    lead, further = list(columns[:keys]), columns[keys:]
    parts = [list(lead)]
    for column in further:
        wider = [*parts[-1], column]
        if len(wider) == keys + 1 or _width([one.least for one in wider]) <= most:
            parts[-1] = wider
        else:
            parts.append([*lead, column])
    return parts


def _widths(columns: Sequence[_Column], most: int) -> list[int]:
    """The least widths; the room that is left goes to columns of texts, in proportion to what they lack."""
    lacking = [column.natural - column.least for column in columns]
    room = max(0, min(sum(lacking), most - _width([column.least for column in columns])))
    total = max(1, sum(lacking))
    return [column.least + room * lack // total for column, lack in zip(columns, lacking, strict=True)]


def _width(columns: Sequence[int]) -> int:
    """Characters of a table with columns of these widths: padding on both sides, and borders."""
    return 1 + sum(column + 3 for column in columns)
