"""Tables of text, as Markdown, LaTeX and for the console."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

import rich.table
from rich.console import Console, ConsoleOptions

from .console_table import parts_of

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
        return parts_of(self, options.max_width)


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
