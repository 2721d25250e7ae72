"""Tables of text, as Markdown, LaTeX and for the console."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import rich.table
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions
from rich.text import Text

_LATEX: Final = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "–": "--",
        "±": r"$\pm$",
        "[": "{[}",  # at the start of a row, "\\ [" would read as the height of the line before
        "]": "{]}",
    }
    | {character: f"\\{character}" for character in "&%$#_{}"}
)
_MARKDOWN: Final = str.maketrans(
    {character: f"\\{character}" for character in "\\|*_`[]"} | {"<": "&lt;", ">": "&gt;", "\n": " "}
)


@dataclass(frozen=True, slots=True)
class Table:
    """A table of texts, which a rich console prints.

    The first `text_columns` columns are left-aligned, the others, numbers, right-aligned. The first `key_columns` say
    what a row is about: a console too narrow for all columns shows them again in each part of the table.
    """

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()
    text_columns: int = 1
    key_columns: int = 1

    def markdown(self) -> str:
        """The table with its title as a heading and its notes as a list."""
        rule = [":--" if i < self.text_columns else "--:" for i in range(len(self.header))]
        lines = [
            f"## {markdown_text(self.title)}",
            "",
            _bars(map(markdown_text, self.header)),
            _bars(rule),
            *(_bars(map(markdown_text, row)) for row in self.rows),
            "",
            *(f"- {markdown_text(note)}" for note in self.notes),
        ]
        return "\n".join(lines).rstrip() + "\n"

    def latex(self) -> str:
        """A `table` with a plain `tabular` and rules of the booktabs package; the notes are below it."""
        columns = "".join("l" if i < self.text_columns else "r" for i in range(len(self.header)))
        lines = [
            "\\begin{table}",
            "\\centering",
            f"\\caption{{{latex_text(self.title)}}}",
            f"\\begin{{tabular}}{{{columns}}}",
            "\\toprule",
            _ampersands(self.header),
            "\\midrule",
            *map(_ampersands, self.rows),
            "\\bottomrule",
            "\\end{tabular}",
            *(f"\\par{{\\footnotesize {latex_text(note)}}}" for note in self.notes),
            "\\end{table}",
        ]
        return "\n".join(lines) + "\n"

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[rich.table.Table]:
        """The table for the console, in several parts below each other if it is narrow."""
        return _parts_of(self, options.max_width)


# -- for the console -----------------------------------------------------------------------------------

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


def _parts_of(table: Table, most: int) -> Iterator[rich.table.Table]:
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


# -- characters ------------------------------------------------------------------------------------------


def markdown_text(text: str) -> str:
    """The text with the special characters of Markdown escaped."""
    return text.translate(_MARKDOWN)


def latex_text(text: str) -> str:
    """The text with the special characters of LaTeX escaped."""
    return text.translate(_LATEX)


def _bars(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _ampersands(cells: Iterable[str]) -> str:
    return f"{' & '.join(map(latex_text, cells))} \\\\"
