"""A real Chromium without a window, which reaches this machine alone, and a person who looks at the page in it."""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from PIL import Image

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
PATIENCE_S = 30.0
DESKTOP, PHONE = (1280, 860), (360, 740)

_OPTIONS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-default-apps",
    "--disable-extensions",
    "--force-color-profile=srgb",
    "--hide-scrollbars",
    # Whatever is not this machine has no address here.
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost",
)


def why_no_browser() -> str | None:
    """Why there is no browser to test with, or None where there is one."""
    if CHROMIUM is None or DRIVER is None:
        return "Chromium and its driver are not installed (apt-get install chromium chromium-driver)"
    if find_spec("selenium") is None:
        return "selenium is not installed (pip install 'liveedit[dev]')"
    return None


@contextmanager
def running_browser(folder: Path) -> Iterator[Any]:
    """A browser with a new profile in this folder; it ends with the block."""
    from selenium.webdriver import Chrome, ChromeOptions, ChromeService

    assert CHROMIUM is not None and DRIVER is not None
    options = ChromeOptions()
    options.binary_location = CHROMIUM
    for option in (*_OPTIONS, f"--user-data-dir={folder / 'profile'}"):
        options.add_argument(option)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    # By its path, so that Selenium looks for no driver elsewhere; and no proxy between the two.
    service = ChromeService(
        DRIVER, log_output=str(folder / "driver.log"), env={**os.environ, "NO_PROXY": "127.0.0.1,localhost"}
    )
    driver = Chrome(options, service)
    try:
        yield driver
    finally:
        driver.quit()


class Visitor:
    """A person at the page: looks for things by CSS selector, waits until something is so, uses mouse and keys.

    screenshots: a folder that `shot` writes to; None for no images.
    """

    def __init__(self, driver: Any, url: str, screenshots: Path | None = None):
        self.driver, self.url, self.screenshots = driver, url, screenshots

    def open(self, size: tuple[int, int] = DESKTOP, *, dark: bool = False) -> None:
        """The page as at a first visit, on a screen of this many CSS pixels."""
        self.resize(size)
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.command("Emulation.setEmulatedMedia", features=scheme)
        self.driver.get(self.url)
        self.driver.execute_script("sessionStorage.clear()")
        self.complaints()
        self.requested()
        self.driver.get(self.url)
        self.until(lambda: self.find("#version").text != "LiveEdit")

    def resize(self, size: tuple[int, int]) -> None:
        mobile = size[0] < 600
        self.command(
            "Emulation.setDeviceMetricsOverride", width=size[0], height=size[1], deviceScaleFactor=1, mobile=mobile
        )
        self.command("Emulation.setTouchEmulationEnabled", enabled=mobile)

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

    def command(self, name: str, **parameters: Any) -> Any:
        return self.driver.execute_cdp_cmd(name, parameters)

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
        added = self.command("Page.addScriptToEvaluateOnNewDocument", source=source)
        try:
            yield
        finally:
            self.command("Page.removeScriptToEvaluateOnNewDocument", **added)

    def count(self, selector: str) -> int:
        return len(self.all(selector))

    def shot(self, name: str, *, whole: bool = False) -> None:
        """An image of the screen, or of the whole page, if images are wanted."""
        if self.screenshots is None:
            return
        width, full = self.script("return [innerWidth, document.documentElement.scrollHeight]")
        clip = {"x": 0, "y": 0, "width": width, "height": full, "scale": 1}
        further = {"clip": clip, "captureBeyondViewport": True} if whole else {}
        found = self.command("Page.captureScreenshot", format="png", **further)
        self.screenshots.mkdir(parents=True, exist_ok=True)
        with Image.open(io.BytesIO(base64.b64decode(found["data"]))) as image:
            image.convert("RGB").save(self.screenshots / f"{name}.png", optimize=True)

    # -- what went on ------------------------------------------------------------------------------------

    def complaints(self) -> list[str]:
        """Errors and warnings of the console since the last call, and what was blocked."""
        return [line["message"] for line in self.driver.get_log("browser") if line["level"] in ("SEVERE", "WARNING")]

    def requested(self) -> set[str]:
        """Every address that was asked for over a network since the last call."""
        messages = (json.loads(line["message"])["message"] for line in self.driver.get_log("performance"))
        sent = (each["params"] for each in messages if each["method"] == "Network.requestWillBeSent")
        found = {each["request"]["url"] for each in sent}
        return {url for url in found if url.partition(":")[0] not in ("data", "blob", "chrome", "chrome-untrusted")}
