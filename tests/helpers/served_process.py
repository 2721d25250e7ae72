"""`liveedit serve` as a process of its own, which ends with the tests whatever ends those."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2

_PR_SET_PDEATHSIG = 1
START_SECONDS = 300


class ServedProcess:
    """A server, a client of it, and what it wrote to standard error."""

    def __init__(self, edits: Path | str, log: Path, *options: object, key: str | None = None, port: int | None = None):
        self.port = port or free_port()
        self.log = log
        self.url = f"http://127.0.0.1:{self.port}"
        access = () if key is not None else ("--no-auth",)
        command = [sys.executable, "-m", "liveedit", "serve", "--edits", edits, "--port", self.port, *access, *options]
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        self.http = httpx2.Client(base_url=self.url, headers=headers, timeout=120)
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                list(map(str, command)),
                stderr=output,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                preexec_fn=die_with_parent,
            )

    def wait_until_ready(self) -> None:
        until = time.monotonic() + START_SECONDS
        while time.monotonic() < until:
            assert self.process.poll() is None, self.log.read_text()
            try:
                if self.http.get("/readyz").status_code == 200:
                    return
            except httpx2.TransportError:
                pass
            time.sleep(0.1)
        raise AssertionError(f"the server did not start within {START_SECONDS} s: {self.log.read_text()}")

    def resident_bytes(self) -> int:
        """Its memory."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def ask(self, content: Any, **further: Any) -> dict[str, Any]:
        """The answer to a question."""
        body = {"model": "tiny-llava", "messages": [{"role": "user", "content": content}], **further}
        response = self.http.post("/v1/chat/completions", json=body)
        assert response.status_code == 200, response.text
        return response.json()

    def kill(self) -> None:
        """As the kernel does where memory ends."""
        self.process.kill()
        self.process.wait()
        self.http.close()

    def stop(self) -> None:
        """As an operator does."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(60)
            finally:
                self.process.kill()
        self.process.wait()
        self.http.close()


@contextmanager
def serving(
    edits: Path | str, folder: Path, *options: object, count: int = 1, key: str | None = None
) -> Iterator[list[ServedProcess]]:
    """`count` servers on the same edits, ready; stopped at the end. folder: for their standard error."""
    servers: list[ServedProcess] = []
    try:
        for place in range(count):
            servers.append(ServedProcess(edits, folder / f"server-{place}.log", *options, key=key))
        for server in servers:
            server.wait_until_ready()
        yield servers
    finally:
        for server in servers:
            server.stop()


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def die_with_parent() -> None:
    """In a child: be killed when its parent is gone. Linux alone; elsewhere nothing happens."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
