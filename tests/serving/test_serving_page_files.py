"""The page's files as the server sends them; what they do in a browser is tested in test_serving_page.py."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import pytest
from PIL import Image
from serving_fakes import FakeModel, fake_app
from starlette.testclient import TestClient

from liveedit.datasets.world import catalog
from liveedit.serving.api_keys import KeyFile
from liveedit.serving.page_files import EXAMPLES
from liveedit.serving.settings import ServingSettings

FOLDER = files("liveedit.serving").joinpath("page")
TEXTS = sorted(entry.name for entry in FOLDER.iterdir() if entry.name.endswith((".html", ".css", ".js", ".svg")))


@pytest.fixture
def client() -> Iterator[TestClient]:
    _, app = fake_app(FakeModel())
    with TestClient(app, base_url="http://127.0.0.1", raise_server_exceptions=False) as opened:
        yield opened


class Reader(HTMLParser):
    """Collects what a page loads, and what a strict policy would block."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.inline: list[str] = []
        self.ids: list[str] = []
        self.named: list[str] = []
        self._in_script = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self._in_script = tag in ("script", "style")
        self.inline += [name for name in given if name == "style" or name.startswith("on")]
        self.ids += [given["id"]] if given.get("id") else []
        for name in ("for", "aria-labelledby", "aria-describedby", "aria-controls"):
            self.named += (given.get(name) or "").split()
        place = given.get("src") or (given.get("href") if tag in ("link", "a") else None)
        if place and not place.startswith("#"):
            self.loaded.append(place)

    def handle_data(self, data: str) -> None:
        if self._in_script and data.strip():
            self.inline.append(data)

    def handle_endtag(self, tag: str) -> None:
        self._in_script = False


def test_the_page_loads_what_is_there_and_nothing_else(client: TestClient) -> None:
    response = client.get("/")
    assert response.status_code == 200 and response.headers["content-type"] == "text/html; charset=utf-8"
    reader = Reader()
    reader.feed(response.text)
    assert reader.inline == []
    assert len(set(reader.ids)) == len(reader.ids) and set(reader.named) <= set(reader.ids)
    for place in reader.loaded:
        assert client.get(urljoin("/", place)).status_code == 200, place
    scripts = [name for name in TEXTS if name.endswith(".js")]
    for name in scripts:
        imported = re.findall(r'from "\./([^"]+)"', client.get(f"/page/{name}").text)
        assert set(imported) <= set(scripts), name
        wanted = re.findall(r'byId\("([^"]+)"\)', client.get(f"/page/{name}").text)
        assert set(wanted) <= set(reader.ids), name


@pytest.mark.parametrize("name", TEXTS)
def test_no_file_names_another_server(name: str) -> None:
    text = FOLDER.joinpath(name).read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
    assert re.findall(r"(?:https?:)?//[a-z0-9.-]+\.[a-z]{2,}", text) == []
    assert "@import" not in text and "url(" not in text


def test_the_files_are_kept_from_harm_and_asked_for_again(client: TestClient) -> None:
    for path in ("/", "/page/page.js", "/page/page.css", "/page/icon.svg", "/page/creature.png", "/page/settings.json"):
        response = client.get(path)
        headers = response.headers
        policy = dict(part.strip().partition(" ")[::2] for part in headers["content-security-policy"].split(";"))
        assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == "'none'"
        assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
        assert headers["x-content-type-options"] == "nosniff" and headers["cache-control"] == "no-cache"
        same = client.get(path, headers={"If-None-Match": f'"other", W/{headers["etag"]}'})
        assert (same.status_code, same.content) == (304, b"") and same.headers["etag"] == headers["etag"]
        assert client.get(path, headers={"If-None-Match": '"other"'}).status_code == 200
        head = client.head(path)
        assert head.status_code == 200 and head.headers["content-length"] == str(len(response.content))


def test_nothing_else_lies_below_the_page(client: TestClient) -> None:
    for path in ("/page/", "/page/nothing.js", "/page/../app.py", "/page/..%2fapp.py", "/page/%2e%2e/keys.py"):
        response = client.get(path)
        assert response.status_code == 404 and response.json().keys() == {"error"}, path
    assert client.post("/").status_code == 405
    assert not [path for path in client.get("/openapi.json").json()["paths"] if path == "/" or "page" in path]


def test_the_page_is_open_where_keys_are_asked_for(tmp_path: Path) -> None:
    keys = KeyFile(tmp_path / "keys.json")
    keys.add("ask")
    limits = ServingSettings.model_validate({"body_bytes": 4096, "rephrasings": 3})
    _, app = fake_app(FakeModel(), limits, keys)
    with TestClient(app, base_url="http://example.org", raise_server_exceptions=False) as client:
        assert client.get("/").status_code == 200
        known: dict[str, Any] = client.get("/page/settings.json").json()
        assert (known["asks_for_keys"], known["body_bytes"], known["rephrasings"]) == (True, 4096, 3)
        assert client.get("/v1/edits").status_code == client.get("/v1/models").status_code == 401
        assert client.get("/pages").status_code == client.get("/page").status_code == 401


def test_examples_show_a_creature_that_no_model_was_taught(client: TestClient) -> None:
    """Its emblem is at least as far from all known ones as any two of those are from each other."""
    stranger, again, known = (example.scene.creature for example in EXAMPLES)
    assert stranger is again and known in catalog.known_creatures()
    distances = [(stranger.emblem ^ other.emblem).bit_count() for other in catalog.known_creatures()]
    assert min(distances) >= catalog.EMBLEM_DISTANCE
    for example in client.get("/page/settings.json").json()["examples"]:
        with Image.open(io.BytesIO(client.get(f"/{example['url']}").content)) as picture:
            assert (picture.format, picture.size) == ("PNG", (256, 256))
