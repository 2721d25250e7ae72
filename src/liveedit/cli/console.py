"""Output of commands: results on standard output, progress and errors on standard error."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress
from rich.table import Table
from rich.text import Text

from ..progress import Progress, TaskProgress, no_progress

WIDTH_WITHOUT_TERMINAL = 180
_SECONDS_BETWEEN_LINES = 15.0


class InterruptedRunError(Exception):
    """A run was stopped by Ctrl-C; the message says how to go on."""


def console() -> Console:
    """Standard output. A file or a pipe gets wide lines, so that tables are not folded."""
    return Console(width=None if sys.stdout.isatty() else WIDTH_WITHOUT_TERMINAL)


def print_json(value: Mapping[str, Any]) -> None:
    """Print one JSON object on standard output."""
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def print_fields(fields: Mapping[str, object], title: str | None = None) -> None:
    """Print names and values, one per line. Values of None are left out, and fractions have four digits."""
    table = Table(title=title, show_header=False, box=None, title_justify="left")
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in fields.items():
        if value is not None:
            shown = four_digits(value) if isinstance(value, float) else str(value)
            table.add_row(name.replace("_", " "), Text(shown))
    console().print(table)


def four_digits(number: float) -> str:
    """A number for reading: four significant digits, and from 1,000 on no fraction."""
    return f"{number:,.0f}" if 999.95 <= abs(number) < 1e15 else f"{number:.4g}"


def counted(number: int, what: str) -> str:
    """The number and a noun, such as "1 edit" or "2 edits"."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def byte_size(count: float) -> str:
    """A number of bytes for reading, such as "12 bytes" or "3.4 MB"; 1 kB is 1,000 bytes."""
    if count < 1000:
        return f"{count:.0f} bytes"
    for unit in ("kB", "MB", "GB"):
        count /= 1000
        if count < 1000:
            return f"{count:.1f} {unit}"
    return f"{count / 1000:.1f} TB"


def complain(message: str) -> None:
    """Print an error in one line on standard error."""
    sys.stderr.write(f"Error: {' '.join(message.split())}\n")


def note(message: str) -> None:
    """Print a remark in one line on standard error."""
    sys.stderr.write(f"Note: {' '.join(message.split())}\n")


@contextmanager
def quiet(debug: bool) -> Iterator[None]:
    """Suppress the progress bars, notes and warnings of libraries, except with `debug`."""
    if debug:
        yield
        return
    for name, value in {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}.items():
        os.environ.setdefault(name, value)
    if "transformers" in sys.modules:  # It reads its environment when it is imported.
        logging.getLogger("transformers").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def load_quietly() -> None:
    """Import transformers and disable the bars that it shows while it loads weights."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()


def wait_without_spinning() -> None:
    """Let threads sleep while they wait for each other, unless OMP_WAIT_POLICY says otherwise. Call it before torch.

    In work of many small products threads mostly wait, and on a machine that does other work as well they would burn
    several times the processor time that the products take.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


@contextmanager
def resumable(what: str) -> Iterator[None]:
    """Turn Ctrl-C into a message that says how to continue."""
    try:
        yield
    except KeyboardInterrupt as error:
        raise InterruptedRunError(
            f"Interrupted. Run the same command again: {what} continues where it stopped."
        ) from error


@contextmanager
def spinner(text: str, shown: bool) -> Iterator[Progress]:
    """A line on standard error that shows that something happens; gives a function of (steps done, most steps).

    Elsewhere than on a terminal there is a line of the steps after 15 seconds, and then every 15. Nothing is shown
    unless `shown`.
    """
    stderr = Console(stderr=True)
    if not shown:
        yield no_progress
        return
    if not stderr.is_terminal:
        lines = ProgressDisplay()
        lines.wait()
        yield lambda done, most: lines.line(f"{text}: step {done} of at most {most}")
        return
    with stderr.status(text) as status:
        yield lambda done, most: status.update(f"{text}: step {done} of at most {most}")


class ProgressDisplay:
    """Progress on standard error: bars on a terminal, an occasional line elsewhere.

    `report(task, done, total, figures)` may be called as often as needed; a new task starts a new bar.
    """

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        self._terminal = self._console.is_terminal
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[figures]}"),
        )
        self._bars = RichProgress(*columns, console=self._console, disable=not self._terminal)
        self._tasks: dict[str, TaskID] = {}
        self._last_line = float("-inf")
        self._ended: set[str] = set()

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def report(self, what: str, done: int, total: int, figures: Mapping[str, float] | None = None) -> None:
        """Show that `done` of `total` items of a task are done, with figures such as a loss."""
        text = ", ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in (figures or {}).items())
        if not self._terminal:
            self.line(f"{what}: {done} of {total}" + (f" ({text})" if text else ""), self._ends(what, done, total))
            return
        if what not in self._tasks:
            self._drop_finished()
            self._tasks[what] = self._bars.add_task(what, total=total, figures="")
        self._bars.update(self._tasks[what], completed=done, total=total, figures=text)

    def note(self, text: str) -> None:
        """Print a line that stays."""
        self._console.print(Text(text), soft_wrap=True)

    def of(self, what: str) -> Progress:
        """Progress of one task, as a function of (done, total)."""
        return lambda done, total: self.report(what, done, total)

    def steps(self, what: str) -> TaskProgress:
        """Progress of work in named steps, in one bar that says which step runs."""

        def report(step: str, done: int, total: int, figures: Mapping[str, float] | None = None, /) -> None:
            if not self._terminal:
                self.line(f"{what}: {done} of {total} ({step})", self._ends(what, done, total))
                return
            self.report(what, done, total, figures)
            self._bars.update(self._tasks[what], description=f"{what}: {step}", refresh=True)

        return report

    def _ends(self, what: str, done: int, total: int) -> bool:
        """Whether a task ends for the first time: one that is done again and again has one line of its end."""
        if done < total or what in self._ended:
            return False
        self._ended.add(what)
        return True

    def _drop_finished(self) -> None:
        for name, task in list(self._tasks.items()):
            if self._bars.tasks[self._bars.task_ids.index(task)].finished:
                self._bars.remove_task(task)
                del self._tasks[name]

    def wait(self) -> None:
        """Write no line in the next 15 seconds."""
        self._last_line = time.monotonic()

    def line(self, text: str, last: bool = False) -> None:
        """Print a line that stays, but one every 15 seconds at most, besides the last."""
        now = time.monotonic()
        if last or now - self._last_line >= _SECONDS_BETWEEN_LINES:
            self._last_line = now
            self.note(text)
