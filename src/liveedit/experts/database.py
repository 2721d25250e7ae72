"""Opening an edits file: what may be opened, how it is kept durable, and what SQLite's errors mean."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from ..errors import StoreError
from .migrations import APPLICATION_ID, migrate

_MAGIC: Final = b"SQLite format 3\x00"
_HEADER_BYTES: Final = 100
_APPLICATION_ID_AT: Final = slice(68, 72)
"""Where SQLite's file header keeps the application id, as a big-endian number."""

_IN_USE: Final = (
    "is in use by another process, which did not finish in time. Wait and try again, or close that process."
)
_NOT_WRITABLE: Final = "cannot be written to. Make the file and its folder writable, or copy it elsewhere."
_DAMAGED: Final = "is damaged. Keep a copy of it and go back to the last backup."
_EXPLANATIONS: Final = {
    sqlite3.SQLITE_BUSY: _IN_USE,
    sqlite3.SQLITE_LOCKED: _IN_USE,
    sqlite3.SQLITE_READONLY: _NOT_WRITABLE,
    sqlite3.SQLITE_PERM: _NOT_WRITABLE,
    sqlite3.SQLITE_CANTOPEN: "cannot be opened. Its folder must exist, be writable, and allow new files.",
    sqlite3.SQLITE_FULL: "cannot grow: the disk is full. Nothing was changed; free some space and try again.",
    sqlite3.SQLITE_CORRUPT: _DAMAGED,
    sqlite3.SQLITE_NOTADB: _DAMAGED,
    sqlite3.SQLITE_IOERR: "could not be read or written by the disk. Check the disk and its free space.",
}


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn SQLite's errors into a `StoreError` that says what is wrong with the file and what to do."""
    try:
        yield
    except sqlite3.Error as error:
        # The low byte is the kind of error, the rest its detail.
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        meaning = _EXPLANATIONS.get(code, "could not be used. Try again with a new file to see whether it is the file.")
        raise StoreError(f"The edits file {str(path)!r} {meaning} (SQLite: {error})") from error


def open_database(path: Path, create: bool, busy_timeout_s: float) -> sqlite3.Connection:
    """A connection to an edits file of the newest layout, in WAL mode with an fsync per commit.

    Raises `StoreError`. A file that is not an edits file is only read, never written to.
    """
    _check_path(path, create)
    with explained(path):
        # A URI, because otherwise SQLite takes names such as ":memory:" for something else than files.
        uri = f"{path.absolute().as_uri()}?mode={'rwc' if create else 'rw'}"
        connection = sqlite3.connect(
            uri, uri=True, timeout=busy_timeout_s, isolation_level=None, check_same_thread=False
        )
        try:
            _prepare(connection, path, busy_timeout_s)
        except BaseException:
            connection.close()
            raise
    return connection


def _prepare(connection: sqlite3.Connection, path: Path, busy_timeout_s: float) -> None:
    connection.row_factory = sqlite3.Row
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute("PRAGMA synchronous = FULL")
    # On macOS a plain fsync may leave the data in the drive's cache; elsewhere this does nothing.
    connection.execute("PRAGMA fullfsync = ON")
    migrate(connection, f"The edits file {str(path)!r}")
    # Only now: the application id then stands in the main file itself, where `_check_header` reads it, and
    # not in a log beside it.
    mode = _turn_wal_on(connection, busy_timeout_s)
    if mode != "wal":
        raise StoreError(
            f"The edits file {str(path)!r} is on a file system that allows no write-ahead log (SQLite "
            f"stays in mode {mode!r}). Put it on a local disk."
        )


def _turn_wal_on(connection: sqlite3.Connection, busy_timeout_s: float) -> str:
    """The journal mode after asking for WAL. SQLite does not wait for others in this change: it is tried again."""
    until = time.monotonic() + busy_timeout_s
    while True:
        try:
            return connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
        except sqlite3.OperationalError as error:
            locked = getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
            if not locked or time.monotonic() >= until:
                raise
            time.sleep(0.02)


def _check_path(path: Path, create: bool) -> None:
    name = f"The edits file {str(path)!r}"
    try:
        if not path.exists():
            _check_absent(path, name, create)
        elif path.is_dir():
            raise StoreError(f"{name} is a folder. Give the path of a file in it, such as edits.db.")
        elif not path.is_file():
            raise StoreError(f"{name} is a device or a pipe. Give the path of an ordinary file.")
        else:
            _check_header(path, name)
        _check_folder(path, name)
    except (OSError, ValueError) as error:
        # ValueError: a path with a zero byte.
        reason = getattr(error, "strerror", None) or error
        raise StoreError(f"{name} cannot be opened ({reason}). Give a path you may read and write.") from error


def _check_folder(path: Path, name: str) -> None:
    # A link's log lies beside what it points to.
    folder = path.resolve().parent
    if not os.access(folder, os.W_OK | os.X_OK, effective_ids=os.access in os.supports_effective_ids):
        raise StoreError(
            f"{name} is in a folder that cannot be written to, and SQLite keeps its log there. Make the "
            "folder writable, or copy the file to one that is."
        )


def _check_absent(path: Path, name: str, create: bool) -> None:
    if not create:
        raise StoreError(f"{name} does not exist. Check the path, or make an edit to create it.")
    if not path.parent.is_dir():
        raise StoreError(f"{name} cannot be created: there is no folder {str(path.parent)!r}. Create it first.")


def _check_header(path: Path, name: str) -> None:
    with path.open("rb") as file:
        header = file.read(_HEADER_BYTES)
    if not header:
        return  # An empty file is what SQLite starts from.
    if not header.startswith(_MAGIC):
        raise StoreError(f"{name} is not an edits file (nor any SQLite file). It was left as it is.")
    if int.from_bytes(header[_APPLICATION_ID_AT], "big") != APPLICATION_ID:
        raise StoreError(f"{name} is a SQLite file of another program. It was left as it is; give another path.")
