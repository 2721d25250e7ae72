"""A person who looks at the page in a real browser without a window."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from browsing.browser import Browser
from browsing.chromium import Chromium
from browsing.firefox import Firefox
from browsing.webkit import WebKit
from PIL import Image

BROWSERS: Final[dict[str, type[Browser]]] = {"chromium": Chromium, "firefox": Firefox, "webkit": WebKit}
PATIENCE_S = 30.0
DESKTOP, PHONE = (1280, 860), (360, 740)


def why_no_browser() -> str | None:
    """Why there is no browser to test with, or None if there is one."""
    reasons = [kind.why_not() for kind in BROWSERS.values()]
    return None if None in reasons else "; ".join(reason for reason in reasons if reason is not None)


class Visitor:
    """A person at the page: looks for things by CSS selector, waits until something is so, uses mouse and keys.

    screenshots: a folder that `shot` writes to; None for no images.
    """

    def __init__(self, browser: Browser, url: str, screenshots: Path | None = None):
        self.browser, self.url, self.screenshots = browser, url, screenshots
        self.driver: Any = browser.driver
        self.has_opened = False
        """Whether the page was opened: a browser may lack what that takes."""

    def open(self, size: tuple[int, int] = DESKTOP, *, dark: bool = False) -> None:
        """The page as at a first visit, on a screen of this many CSS pixels."""
        self.browser.resize(size)
        self.browser.set_colours(dark=dark)
        self.driver.get(self.url)
        self.driver.execute_script("sessionStorage.clear()")
        self.complaints()
        self.requested()
        self.driver.get(self.url)
        self.browser.opened()
        self.has_opened = True
        self.until(lambda: self.find("#version").text != "LiveEdit")

    # -- looking -----------------------------------------------------------------------------------------

    def find(self, selector: str) -> Any:
        return self.driver.find_element("css selector", selector)

    def all(self, selector: str) -> list[Any]:
        return self.driver.find_elements("css selector", selector)

    def focused(self) -> dict[str, Any]:
        """Of the element with the focus: its id, name, whether the focus shows, whether it can be seen."""
        return self.script(
            """const element = document.activeElement;
            const marked = [element, element.nextElementSibling, element.closest(".stage")].filter(Boolean);
            const box = element.getBoundingClientRect();
            return { id: element.id, tag: element.tagName, text: element.textContent.trim(),
                     label: element.getAttribute("aria-label"), value: element.value,
                     shows: marked.some((each) => getComputedStyle(each).outlineStyle === "solid"),
                     inside: box.width > 0 && box.bottom > 0 && box.top < innerHeight };"""
        )

    def text(self, selector: str) -> str:
        return self.find(selector).text

    def sees(self, selector: str) -> bool:
        return any(element.is_displayed() for element in self.all(selector))

    def until(self, condition: Callable[[], Any]) -> Any:
        """Wait until this is true; returns it. Elements that change meanwhile are read again."""
        from selenium.common.exceptions import StaleElementReferenceException as Gone
        from selenium.webdriver.support.ui import WebDriverWait

        waiting = WebDriverWait(self.driver, PATIENCE_S, poll_frequency=0.02, ignored_exceptions=[Gone])
        return waiting.until(lambda _: condition())

    def script(self, text: str, *arguments: Any) -> Any:
        return self.driver.execute_script(text, *arguments)

    # -- doing -------------------------------------------------------------------------------------------

    def click(self, selector: str) -> None:
        self.until(lambda: self.sees(selector))
        self.find(selector).click()

    def write(self, selector: str, text: str) -> None:
        field = self.find(selector)
        field.clear()
        field.send_keys(text)

    def press(self, *keys: str) -> None:
        """Keys on whatever has the focus."""
        from selenium.webdriver import ActionChains

        ActionChains(self.driver).send_keys(*keys).perform()

    def ask(self, prompt: str, image: Path | None = None) -> str:
        """Ask by mouse and keyboard, and wait for the whole answer."""
        if image is not None:
            self.find("#file").send_keys(str(image))
            self.until(lambda: image.name in self.text("#image-name"))
        self.write("#prompt", prompt)
        asked = self.count("#log li")
        self.click("#ask")
        return self.answer(asked + 1)

    def answer(self, asked: int) -> str:
        """The answer, once this many have been given and everything about it is shown."""
        self.until(lambda: self.count("#log li") == asked and self.sees("#answer") and self.text("#fired"))
        return self.text("#answer-text")

    def correct(self, answer: str, **fields: str) -> None:
        """Correct the answer that is shown, by mouse; fields: texts by the ids of further fields."""
        self.click("#correct-button")
        if fields:
            self.click("#correction-form summary")
        self.write("#right-answer", answer)
        for name, text in fields.items():
            self.write(f"#{name}", text)
        self.click("#correct")
        self.until(lambda: self.sees("#evidence") or self.sees("#correction-problem"))

    @contextmanager
    def in_a_hurry(self) -> Iterator[None]:
        """Pages opened meanwhile wait a tenth of what they mean to wait, and note that in `waits` (ms)."""
        source = """const wait = window.setTimeout;
            window.waits = [];
            window.setTimeout = (run, ms, ...given) => (window.waits.push(ms), wait(run, ms / 10, ...given));"""
        with self.browser.runs_first(source):
            yield

    def count(self, selector: str) -> int:
        return len(self.all(selector))

    def shot(self, name: str, *, whole: bool = False) -> None:
        """An image of the screen, or of the whole page, if images are wanted."""
        if self.screenshots is None:
            return
        self.screenshots.mkdir(parents=True, exist_ok=True)
        with Image.open(io.BytesIO(self.browser.screenshot(whole=whole))) as image:
            image.convert("RGB").save(self.screenshots / f"{name}.png", optimize=True)

    # -- what went on ------------------------------------------------------------------------------------

    def complaints(self) -> list[str]:
        """Errors and warnings of the console since the last call, and what was blocked."""
        return self.browser.complaints()

    def requested(self) -> set[str]:
        """Every address that was asked for over a network since the last call."""
        return self.browser.requested()
