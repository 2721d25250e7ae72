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
    """A server that is gone afterwards, with all its data."""
    # Not pytest's folders: the path of a socket has to be short, and the server's user has to reach it.
    folder = Path(tempfile.mkdtemp(prefix="pg"))
    server = PostgresServer(folder)
    try:
        server.start()
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)


class PostgresServer:
    """Starts and stops, and gives an empty database."""

    def __init__(self, folder: Path):
        self.folder = folder

    def start(self) -> None:
        """Make the data folder and start the server."""
        if os.geteuid() == 0:
            shutil.chown(self.folder, _user())
        data = self.folder / "data"
        self._run("initdb", "-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync")
        options = f"-c listen_addresses='' -c unix_socket_directories={self.folder} -c fsync=off"
        self._run("pg_ctl", "-D", data, "-w", "-l", self.folder / "log", "-o", options, "start")

    def stop(self) -> None:
        """Stop the server at once, if it runs."""
        if (self.folder / "data" / "postmaster.pid").exists():
            self._run("pg_ctl", "-D", self.folder / "data", "-m", "immediate", "-w", "stop")

    def empty_database(self) -> str:
        """The URL of a database without tables: the same one each time, because making another takes long."""
        clean = "DROP SCHEMA public CASCADE; CREATE SCHEMA public"
        self._run("psql", "-h", self.folder, "-U", "postgres", "-q", "-c", clean, "postgres")
        return f"postgresql+psycopg://postgres@/postgres?host={self.folder}"

    def _run(self, program: str, *arguments: object) -> None:
        folder = programs_folder()
        assert folder is not None
        as_user: dict[str, Any] = {}
        if os.geteuid() == 0:
            as_user = {"user": _user(), "group": pwd.getpwnam(_user() or "").pw_gid, "extra_groups": []}
        command = [str(folder / program), *map(str, arguments)]
        # To files, not pipes: the server would inherit a pipe and keep it open.
        with tempfile.TemporaryFile() as output:
            done = subprocess.run(command, stdout=output, stderr=output, cwd=self.folder, timeout=120, **as_user)
            output.seek(0)
            assert done.returncode == 0, output.read().decode(errors="replace")


def _user() -> str | None:
    try:
        return pwd.getpwnam("postgres").pw_name
    except KeyError:
        return None
