"""Runs the steps of a Dockerfile one by one in a folder, without Docker, then the service that the image would run.

usage: python containers/run_steps.py containers/Dockerfile [FOLDER]

COPY, ENV, ARG, WORKDIR and RUN are carried out with every absolute path below FOLDER. What needs another system is left
out and said: the base image (the Python that runs this is used), `useradd` and USER. At the end the entry point runs
with its default command, until the health check passes and SIGTERM ends it.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

CONTEXT = Path(__file__).parents[1]
OUTSIDE = re.compile(r"(?<![\w./-])/(opt|source|var/lib)(?=/)|(?<![\w./-])/source$")
"""Absolute paths that the Dockerfiles write to."""
PORT = "8000"
SECONDS_TO_START = 300


def instructions(text: str) -> list[tuple[str, str]]:
    """(instruction, arguments) of a Dockerfile, with continued lines joined."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n", " ", "\n".join(lines)).splitlines()
    return [(line.split(None, 1)[0].upper(), line.split(None, 1)[1]) for line in joined if line.strip()]


@dataclass
class Build:
    """The state of a build in `folder`. port: that of the service, in place of 8000."""

    folder: Path
    port: str
    variables: dict[str, str] = field(default_factory=dict)
    place: Path = Path("/")
    command: dict[str, list[str]] = field(default_factory=dict)

    def path(self, text: str) -> str:
        """The text with absolute paths moved below the folder."""
        return OUTSIDE.sub(lambda match: f"{self.folder}{match[0]}", text)

    def step(self, name: str, given: str) -> None:
        """Carry out one instruction."""
        method = getattr(self, f"_{name.lower()}", None)
        print(f"{name} {given}" if method else f"{name} {given}  (left out)", flush=True)
        if method is not None:
            method(given)

    def _from(self, given: str) -> None:
        self.variables, self.place = {}, self.folder

    def _arg(self, given: str) -> None:
        name, _, default = given.partition("=")
        self.variables[name] = os.environ.get(name, default)

    def _env(self, given: str) -> None:
        for pair in shlex.split(given):
            name, _, value = pair.partition("=")
            value = re.sub(r"\$\{(\w+)\}", lambda match: self.variables.get(match[1], ""), value)
            self.variables[name] = self.path(value)

    def _workdir(self, given: str) -> None:
        self.place = Path(self.path(given + "/"))
        self.place.mkdir(parents=True, exist_ok=True)

    def _copy(self, given: str) -> None:
        *sources, target = given.split()
        if sources[0].startswith("--from="):  # All stages share one folder.
            if sources[1:] != [target]:
                sys.exit(f"COPY {given}: another path than in the stage before would break the environment's scripts.")
            return
        for source in sources:
            found, to = CONTEXT / source, self.place / target
            if found.is_dir():
                shutil.copytree(found, to, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(found, to)

    def _run(self, given: str) -> None:
        if subprocess.run(["/bin/sh", "-e", "-c", self.path(given)], cwd=self.place, env=self.environment).returncode:
            sys.exit(f"This step failed: RUN {given}")

    def _entrypoint(self, given: str) -> None:
        self.command["entry"] = json.loads(given)

    def _cmd(self, given: str) -> None:
        self.command["default"] = [part.replace(PORT, self.port) for part in json.loads(given)]

    def _healthcheck(self, given: str) -> None:
        self.command["health"] = json.loads(given.split("CMD", 1)[1].replace(PORT, self.port))

    @property
    def environment(self) -> dict[str, str]:
        """That of a step: nothing of this process but the way to the package index."""
        outside = {
            name: value for name, value in os.environ.items() if name.startswith(("PIP_", "SSL_", "http", "HTTP"))
        }
        path = f"{self.folder}/stubs:{self.variables.get('PATH', os.defpath)}"
        return {"HOME": str(self.folder), **outside, **{k: v for k, v in self.variables.items() if v}, "PATH": path}

    def try_service(self) -> None:
        """Make a key, start the service, wait for the health check, and end the service as Docker does."""
        entry, health = self.command["entry"], self.command["health"]
        options = {"cwd": self.place, "env": self.environment}
        subprocess.run([*entry, "keys", "add", "--keys", "keys/keys.json"], check=True, **options)
        service = subprocess.Popen([*entry, *self.command["default"]], **options)
        try:
            limit = time.monotonic() + SECONDS_TO_START
            while subprocess.run(health, stderr=subprocess.DEVNULL, check=False, **options).returncode:
                if service.poll() is not None or time.monotonic() > limit:
                    sys.exit(f"The service is not ready (exit code {service.poll()}).")
                time.sleep(1)
        finally:
            service.send_signal(signal.SIGTERM)
            code = service.wait(60)
        if code:
            sys.exit(f"The service ended with exit code {code} after SIGTERM.")
        print("The service started, passed its health check, and ended by SIGTERM with exit code 0.")


def stubs(folder: Path) -> None:
    """Programs of the base image, in place of those of this system."""
    folder.mkdir()
    for name, text in (("python", f'exec {sys.executable} "$@"'), ("useradd", 'echo "useradd $*  (left out)"')):
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)


def run(dockerfile: Path, folder: Path) -> None:
    """Carry out every instruction, then try the service."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    stubs(folder / "stubs")
    build = Build(folder, port)
    for name, given in instructions(dockerfile.read_text(encoding="utf-8")):
        build.step(name, given)
    build.try_service()


if __name__ == "__main__":
    if len(sys.argv) > 2:
        Path(sys.argv[2]).mkdir(parents=True)
        run(Path(sys.argv[1]), Path(sys.argv[2]).resolve())
    else:
        with tempfile.TemporaryDirectory(prefix="liveedit-steps-") as made:
            run(Path(sys.argv[1]), Path(made))
