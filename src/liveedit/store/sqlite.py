"""Edits in an SQLite file or in memory: which files are opened, how writes become durable, what errors mean."""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Final

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import QueuePool

from ..errors import StoreError
from .database import IN_USE, UNKNOWN, Database
from .schema import APPLICATION_ID

_MAGIC: Final = b"SQLite format 3\x00"
_HEADER_BYTES: Final = 100
_APPLICATION_ID_AT: Final = slice(68, 72)
"""Where the header of an SQLite file holds the application id, as a big-endian number."""

_NOT_WRITABLE: Final = "cannot be written to. Make the file and its folder writable, or copy it elsewhere."
_DAMAGED: Final = "is damaged. Keep a copy of it and go back to the last backup."
_EXPLANATIONS: Final = {
    sqlite3.SQLITE_BUSY: IN_USE,
    sqlite3.SQLITE_LOCKED: IN_USE,
    sqlite3.SQLITE_READONLY: _NOT_WRITABLE,
    sqlite3.SQLITE_PERM: _NOT_WRITABLE,
    sqlite3.SQLITE_CANTOPEN: "cannot be opened. Its folder must exist, be writable, and allow new files.",
    sqlite3.SQLITE_FULL: "cannot grow: the disk is full. Nothing was changed; free some space and try again.",
    sqlite3.SQLITE_CORRUPT: _DAMAGED,
    sqlite3.SQLITE_NOTADB: _DAMAGED,
    sqlite3.SQLITE_IOERR: "could not be read or written by the disk. Check the disk and its free space.",
}


class SqliteFile(Database):
    """An edits file in WAL mode with an fsync per commit.

    A file that does not exist yet reads as one without edits. The first transaction that writes creates it, so that
    whatever fails earlier leaves no file. Raises `StoreError` if the file cannot be used; a file that is not an edits
    file is never written to.
    """

    product = "SQLite"

    def __init__(self, path: Path, *, create: bool = True, busy_timeout_s: float = 30.0):
        super().__init__(str(path), f"The edits file {str(path)!r}")
        self._path, self._busy_timeout_s = path, busy_timeout_s
        self._opening = threading.Lock()
        self._file: Engine | None = None
        self._nothing: Engine | None = None
        """An empty database in memory, in place of a file that does not exist yet."""
        _check_path(path, create)
        if path.exists():
            self._engine(False)

    def schema_version(self, connection: Connection) -> int:
        """The `user_version` in the header of the file."""
        return int(connection.exec_driver_sql("PRAGMA user_version").scalar_one())

    def structure_problems(self, connection: Connection) -> Iterator[str]:
        """Run SQLite's own checks of the file and of the references between tables."""
        for line in connection.exec_driver_sql("PRAGMA integrity_check").scalars():
            if line != "ok":
                yield f"SQLite: {line}."
        for table, row, parent, _ in connection.exec_driver_sql("PRAGMA foreign_key_check"):
            yield f"Row {row} of {table} refers to something that is not in {parent}."

    def vacuum(self) -> None:
        """Rewrite the file without its free space, and empty its write-ahead log."""
        engine = self._engine(True)
        with self.explained(), self._write_lock, closing(engine.raw_connection()) as connection:
            cursor = connection.cursor()
            try:
                cursor.execute("VACUUM")
                busy = cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
            except sqlite3.Error as error:
                raise DBAPIError("VACUUM", None, error) from error
        if busy:
            raise StoreError(
                f"{self.name} is being read by another process: what was purged is out of the file's tables, but its "
                "bytes are still in the write-ahead log. Close the other processes, then purge the same edit again."
            )

    def _set_schema_version(self, connection: Connection, version: int) -> None:
        connection.exec_driver_sql(f"PRAGMA user_version = {version}")

    def _holds_other_tables(self, connection: Connection) -> bool:
        return bool(connection.exec_driver_sql("SELECT count(*) FROM sqlite_master").scalar_one())

    def _engine(self, writing: bool) -> Engine:
        self.check_open()
        with self._opening:
            if self._file is None and (writing or self._path.exists()):
                _check_path(self._path, True)
                self._file = self._opened(self._connect_file, connections=16)
            if self._file is None and self._nothing is None:
                self._nothing = self._opened(lambda: sqlite3.connect(":memory:", check_same_thread=False), 1)
            return self._file or self._nothing  # pyright: ignore[reportReturnType]

    def _opened(self, connect: Callable[[], sqlite3.Connection], connections: int) -> Engine:
        engine = create_engine(
            "sqlite://",
            creator=connect,
            poolclass=QueuePool,
            pool_size=min(4, connections),
            max_overflow=max(0, connections - 4),
            pool_timeout=self._busy_timeout_s,
        )
        event.listen(engine, "connect", _set_up)
        event.listen(engine, "begin", _begin)
        try:
            self._prepare_tables(engine)
            # Only now, so that the application id is in the main file, where `_check_header` reads it, and not in
            # the write-ahead log.
            if connections > 1:
                self._turn_wal_on(engine)
        except BaseException:
            engine.dispose()
            raise
        return engine

    def _connect_file(self) -> sqlite3.Connection:
        # A URI, because SQLite gives names such as ":memory:" another meaning.
        uri = f"{self._path.absolute().as_uri()}?mode=rwc"
        return sqlite3.connect(uri, uri=True, timeout=self._busy_timeout_s, check_same_thread=False)

    def _turn_wal_on(self, engine: Engine) -> None:
        """Switch to WAL mode. SQLite does not wait for other processes here, so it is tried repeatedly."""
        until = time.monotonic() + self._busy_timeout_s
        with self.explained(), closing(engine.raw_connection()) as connection:
            while True:
                try:
                    mode = connection.cursor().execute("PRAGMA journal_mode = WAL").fetchone()[0]
                    break
                except sqlite3.OperationalError as error:
                    if _code(error) not in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED) or time.monotonic() >= until:
                        raise DBAPIError("PRAGMA journal_mode", None, error) from error
                    time.sleep(0.02)
        if mode != "wal":
            raise StoreError(
                f"{self.name} is on a file system that cannot hold a write-ahead log (SQLite stays in mode {mode!r}). "
                "Put it on a local disk."
            )

    def _dispose(self) -> None:
        for engine in (self._file, self._nothing):
            if engine is not None:
                engine.dispose()

    def _meaning(self, error: DBAPIError) -> str:
        return _EXPLANATIONS.get(_code(error.orig), UNKNOWN)

    def _prepare(self, connection: Connection, writing: bool) -> None:
        connection.execution_options(writing=writing)


class InMemoryDatabase(SqliteFile):
    """An SQLite database in memory, which ends with the process. Threads take turns on its single connection."""

    def __init__(self, *, busy_timeout_s: float = 30.0):
        Database.__init__(self, "memory", "The store in memory")
        self._busy_timeout_s = busy_timeout_s
        self._file = None
        self._nothing = self._opened(lambda: sqlite3.connect(":memory:", check_same_thread=False), connections=1)

    def _engine(self, writing: bool) -> Engine:
        self.check_open()
        assert self._nothing is not None
        return self._nothing


def _set_up(connection: sqlite3.Connection, _: object) -> None:
    connection.isolation_level = None  # `_begin` starts transactions.
    # Damaged text that is no longer UTF-8 is still read, so that its edit can be named, shown and undone.
    connection.text_factory = lambda data: data.decode("utf-8", "replace")
    for setting in (
        "foreign_keys = ON",
        "synchronous = FULL",
        # On macOS a plain fsync may leave the data in the drive's cache; elsewhere this does nothing.
        "fullfsync = ON",
        # Deleted rows are overwritten, not only marked as free.
        "secure_delete = ON",
    ):
        try:
            connection.execute(f"PRAGMA {setting}")
        except UnicodeDecodeError as error:  # SQLite quotes part of a damaged schema in its message.
            damaged = sqlite3.DatabaseError(f"malformed database schema: {error}")
            damaged.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
            raise damaged from error


def _begin(connection: Connection) -> None:
    writing = connection.get_execution_options().get("writing", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writing else "BEGIN")


def _code(error: BaseException | None) -> int:
    """The primary error code of SQLite: the low byte; the other bytes hold details."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


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
        # ValueError: the path holds a zero byte.
        reason = getattr(error, "strerror", None) or error
        raise StoreError(f"{name} cannot be opened ({reason}). Give a path you may read and write.") from error


def _check_folder(path: Path, name: str) -> None:
    # SQLite puts the log of a link into the folder of the link's target.
    folder = path.resolve().parent
    if not os.access(folder, os.W_OK | os.X_OK, effective_ids=os.access in os.supports_effective_ids):
        raise StoreError(
            f"{name} is in a folder that cannot be written to, and SQLite keeps its log there. Make the "
            "folder writable, or copy the file to a writable one."
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
        return  # SQLite turns an empty file into a database.
    if not header.startswith(_MAGIC):
        raise StoreError(f"{name} is not an edits file (nor any SQLite file). It was left as it is.")
    if int.from_bytes(header[_APPLICATION_ID_AT], "big") != APPLICATION_ID:
        raise StoreError(f"{name} is a SQLite file of another program. It was left as it is; give another path.")
