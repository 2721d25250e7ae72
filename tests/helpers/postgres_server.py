"""A PostgreSQL server of one's own, from Debian's package, in a folder of /tmp and on a socket there."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def programs_folder() -> Path | None:
    """Where initdb, pg_ctl and their kind are, newest version first; None where PostgreSQL is not installed."""
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name), reverse=True)
    on_path = shutil.which("initdb")
    candidates = [*debian, *([Path(on_path).parent] if on_path else [])]
    return next((folder for folder in candidates if (folder / "initdb").exists()), None)


def reason_to_skip() -> str | None:
    """Why no server can be started here, or None."""
    if programs_folder() is None:
        return "PostgreSQL is not installed (apt-get install postgresql)"
    if os.geteuid() == 0 and _user() is None:
        return "PostgreSQL does not run as root, and there is no user 'postgres' to run it as"
    try:
        import psycopg  # noqa: F401
    except ImportError:
        return "psycopg is not installed (pip install 'liveedit[postgres]')"
    return None


@contextmanager
def running_server() -> Iterator[PostgresServer]:
    """A server that is gone afterwards, with all its data, also where the process that started it is killed."""
    # Not pytest's folders: the path of a socket has to be short, and the server's user has to reach it.
    folder = Path(tempfile.mkdtemp(prefix="pg"))
    if os.geteuid() == 0:
        shutil.chown(folder, _user())
    server = PostgresServer(folder)
    with _watched(folder):
        server.create()
        server.start()
        yield server


_WATCH = """
trap '' INT TERM HUP
read -r line
"$1/pg_ctl" -D "$2/data" -m immediate -w stop
rm -rf "$2"
"""
"""A shell that waits for its standard input to be closed, which the kernel does for whoever held it."""


@contextmanager
def _watched(folder: Path) -> Iterator[None]:
    """Whatever ends the block, the server of this folder is stopped and the folder removed."""
    command = ["sh", "-c", _WATCH, "watch", str(programs_folder()), str(folder)]
    with tempfile.TemporaryFile() as output:
        watcher = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=output, stderr=output, start_new_session=True, cwd="/", **_as_user()
        )
    try:
        yield
    finally:
        watcher.communicate(timeout=120)


class PostgresServer:
    """Starts, stops and crashes, and gives an empty database."""

    def __init__(self, folder: Path):
        self.folder = folder

    def create(self) -> None:
        """Make the data folder."""
        data = self.folder / "data"
        self._run("initdb", "-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync")

    def start(self) -> None:
        """Start the server; after a crash it recovers first."""
        data = self.folder / "data"
        options = f"-c listen_addresses='' -c unix_socket_directories={self.folder} -c fsync=off"
        self._run("pg_ctl", "-D", data, "-w", "-l", self.folder / "log", "-o", options, "start")

    def stop(self) -> None:
        """Stop the server as an operator does; whoever is connected is thrown out."""
        self._run("pg_ctl", "-D", self.folder / "data", "-m", "fast", "-w", "stop")

    def crash(self) -> None:
        """End all its processes at once, without a checkpoint."""
        self._run("pg_ctl", "-D", self.folder / "data", "-m", "immediate", "-w", "stop")

    def empty_database(self) -> str:
        """The URL of a database without tables: the same one each time, because making another takes long."""
        clean = "DROP SCHEMA public CASCADE; CREATE SCHEMA public"
        self._run("psql", "-h", self.folder, "-U", "postgres", "-q", "-c", clean, "postgres")
        return f"postgresql+psycopg://postgres@/postgres?host={self.folder}"

    def _run(self, program: str, *arguments: object) -> None:
        folder = programs_folder()
        assert folder is not None
        command = [str(folder / program), *map(str, arguments)]
        # To files, not pipes: the server would inherit a pipe and keep it open.
        with tempfile.TemporaryFile() as output:
            done = subprocess.run(command, stdout=output, stderr=output, cwd=self.folder, timeout=120, **_as_user())
            output.seek(0)
            assert done.returncode == 0, output.read().decode(errors="replace")


def _as_user() -> dict[str, Any]:
    """Arguments of subprocess: PostgreSQL does not run as root."""
    if os.geteuid() != 0:
        return {}
    return {"user": _user(), "group": pwd.getpwnam(_user() or "").pw_gid, "extra_groups": []}


def _user() -> str | None:
    try:
        return pwd.getpwnam("postgres").pw_name
    except KeyError:
        return None
