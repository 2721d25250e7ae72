"""Servers: a fake model's in this process, and a real one for real browsers, each started once for all page tests."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from browsers import BROWSERS, Visitor, why_no_browser
from browsing.browser import Browser
from fastapi.testclient import TestClient
from serving_fakes import FakeModel, fake_app

from liveedit.serving.page_files import EXAMPLES, example_png


@pytest.fixture
def fake() -> FakeModel:
    return FakeModel()


@pytest.fixture
def client(fake: FakeModel) -> Iterator[TestClient]:
    _, app = fake_app(fake)
    with TestClient(app, base_url="http://127.0.0.1") as opened:
        yield opened


@pytest.fixture(scope="session")
def page_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of `liveedit serve` with the built-in model, in a process of its own."""
    if (reason := why_no_browser()) is not None:
        pytest.skip(reason)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    edits = tmp_path_factory.mktemp("edits") / "edits.db"
    command = [sys.executable, "-m", "liveedit", "serve", "--edits", str(edits), "--port", str(port), "--no-auth"]
    url = f"http://127.0.0.1:{port}"
    with subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}) as process:
        try:
            until = time.monotonic() + 300
            while not is_ready(url):
                assert process.poll() is None and time.monotonic() < until
                time.sleep(0.1)
            yield url
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


def is_ready(url: str) -> bool:
    try:
        return httpx2.get(f"{url}/readyz").status_code == 200
    except httpx2.TransportError:
        return False


@pytest.fixture(scope="session", params=BROWSERS)
def browser(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """Each browser that can be driven here."""
    kind = BROWSERS[request.param]
    if (reason := kind.why_not()) is not None:
        pytest.skip(reason)
    with kind.running(tmp_path_factory.mktemp(request.param)) as opened:
        yield opened


@pytest.fixture
def visitor(browser: Browser, page_server: str) -> Iterator[Visitor]:
    """A visitor of the real server, who finds no edit in force and hears no complaint of the browser."""
    folder = os.environ.get("LIVEEDIT_SCREENSHOTS")
    # The images of the documentation are Chromium's.
    screenshots = Path(folder) if folder and browser.name == "Chromium" else None
    visiting = Visitor(browser, f"{page_server}/", screenshots)
    yield visiting
    if visiting.has_opened:
        assert visiting.complaints() == []
        requested = visiting.requested()
        assert f"{page_server}/page/page.js" in requested
        assert {url for url in requested if not url.startswith(f"{page_server}/")} == set()
    while edits := httpx2.get(f"{page_server}/v1/edits").json()["data"]:
        httpx2.post(f"{page_server}/v1/edits/{edits[-1]['id']}/undo")


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A creature, the same one elsewhere, and another one."""
    folder = tmp_path_factory.mktemp("images")
    for example in EXAMPLES:
        (folder / example.name).write_bytes(example_png(example))
    return [folder / example.name for example in EXAMPLES]
