"""Chromium, driven by chromedriver."""

from __future__ import annotations

import base64
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .browser import NO_SELENIUM, Browser, without_proxy

PROGRAM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")

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


class Chromium(Browser):
    """Sizes, colours and early scripts are set by Chromium's own protocol."""

    name = "Chromium"

    @classmethod
    def why_not(cls) -> str | None:
        if PROGRAM is None or DRIVER is None:
            return "Chromium and its driver are not installed (apt-get install chromium chromium-driver)"
        return NO_SELENIUM

    @classmethod
    @contextmanager
    def running(cls, folder: Path) -> Iterator[Browser]:
        from selenium.webdriver import Chrome, ChromeOptions, ChromeService

        assert PROGRAM is not None and DRIVER is not None
        options = ChromeOptions()
        options.binary_location = PROGRAM
        for option in (*_OPTIONS, f"--user-data-dir={folder / 'profile'}"):
            options.add_argument(option)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        # By its path, so that Selenium looks for no driver elsewhere.
        log = str(folder / "driver.log")
        driver = Chrome(options, ChromeService(DRIVER, log_output=log, env=without_proxy(dict(os.environ))))
        try:
            yield cls(driver)
        finally:
            driver.quit()

    def resize(self, size: tuple[int, int]) -> None:
        mobile = size[0] < 600
        self._command(
            "Emulation.setDeviceMetricsOverride", width=size[0], height=size[1], deviceScaleFactor=1, mobile=mobile
        )
        self._command("Emulation.setTouchEmulationEnabled", enabled=mobile)

    def set_colours(self, *, dark: bool) -> None:
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self._command("Emulation.setEmulatedMedia", features=scheme)

    @contextmanager
    def runs_first(self, source: str) -> Iterator[None]:
        added = self._command("Page.addScriptToEvaluateOnNewDocument", source=source)
        try:
            yield
        finally:
            self._command("Page.removeScriptToEvaluateOnNewDocument", **added)

    def complaints(self) -> list[str]:
        return [line["message"] for line in self.driver.get_log("browser") if line["level"] in ("SEVERE", "WARNING")]

    def requested(self) -> set[str]:
        messages = (json.loads(line["message"])["message"] for line in self.driver.get_log("performance"))
        sent = (each["params"] for each in messages if each["method"] == "Network.requestWillBeSent")
        found = {each["request"]["url"] for each in sent}
        return {url for url in found if url.partition(":")[0] not in ("data", "blob", "chrome", "chrome-untrusted")}

    def screenshot(self, *, whole: bool = False) -> bytes:
        width, full = self.driver.execute_script("return [innerWidth, document.documentElement.scrollHeight]")
        clip = {"x": 0, "y": 0, "width": width, "height": full, "scale": 1}
        further = {"clip": clip, "captureBeyondViewport": True} if whole else {}
        return base64.b64decode(self._command("Page.captureScreenshot", format="png", **further)["data"])

    def _command(self, name: str, **parameters: Any) -> Any:
        return self.driver.execute_cdp_cmd(name, parameters)
