"""The layout of the edits file, as steps that are only ever appended to."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ..errors import StoreError

APPLICATION_ID = 0x4C456474
"""`LEdt`, in the header of every edits file: how a file of another program is told from ours."""

Migration = Callable[[sqlite3.Connection], None]
"""One step from a layout to the next. It runs inside a transaction that it neither opens nor closes."""


def _first_layout(connection: sqlite3.Connection) -> None:
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    connection.execute("CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL)")
    connection.execute(
        """
        CREATE TABLE edits (
            number INTEGER PRIMARY KEY AUTOINCREMENT,
            id TEXT NOT NULL UNIQUE,
            created_at TEXT NOT NULL,
            undone_at TEXT,
            editor TEXT NOT NULL,
            prompt TEXT NOT NULL,
            answer TEXT NOT NULL,
            answer_before TEXT,
            answer_after TEXT,
            milliseconds REAL NOT NULL,
            refine_steps INTEGER NOT NULL,
            subject TEXT,
            relation TEXT,
            image_sha256 TEXT,
            image_name TEXT
        )
        """
    )
    # Apart from the edits, so that listing those does not read through megabytes of parameters.
    connection.execute(
        """
        CREATE TABLE blobs (
            edit_number INTEGER NOT NULL REFERENCES edits (number),
            kind TEXT NOT NULL CHECK (kind IN ('expert', 'thumbnail')),
            sha256 TEXT NOT NULL,
            data BLOB NOT NULL,
            UNIQUE (edit_number, kind)
        )
        """
    )
    connection.execute(
        """
        CREATE TABLE events (
            number INTEGER PRIMARY KEY AUTOINCREMENT,
            at TEXT NOT NULL,
            kind TEXT NOT NULL CHECK (kind IN ('edit', 'undo')),
            edit_id TEXT NOT NULL REFERENCES edits (id)
        )
        """
    )
    for change in ("UPDATE", "DELETE"):
        connection.execute(
            f"CREATE TRIGGER events_no_{change.lower()} BEFORE {change} ON events "
            "BEGIN SELECT RAISE(ABORT, 'the history is only appended to'); END"
        )


MIGRATIONS: tuple[Migration, ...] = (_first_layout,)
"""Step n brings a file from layout n to layout n + 1. Append; never change or reorder a released step."""


def migrate(connection: sqlite3.Connection, name: str) -> None:
    """Bring an edits file to the newest layout, each step in a transaction of its own.

    Raises `StoreError` where the file is of a newer layout than this version knows, or not ours. `name` is
    what the message calls the file.
    """
    while (version := layout_version(connection)) != len(MIGRATIONS):
        if version > len(MIGRATIONS):
            raise StoreError(
                f"{name} has layout {version}; this version of LiveEdit reads up to {len(MIGRATIONS)}. "
                "It was written by a newer LiveEdit: update this one, or use another edits file."
            )
        with transaction(connection):
            _apply_next(connection, name)


def layout_version(connection: sqlite3.Connection) -> int:
    """How many migrations the file has had; 0 for an empty file."""
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """All or nothing. The write lock is taken at once, so that what is read inside stays true."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        # After a full disk SQLite may have rolled back by itself.
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _apply_next(connection: sqlite3.Connection, name: str) -> None:
    # Read again under the lock: another process may have just done it.
    version = layout_version(connection)
    if version >= len(MIGRATIONS):
        return
    if version == 0 and connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
        raise StoreError(f"{name} holds tables of another program. It was left as it is; give another path.")
    MIGRATIONS[version](connection)
    connection.execute(f"PRAGMA user_version = {version + 1}")
