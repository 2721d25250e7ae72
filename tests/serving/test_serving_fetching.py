"""Images by URL: from the places that were allowed, over addresses that were looked at, within limits."""

from __future__ import annotations

import asyncio
import gzip
import io
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from serving_fakes import FakeModel, fake_app
from starlette.testclient import TestClient

from liveedit.cli import main
from liveedit.errors import ConfigError, ImageError
from liveedit.serving.fetching import Fetcher, UrlPrefix
from liveedit.serving.settings import ServingSettings

MOST = 50_000


def png() -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (8, 8), (1, 2, 3)).save(stream, "PNG")
    return stream.getvalue()


class Handler(BaseHTTPRequestHandler):
    """Images below /public/, and everything that can go wrong."""

    seen: list[tuple[str, str]]

    def do_GET(self) -> None:
        type(self).seen.append((self.path, self.headers["Host"]))
        name = self.path.rpartition("/")[2]
        if name.startswith("to-"):
            self.send_response(302)
            self.send_header("Location", LEADS_TO[name].format(port=self.server.server_port))  # type: ignore[attr-defined]
            self.end_headers()
        elif name == "missing":
            self.send_error(404)
        elif name == "slow":
            self.send_response(200)
            self.end_headers()
            for _ in range(100):
                self.send_part(b" ")
                time.sleep(0.05)
        elif name == "endless":
            self.send_response(200)
            self.end_headers()
            for _ in range(1_000):
                self.send_part(bytes(10_000))
        elif name == "compressed":
            self.send_whole(gzip.compress(bytes(10_000_000)), {"Content-Encoding": "gzip"})
        else:
            self.send_whole(png(), {})

    def send_part(self, part: bytes) -> None:
        try:
            self.wfile.write(part)
        except OSError:
            self.close_connection = True

    def send_whole(self, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(200)
        for key, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        self.send_part(body)

    def log_message(self, *_: Any) -> None:
        return


LEADS_TO = {
    "to-image": "/public/a.png",
    "to-relative": "a.png",
    "to-secret": "/secret/a.png",
    "to-dots": "/public/../secret/a.png",
    "to-other-port": "http://127.0.0.1:1/public/a.png",
    "to-other-host": "http://localhost:{port}/public/a.png",
    "to-file": "file:///etc/passwd",
    "to-itself": "to-itself",
}


@pytest.fixture
def port() -> Iterator[int]:
    Handler.seen = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server.server_port
    server.shutdown()
    thread.join()
    server.server_close()


def fetch(url: str, *places: str, seconds: float = 5.0) -> bytes:
    return asyncio.run(Fetcher([UrlPrefix.parse(place) for place in places], MOST, seconds).fetch(url))


def test_what_is_below_an_allowed_url_is_fetched(port: int) -> None:
    here = f"http://127.0.0.1:{port}"
    for url in ("/public/a.png", "/public/deep/er.png?size=1", "/public/to-image", "/public/to-relative"):
        assert fetch(here + url, f"{here}/public/") == png()
    assert fetch(f"{here}/public/a.png", "https://images.example.com/", f"{here}/public") == png()
    assert {host for _, host in Handler.seen} == {f"127.0.0.1:{port}"}


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:{port}/secret/a.png",
        "http://127.0.0.1:{port}/publicity/a.png",
        "http://127.0.0.1:{port}/public/../secret/a.png",
        "http://127.0.0.1:{port}/public/%2e%2e/secret/a.png",
        "http://127.0.0.1:{port}/public/..%2fsecret/a.png",
        "http://127.0.0.1:{port}/public/..%5csecret/a.png",
        "http://127.0.0.1:{port}/public/%252e%252e/secret/a.png",
        "http://127.0.0.1:1/public/a.png",
        "http://127.0.0.1/public/a.png",
        "https://127.0.0.1:{port}/public/a.png",
        "http://localhost:{port}/public/a.png",
        "http://127.1:{port}/public/a.png",
        "http://me:pass@127.0.0.1:{port}/public/a.png",
        "http://127.0.0.1:{port}@evil.example/public/a.png",
        "http://evil.example#@127.0.0.1:{port}/public/a.png",
        "ftp://127.0.0.1:{port}/public/a.png",
        "file:///etc/passwd",
        "/etc/passwd",
        "http://[",
        "http://127.0.0.1:99999999/public/",
        "",
    ],
)
def test_nothing_else_is_fetched(port: int, url: str) -> None:
    with pytest.raises(ImageError, match="only from"):
        fetch(url.format(port=port), f"http://127.0.0.1:{port}/public/")
    assert Handler.seen == []


@pytest.mark.parametrize("path", ["/publicity", "/publicity/a.png", "/public.png", "/publi", "/", "/Public/a.png"])
def test_a_prefix_ends_at_a_border_of_the_path(port: int, path: str) -> None:
    """An allowed /public reaches /public and what is below it; not another name that begins alike."""
    here = f"http://127.0.0.1:{port}"
    with pytest.raises(ImageError, match="only from"):
        fetch(here + path, f"{here}/public")
    assert Handler.seen == []
    assert fetch(f"{here}/public", f"{here}/public") == fetch(f"{here}/public/a.png", f"{here}/public") == png()


@pytest.mark.parametrize("name", [name for name in LEADS_TO if name not in ("to-image", "to-relative")])
def test_what_leads_elsewhere_is_not_followed(port: int, name: str) -> None:
    here = f"http://127.0.0.1:{port}/public/"
    with pytest.raises(ImageError, match="only from" if name != "to-itself" else "redirects more than 3 times"):
        fetch(here + name, here)
    assert {path for path, _ in Handler.seen} == {f"/public/{name}"}


@pytest.mark.parametrize(
    ("name", "problem"),
    [("missing", "404"), ("slow", "more than 0.3 s"), ("endless", "50,000 bytes"), ("compressed", "compressed")],
)
def test_what_is_no_image_of_bounded_size_and_time_is_given_up(port: int, name: str, problem: str) -> None:
    here = f"http://127.0.0.1:{port}/public/"
    begun = time.monotonic()
    with pytest.raises(ImageError, match=problem):
        fetch(here + name, here, seconds=0.3 if name == "slow" else 5.0)
    assert time.monotonic() - begun < 3


@pytest.mark.parametrize("address", ["127.0.0.1", "10.0.0.1", "169.254.169.254", "::1", "fd00::1", "::ffff:127.0.0.1"])
def test_a_name_of_a_private_address_is_not_connected_to(
    monkeypatch: pytest.MonkeyPatch, port: int, address: str
) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [(socket.AF_INET, 1, 6, "", (address, port))])
    with pytest.raises(ImageError, match="private network"):
        fetch(f"http://images.example.com:{port}/a.png", f"http://images.example.com:{port}/")
    assert Handler.seen == []


def test_a_name_that_changes_its_meaning_is_asked_once(monkeypatch: pytest.MonkeyPatch, port: int) -> None:
    """The address that was checked is connected to, under the name that was asked for."""
    asked: list[str] = []

    def addresses(host: Any, *_: Any, **__: Any) -> list[Any]:
        host = host.decode() if isinstance(host, bytes) else host
        if host == "127.0.0.1":
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]
        asked.append(host)
        # Another address the second time, where nothing listens.
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1" if len(asked) == 1 else "127.0.0.9", port))]

    monkeypatch.setattr(socket, "getaddrinfo", addresses)
    assert fetch(f"http://localhost:{port}/public/a.png", f"http://localhost:{port}/") == png()
    assert asked == ["localhost"]
    assert Handler.seen == [("/public/a.png", f"localhost:{port}")]


@pytest.mark.parametrize(
    "place",
    ["", "images.example.com", "ftp://x/", "http://", "http://me@x/", "http://x/?a=b", "http://x/#a", "file:///"],
)
def test_places_that_are_none(place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match="beginning of a URL"):
        UrlPrefix.parse(place)
    options = ["serve", "--edits", str(tmp_path / "edits.db"), "--no-auth", "--allow-images-from", place]
    assert main(options) == 1 and "beginning of a URL" in capsys.readouterr().err


def test_the_service_takes_urls_only_where_they_are_allowed(port: int) -> None:
    def asked(url: str, **limits: Any) -> Any:
        settings = ServingSettings.model_validate(limits)
        _, app = fake_app(FakeModel(), settings)
        content = [{"type": "text", "text": "hello"}, {"type": "image_url", "image_url": {"url": url}}]
        with TestClient(app, base_url="http://127.0.0.1") as client:
            body = {"model": "fake", "messages": [{"role": "user", "content": content}]}
            edit = client.post("/v1/edits", json={"prompt": "Who?", "answer": "Bruvak", "image": url})
            return client.post("/v1/chat/completions", json=body), edit

    url = f"http://127.0.0.1:{port}/public/a.png"
    allowed = {"allow_images_from": (f"http://127.0.0.1:{port}/public/",)}
    assert [response.status_code for response in asked(url, **allowed)] == [200, 201]
    for found in (asked(url), asked(url.replace("public", "secret"), **allowed), asked("/etc/passwd", **allowed)):
        for response in found:
            assert (response.status_code, response.json()["error"]["code"]) == (400, "invalid_image")
