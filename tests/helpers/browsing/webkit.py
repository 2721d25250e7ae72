"""WebKitGTK, as in Epiphany and close to Safari: its MiniBrowser on a display in memory, driven by WebKitWebDriver."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Final

from .browser import NO_SELENIUM, Browser, without_proxy

DRIVER = shutil.which("WebKitWebDriver")
DISPLAY = shutil.which("Xvfb")
_PLACES: Final = ("lib*/*/webkit2gtk-4.*/MiniBrowser", "lib*/webkit2gtk-4.*/MiniBrowser")
PROGRAM = next((path for place in _PLACES for path in sorted(Path("/usr").glob(place))), None)

_TOOLBAR: Final = 38
"""Its height in pixels."""

_LISTEN: Final = """
window.complaints = [];
const note = (text) => window.complaints.push(String(text));
addEventListener("error", (event) => note(event.message ?? event.target));
addEventListener("unhandledrejection", (event) => note(event.reason));
addEventListener("securitypolicyviolation", (event) => note(`Content Security Policy: ${event.violatedDirective}`));
for (const name of ["error", "warn"]) {
  const before = console[name];
  console[name] = (...given) => (note(given.join(" ")), before.apply(console, given));
}
performance.setResourceTimingBufferSize(10000);
"""


class WebKit(Browser):
    """The driver reports neither console nor requests. The page's own events and timings do, from when it is open;
    requests that failed are not among them."""

    name = "WebKitGTK"
    narrowest: ClassVar[int] = 450
    """Of its window, in pixels."""

    @classmethod
    def why_not(cls) -> str | None:
        if DRIVER is None or PROGRAM is None or DISPLAY is None:
            return "WebKitGTK, its driver or a display is not installed (apt-get install webkit2gtk-driver xvfb)"
        return NO_SELENIUM

    @classmethod
    @contextmanager
    def running(cls, folder: Path) -> Iterator[Browser]:
        from selenium.webdriver import Remote, WebKitGTKOptions
        from selenium.webdriver.common.proxy import Proxy
        from selenium.webdriver.remote.client_config import ClientConfig
        from selenium.webdriver.remote.file_detector import UselessFileDetector
        from selenium.webdriver.remote.remote_connection import RemoteConnection
        from selenium.webdriver.webkitgtk.service import Service

        assert DRIVER is not None
        options = WebKitGTKOptions()
        options.binary_location = str(PROGRAM)
        options.add_argument("--automation")
        with _display() as display:
            home = {"HOME": str(folder), "XDG_CACHE_HOME": str(folder), "XDG_DATA_HOME": str(folder)}
            environment = without_proxy({**os.environ, **home, "DISPLAY": display})
            service = Service(DRIVER, log_output=str(folder / "driver.log"), env=environment)
            service.start()
            try:
                at = RemoteConnection(
                    client_config=ClientConfig(service.service_url, proxy=Proxy({"proxyType": "direct"}))
                )
                driver = Remote(at, options=options)
                driver.file_detector = UselessFileDetector()
                driver._web_element_cls = _element_class()
                yield cls(driver)
                driver.quit()
            finally:
                service.stop()

    def resize(self, size: tuple[int, int]) -> None:
        if size[0] < self.narrowest:
            self.lacks(f"window of less than {self.narrowest} pixels")
        self.driver.set_window_rect(width=size[0], height=size[1] + _TOOLBAR)

    def opened(self) -> None:
        self.driver.execute_script(_LISTEN)

    def complaints(self) -> list[str]:
        return self.driver.execute_script("return window.complaints?.splice(0) ?? []")

    def requested(self) -> set[str]:
        return set(
            self.driver.execute_script(
                """const found = performance.getEntriesByType("resource").map((each) => each.name);
                performance.clearResourceTimings();
                return found.filter((url) => /^https?:/.test(url));"""
            )
        )


def _element_class() -> type[Any]:
    """Elements as other drivers see them. This one reports no text of what is cut with an ellipsis and joins lines,
    misses that a fieldset is disabled, refuses to type nothing, and types no line breaks."""
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.remote.webelement import WebElement

    class Element(WebElement):
        @property
        def text(self) -> str:
            shown = (
                "const [it] = arguments; return it.checkVisibility({ visibilityProperty: true }) ? it.innerText : ''"
            )
            return self.parent.execute_script(shown, self).strip()

        def is_enabled(self) -> bool:
            return not self.parent.execute_script("return arguments[0].matches(':disabled')", self)

        def send_keys(self, *value: str) -> None:
            if any(value):
                super().send_keys(*(text.replace("\n", Keys.ENTER) for text in value))

    return Element


@contextmanager
def _display() -> Iterator[str]:
    """The name of a display in memory."""
    assert DISPLAY is not None
    reading, writing = os.pipe()
    command = [DISPLAY, "-displayfd", str(writing), "-screen", "0", "1600x1200x24", "-nolisten", "tcp"]
    with subprocess.Popen(command, pass_fds=[writing], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            os.close(writing)
            with os.fdopen(reading) as said:
                yield f":{int(said.readline())}"
        finally:
            server.terminate()
