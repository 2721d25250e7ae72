"""Names that are no folder: the hub is asked once, and what is wrong is said in one sentence."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from huggingface_hub import constants

from liveedit.backbones import BUILT_IN, load_backbone
from liveedit.errors import BackboneError
from liveedit.testing.family_models import FAMILIES

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class ResettingServer:
    """Accepts connections, counts them, and resets each."""

    def __init__(self) -> None:
        self.connections = 0
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            self.connections += 1
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection.close()

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def resetting() -> Iterator[ResettingServer]:
    server = ResettingServer()
    yield server
    server.close()


@pytest.fixture
def unreachable(resetting: ResettingServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ResettingServer:
    """The hub of this process, with an empty cache."""
    monkeypatch.setattr(constants, "ENDPOINT", resetting.url)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", resetting.url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return resetting


def test_a_hub_that_resets_connections_is_asked_once(resetting: ResettingServer, tmp_path: Path) -> None:
    """The whole command, as a person runs it."""
    environment = {**os.environ, "HF_ENDPOINT": resetting.url, "HF_HOME": str(tmp_path)}
    command = [sys.executable, "-m", "liveedit", "doctor", "--backbone", "someone/tiny-lava"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 1
    assert done.stdout == ""
    (line,) = done.stderr.strip().splitlines()
    assert f"the hub at {resetting.url} cannot be reached" in line and "Did you mean tiny-llava" in line
    assert resetting.connections == 1


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("tiny-lava", r"no backbone 'tiny-lava'\. Did you mean tiny-llava"),
        ("tinyllama", r"Did you mean tiny-llava or tiny-llama-lm"),
        ("TINY-MISTRAL", r"Did you mean tiny-mistral-lm"),
        ("folder/of/mine", "no folder 'folder/of/mine', and it is no hub name"),
        ("my model", "no folder 'my model', and it is no hub name"),
    ],
)
def test_a_wrong_name_is_told_without_the_hub(name: str, words: str, unreachable: ResettingServer) -> None:
    with pytest.raises(BackboneError, match=words):
        load_backbone(name)
    assert unreachable.connections == 0


def test_a_folder_of_a_built_in_name_changes_nothing(
    unreachable: ResettingServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tiny-llava").mkdir()
    monkeypatch.chdir(tmp_path)
    assert load_backbone("tiny-llava", device="cpu").fingerprint["model_type"] == "llava"
    assert unreachable.connections == 0


def test_an_old_name_without_an_owner_is_one_attempt(unreachable: ResettingServer) -> None:
    with pytest.raises(BackboneError, match=r"cannot be reached.*Give a built-in name") as refused:
        load_backbone("gpt2")
    assert all(name in str(refused.value) for name in BUILT_IN)
    assert unreachable.connections == 1


def test_a_model_in_the_cache_loads_without_the_hub(unreachable: ResettingServer) -> None:
    kept = Path(constants.HF_HUB_CACHE) / "models--someone--model"
    (kept / "refs").mkdir(parents=True)
    (kept / "refs" / "main").write_text(COMMIT)
    FAMILIES["llama"](kept / "snapshots" / COMMIT)
    backbone = load_backbone("someone/model", device="cpu")
    assert backbone.name == "someone/model"
    assert unreachable.connections == 1
    assert backbone.digest() == load_backbone(kept / "snapshots" / COMMIT, device="cpu").digest()


@pytest.mark.parametrize(
    ("status", "code", "words"),
    [
        (401, "RepoNotFound", "no folder, and no public model"),
        (403, "GatedRepo", r"is gated.*hf auth login"),
        (404, "EntryNotFound", r"has no config\.json"),
        (503, "", "answered with status 503"),
    ],
)
def test_what_the_hub_answers_is_told(
    status: int, code: str, words: str, unreachable: ResettingServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    class Refusing(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            asked.append(self.path)
            self.send_response(status)
            self.send_header("X-Error-Code", code)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Refusing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setattr(constants, "ENDPOINT", url)
        template = url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        with pytest.raises(BackboneError, match=words) as refused:
            load_backbone("someone/model")
        server.shutdown()
    assert asked == ["/someone/model/resolve/main/config.json"]
    assert "\n" not in str(refused.value)
