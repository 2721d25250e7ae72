"""A small hub over real HTTP: what `huggingface_hub` needs of one, for repositories of models, in memory.

Files that end in .safetensors go through Git LFS, all others into the commit, as on a hub without xet. Every push is a
commit, every commit can be read again, and branches and tags name commits.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final
from urllib.parse import unquote, urlsplit

import pytest
from huggingface_hub import constants

WRITER, READER, STRANGER = "hf_writer", "hf_reader", "hf_stranger"
"""Tokens: of the owner of every repository, of a user who may read them, of one who may read only public ones."""
OWNER: Final = "owner"


@dataclass
class Repository:
    """commits: the files of each commit, the newest last, by path."""

    private: bool
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)

    def commit(self, branch: str, files: dict[str, bytes]) -> str:
        text = json.dumps([len(self.commits), branch, sorted((name, _sha1(data)) for name, data in files.items())])
        sha = _sha1(text.encode())
        self.commits[sha] = files
        self.names[branch] = sha
        return sha


class RefusedError(Exception):
    """An answer other than 200: its status, the hub's code for it, its text, and more of its JSON."""

    def __init__(self, status: int, code: str = "", text: str = "", **more: str):
        super().__init__(text or code)
        self.status, self.code, self.more = status, code, more


class HubServer:
    """The state of the hub, and the requests that it answered."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.failing_with: int | None = None
        """A status with which every request is answered."""
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def files(self, repository: str, name: str = "main") -> dict[str, bytes]:
        kept = self.repositories[repository]
        return kept.commits[kept.names.get(name, name)]

    def asked(self, pattern: str) -> list[str]:
        return [one for one in self.requests if re.search(pattern, one)]

    # -- what a request gets -----------------------------------------------------------------------------

    def readable(self, name: str, token: str | None) -> Repository:
        found = self.repositories.get(name)
        if found is None or (found.private and token not in (WRITER, READER)):
            raise RefusedError(401 if token is None else 404, "RepoNotFound", "Repository not found")
        return found

    def writable(self, name: str, token: str | None) -> Repository:
        found = self.readable(name, token)
        if token != WRITER:
            raise RefusedError(403, "", "You do not have the rights to write")
        return found

    def create(self, token: str | None, body: bytes) -> Any:
        if token is None:
            raise RefusedError(401, "", "Invalid username or password.")
        if token != WRITER:
            raise RefusedError(403, "", "You do not have the rights to create a model under this namespace")
        asked = json.loads(body)
        name = f"{asked.get('organization') or OWNER}/{asked['name']}"
        if name in self.repositories:
            raise RefusedError(409, "", "You already created this model repo", url=f"{self.url}/{name}")
        made = self.repositories[name] = Repository(asked.get("visibility") == "private")
        made.commit("main", {".gitattributes": b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"})
        return {"url": f"{self.url}/{name}", "name": name}

    def modes(self, token: str | None, name: str, branch: str, body: bytes) -> Any:
        self._at(self.writable(name, token), branch)
        files = [
            {"path": one["path"], "uploadMode": _mode(one["path"]), "shouldIgnore": False}
            for one in json.loads(body)["files"]
        ]
        return {"files": files}

    def batch(self, token: str | None, name: str, body: bytes) -> Any:
        self.writable(name, token)
        objects = []
        for one in json.loads(body)["objects"]:
            upload = {"upload": {"href": f"{self.url}/lfs/{one['oid']}"}, "verify": {"href": f"{self.url}/lfs-verify"}}
            objects.append({**one, **({} if one["oid"] in self.objects else {"actions": upload})})
        return {"transfer": "basic", "objects": objects}

    def put(self, token: str | None, oid: str, body: bytes) -> Any:
        if hashlib.sha256(body).hexdigest() != oid:
            raise RefusedError(400, "", "The content does not have this digest")
        self.objects[oid] = body
        return {}

    def verify(self, token: str | None, body: bytes) -> Any:
        asked = json.loads(body)
        if len(self.objects.get(asked["oid"], b"")) != asked["size"]:
            raise RefusedError(404, "", "No such object")
        return {}

    def commit(self, token: str | None, name: str, branch: str, body: bytes) -> Any:
        repository = self.writable(name, token)
        files = dict(repository.commits[self._at(repository, branch)])
        for line in body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "file":
                if _mode(value["path"]) == "lfs":
                    raise RefusedError(400, "", f"{value['path']} belongs into LFS")
                files[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                files[value["path"]] = self.objects[value["oid"]]
        sha = repository.commit(branch, files)
        return {"commitUrl": f"{self.url}/{name}/commit/{sha}", "commitOid": sha, "success": True}

    def name_commit(self, token: str | None, name: str, kind: str, given: str, body: bytes) -> Any:
        repository, asked = self.writable(name, token), json.loads(body or b"{}")
        new, start = (given, asked.get("startingPoint", "main")) if kind == "branch" else (asked["tag"], given)
        repository.names[new] = self._at(repository, start)
        return {}

    def info(self, token: str | None, name: str, revision: str = "main") -> Any:
        repository = self.readable(name, token)
        sha = self._at(repository, revision)
        siblings = [{"rfilename": path} for path in repository.commits[sha]]
        return {
            "_id": name,
            "id": name,
            "modelId": name,
            "sha": sha,
            "private": repository.private,
            "siblings": siblings,
        }

    def tree(self, token: str | None, name: str, revision: str) -> Any:
        repository = self.readable(name, token)
        return [
            {
                "type": "file",
                "path": path,
                "size": len(data),
                "oid": _blob_id(data),
                **(
                    {"lfs": {"oid": _sha256(data), "size": len(data), "pointerSize": 134}}
                    if _mode(path) == "lfs"
                    else {}
                ),
            }
            for path, data in repository.commits[self._at(repository, revision)].items()
        ]

    def resolve(self, token: str | None, name: str, revision: str, path: str) -> tuple[bytes, dict[str, str]]:
        repository = self.readable(name, token)
        sha = self._at(repository, revision)
        if path not in repository.commits[sha]:
            raise RefusedError(404, "EntryNotFound", "Entry not found")
        data, headers = repository.commits[sha][path], {"X-Repo-Commit": sha}
        if _mode(path) == "lfs":
            linked = {"X-Linked-Size": str(len(data)), "X-Linked-Etag": f'"{_sha256(data)}"'}
            # Another host, as the storage of a hub is: the client follows to it only for the content.
            elsewhere = self.url.replace("127.0.0.1", "localhost")
            return b"", {**headers, **linked, "Location": f"{elsewhere}/lfs/{_sha256(data)}"}
        return data, {**headers, "ETag": f'"{_blob_id(data)}"'}

    def _at(self, repository: Repository, revision: str) -> str:
        sha = repository.names.get(revision, revision)
        if sha not in repository.commits:
            raise RefusedError(404, "RevisionNotFound", "Invalid rev id")
        return sha


def _handler(hub: HubServer) -> type[BaseHTTPRequestHandler]:
    name = r"([\w.-]+/[\w.-]+?)"
    routes: list[tuple[str, str, Callable[..., Any]]] = [
        ("POST", r"/api/repos/create", hub.create),
        ("POST", r"/api/validate-yaml", lambda token, body: {"errors": [], "warnings": []}),
        ("POST", rf"/api/models/{name}/preupload/([^/]+)", hub.modes),
        ("POST", rf"/{name}\.git/info/lfs/objects/batch", hub.batch),
        ("PUT", r"/lfs/(\w+)", hub.put),
        ("POST", r"/lfs-verify", hub.verify),
        ("POST", rf"/api/models/{name}/commit/([^/]+)", hub.commit),
        ("POST", rf"/api/models/{name}/(branch|tag)/([^/]+)", hub.name_commit),
        ("GET", rf"/api/models/{name}", hub.info),
        ("GET", rf"/api/models/{name}/revision/([^/]+)", hub.info),
        ("GET", rf"/api/models/{name}/tree/([^/]+)", hub.tree),
        ("GET", rf"/{name}/resolve/([^/]+)/(.+)", hub.resolve),
        ("GET", r"/lfs/(\w+)", lambda token, oid: (hub.objects[oid], {"ETag": f'"{oid}"'})),
    ]

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._answer("GET")

        def do_HEAD(self) -> None:
            self._answer("GET")

        def do_POST(self) -> None:
            self._answer("POST")

        def do_PUT(self) -> None:
            self._answer("PUT")

        def _answer(self, method: str) -> None:
            path = urlsplit(self.path).path
            hub.requests.append(f"{self.command} {path}")
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            token = (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None
            try:
                if hub.failing_with is not None:
                    raise RefusedError(hub.failing_with)
                self._send(*self._found(method, path, token, body))
            except RefusedError as refusal:
                text = json.dumps({"error": str(refusal), **refusal.more}).encode()
                self._send(refusal.status, text, {"X-Error-Code": refusal.code} if refusal.code else {})

        def _found(self, method: str, path: str, token: str | None, body: bytes) -> tuple[int, bytes, dict[str, str]]:
            for allowed, pattern, function in routes:
                match = re.fullmatch(pattern, path)
                if match is not None and allowed == method:
                    given = [*map(unquote, match.groups()), *([] if method == "GET" else [body])]
                    found = function(token, *given)
                    data, headers = found if isinstance(found, tuple) else (json.dumps(found).encode(), {})
                    return 302 if "Location" in headers else 200, data, headers
            raise RefusedError(404, "", f"No such address: {method} {path}")

        def _send(self, status: int, data: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for key, value in {"Content-Type": "application/json", **headers, "Content-Length": str(len(data))}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    return Handler


def use_hub(url: str, cache: Any, token: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a hub the one of this process, as HF_ENDPOINT, HF_HUB_CACHE, HF_TOKEN and HF_HUB_DISABLE_XET do."""
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(cache / "no-token"))
    if token is None:
        monkeypatch.delenv("HF_TOKEN", raising=False)
    else:
        monkeypatch.setenv("HF_TOKEN", token)


@contextmanager
def running_hub() -> Iterator[HubServer]:
    server = HubServer()
    try:
        yield server
    finally:
        server.close()


def _mode(path: str) -> str:
    return "lfs" if path.endswith(".safetensors") else "regular"


def _sha1(data: bytes) -> str:
    return hashlib.sha1(data, usedforsecurity=False).hexdigest()


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _blob_id(data: bytes) -> str:
    return _sha1(f"blob {len(data)}\0".encode() + data)
