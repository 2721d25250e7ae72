"""Firefox, driven through Marionette. Its privileged scripts read the console and see every request."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from .browser import LOCAL, NO_SELENIUM, Browser, without_proxy

PROGRAM = shutil.which("firefox") or shutil.which("firefox-esr")
_PATIENCE_S: Final = 60.0

_PREFERENCES: Final = {
    "marionette.port": 0,
    "remote.log.level": "Warn",
    # Whatever is not this machine is asked of a proxy that does not exist.
    "network.proxy.type": 1,
    "network.proxy.http": "127.0.0.1",
    "network.proxy.http_port": 9,
    "network.proxy.ssl": "127.0.0.1",
    "network.proxy.ssl_port": 9,
    "network.proxy.no_proxies_on": ", ".join(LOCAL),
    "network.captive-portal-service.enabled": False,
    "network.connectivity-service.enabled": False,
    "browser.startup.page": 0,
    "browser.newtabpage.enabled": False,
    "datareporting.policy.dataSubmissionEnabled": False,
    "toolkit.telemetry.reportingpolicy.firstRun": False,
    "app.normandy.enabled": False,
    "browser.aboutwelcome.enabled": False,
    "browser.preonboarding.enabled": False,
    # One page at a time needs few processes.
    "dom.ipc.processCount": 1,
    "dom.ipc.processPrelaunch.enabled": False,
    "accessibility.tabfocus": 7,
}

_WATCH: Final = """
window.requestedByPages = [];
const observer = { observe(channel) {
  const { URI, loadInfo } = channel.QueryInterface(Ci.nsIHttpChannel);
  if (loadInfo.loadingPrincipal?.isContentPrincipal) window.requestedByPages.push(URI.spec);
} };
Services.obs.addObserver(observer, "http-on-modify-request");
"""

_REQUESTED: Final = "return window.requestedByPages.splice(0);"

_COMPLAINTS: Final = """
const storage = Cc["@mozilla.org/consoleAPI-storage;1"].getService(Ci.nsIConsoleAPIStorage);
const ofPages = (source) => /^https?:/.test(source ?? "");
const noted = Services.console.getMessageArray()
  .filter((each) => each instanceof Ci.nsIScriptError && ofPages(each.sourceName) && !(each.flags & 8))
  .map((each) => each.errorMessage);
const said = storage.getEvents()
  .filter((each) => ["error", "warn"].includes(each.level) && ofPages(each.filename))
  .map((each) => each.arguments.map(String).join(" "));
Services.console.reset();
storage.clearEvents();
return noted.concat(said);
"""
"""Flag 8 of a script error: only information."""


class Firefox(Browser):
    """A narrow screen is the page's alone: Firefox's own window cannot be that narrow."""

    name = "Firefox"

    @classmethod
    def why_not(cls) -> str | None:
        if PROGRAM is None:
            return "Firefox is not installed (apt-get install firefox-esr)"
        return NO_SELENIUM

    @classmethod
    @contextmanager
    def running(cls, folder: Path) -> Iterator[Browser]:
        from selenium.webdriver import FirefoxOptions, Remote
        from selenium.webdriver.remote.file_detector import UselessFileDetector

        from .marionette import MarionetteConnection

        assert PROGRAM is not None
        profile = folder / "profile"
        profile.mkdir()
        lines = (f"user_pref({json.dumps(name)}, {json.dumps(value)});\n" for name, value in _PREFERENCES.items())
        (profile / "user.js").write_text("".join(lines))
        command = [PROGRAM, "--headless", "--marionette", "--remote-debugging-port", "0", "--no-remote"]
        command += ["--remote-allow-system-access", "--profile", str(profile)]
        environment = without_proxy({**os.environ, "HOME": str(folder), "MOZ_CRASHREPORTER_DISABLE": "1"})
        with (folder / "firefox.log").open("wb") as log:
            process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        try:
            connection = MarionetteConnection(_port(profile, process), _PATIENCE_S)
            options = FirefoxOptions()
            options.set_capability("webSocketUrl", True)
            driver = Remote(connection, options=options)
            driver.file_detector = UselessFileDetector()  # Firefox reads the files of this machine.
            browser = cls(driver)
            browser._privileged(_WATCH)
            yield browser
            driver.quit()
            process.wait(_PATIENCE_S)
        finally:
            process.kill()
            process.wait()

    def resize(self, size: tuple[int, int]) -> None:
        self.driver.set_window_rect(width=max(size[0], 600), height=size[1] + 200)
        self._privileged(
            """const { style } = gBrowser.selectedBrowser, [width, height] = arguments;
            style.setProperty("width", `${width}px`);
            style.setProperty("height", `${height}px`);""",
            *size,
        )
        self._until("return innerWidth === arguments[0] && innerHeight === arguments[1]", *size)

    def set_colours(self, *, dark: bool) -> None:
        name = "layout.css.prefers-color-scheme.content-override"
        self._privileged("Services.prefs.setIntPref(...arguments)", name, 0 if dark else 1)
        self._until("return matchMedia('(prefers-color-scheme: dark)').matches === arguments[0]", dark)

    @contextmanager
    def runs_first(self, source: str) -> Iterator[None]:
        added = self.driver.script.add_preload_script(function_declaration=f"() => {{ {source} }}")
        try:
            yield
        finally:
            self.driver.script.remove_preload_script(script=added["script"])

    def complaints(self) -> list[str]:
        return self._privileged(_COMPLAINTS)

    def requested(self) -> set[str]:
        return set(self._privileged(_REQUESTED))

    def _until(self, condition: str, *arguments: Any) -> None:
        """Wait until the page has seen a change of the browser's window or settings."""
        until = time.monotonic() + _PATIENCE_S
        while not self.driver.execute_script(condition, *arguments):
            assert time.monotonic() < until, condition
            time.sleep(0.02)

    def _privileged(self, script: str, *arguments: Any) -> Any:
        """Run a script in Firefox's own window, with all rights."""
        connection = self.driver.command_executor
        connection.send("Marionette:SetContext", {"value": "chrome"})
        try:
            return self.driver.execute_script(script, *arguments)
        finally:
            connection.send("Marionette:SetContext", {"value": "content"})


def _port(profile: Path, process: subprocess.Popen[bytes]) -> int:
    """The port that Firefox listens at, once it does."""
    file, until = profile / "MarionetteActivePort", time.monotonic() + _PATIENCE_S
    while not (file.exists() and (text := file.read_text())):
        assert process.poll() is None and time.monotonic() < until, "Firefox did not start."
        time.sleep(0.05)
    return int(text)
