"""What a test needs of a browser beside WebDriver: a screen size, colours, a console, and a list of requests."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, NoReturn

import pytest

NO_SELENIUM = None if find_spec("selenium") else "selenium is not installed (pip install 'liveedit[dev]')"

LOCAL = ("127.0.0.1", "localhost")
"""The only hosts that a browser may reach."""


class Browser(ABC):
    """A running browser with a new profile. driver: Selenium's WebDriver."""

    name: ClassVar[str]

    def __init__(self, driver: Any):
        self.driver = driver

    @classmethod
    @abstractmethod
    def why_not(cls) -> str | None:
        """Why this browser cannot be driven here, or None."""

    @classmethod
    @abstractmethod
    def running(cls, folder: Path) -> AbstractContextManager[Browser]:
        """One with its profile in this folder; it ends with the block."""

    @abstractmethod
    def resize(self, size: tuple[int, int]) -> None:
        """A screen of this many CSS pixels; a narrow one is a phone's."""

    def set_colours(self, *, dark: bool) -> None:
        """The colours that the system is set to."""
        if dark:
            self.lacks("a way to change the system's colours")

    def runs_first(self, source: str) -> AbstractContextManager[None]:
        """Inside, pages that are opened run this before their own scripts."""
        self.lacks("a way to run a script before those of a page")

    def opened(self) -> None:  # noqa: B027
        """Called when a page has been opened."""

    @abstractmethod
    def complaints(self) -> list[str]:
        """Errors and warnings of the console since the last call, and what was blocked."""

    @abstractmethod
    def requested(self) -> set[str]:
        """Every address that was asked for over a network since the last call."""

    def screenshot(self, *, whole: bool = False) -> bytes:
        """The screen, or the whole page, as PNG."""
        return self.driver.get_screenshot_as_png()

    def lacks(self, what: str) -> NoReturn:
        """Skip the test."""
        pytest.skip(f"{self.name} has no {what}.")


def without_proxy(environment: dict[str, str]) -> dict[str, str]:
    """An environment in which nothing is between this machine and itself."""
    return {**environment, "NO_PROXY": ",".join(LOCAL), "no_proxy": ",".join(LOCAL)}
