"""The one way in which long work reports its progress."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final, Protocol

Progress = Callable[[int, int], None]
"""Called with the number of items done and the total."""


class TaskProgress(Protocol):
    """Progress of work that has several named parts."""

    def __call__(self, task: str, done: int, total: int, figures: Mapping[str, float] | None = None, /) -> None:
        """Report that `done` of `total` items of `task` are done, with figures such as a loss."""
        ...


def no_progress(done: int, total: int, /) -> None:
    """Report nothing."""


def no_task_progress(task: str, done: int, total: int, figures: Mapping[str, float] | None = None, /) -> None:
    """Report nothing."""


def progress_of(report: TaskProgress, task: str) -> Progress:
    """Progress of one named part."""
    return lambda done, total: report(task, done, total)


_step_progress: Final[ContextVar[Progress]] = ContextVar("step_progress", default=no_progress)


@contextmanager
def steps_reported(progress: Progress) -> Iterator[None]:
    """Inside, and in this thread alone, `report_step` calls `progress`."""
    token = _step_progress.set(progress)
    try:
        yield
    finally:
        _step_progress.reset(token)


def report_step(done: int, most: int) -> None:
    """Say that `done` of at most `most` gradient steps on one edit are done. An editor calls it after each step."""
    _step_progress.get()(done, most)


class Counter:
    """Turns increments into `Progress`: call it with the number of further items that are done."""

    def __init__(self, progress: Progress, total: int):
        self._progress, self._total, self._done = progress, total, 0

    def __call__(self, more: int) -> None:
        """Count `more` further items."""
        self._done += more
        self._progress(self._done, self._total)
