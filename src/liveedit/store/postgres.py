"""Edits in a PostgreSQL database, for several machines: how writes become durable, and what errors mean."""

from __future__ import annotations

import math
from typing import Any, Final

from sqlalchemy import URL, Connection, Engine, create_engine, event, inspect, text
from sqlalchemy.exc import DBAPIError

from ..errors import StoreError
from .database import IN_USE, UNKNOWN, Database
from .schema import TABLES

_CONNECT_TIMEOUT_S: Final = 10
_LOCK: Final = 0x4C456474
"""The number of the advisory lock that writers take. No other program may use it in the same database."""

_UNREACHABLE: Final = "cannot be reached. Check that the server runs, the URL's host, name, user and password."
_EXPLANATIONS: Final = {
    "55P03": IN_USE,
    "57014": IN_USE,
    "53100": "cannot grow: the server's disk is full. Nothing was changed; free some space and try again.",
    "42501": "may not be used by this user. Grant it the right to create and change tables there.",
    "25006": "is read-only, such as a standby server. Give the URL of the primary.",
    "53300": "has no connection left. Close some, or raise the server's max_connections.",
    "08": _UNREACHABLE,
    "28": "refuses this user. Check the URL's user and password.",
    "3D": "does not exist. Create it first: createdb NAME.",
    "57": "was shut down in the meantime. Try again once the server is back.",
    "XX": "is damaged. Keep a copy of it and go back to the last backup.",
}
"""By SQLSTATE, or by its first two digits (its class)."""


class PostgresDatabase(Database):
    """The tables of the edits in one PostgreSQL database (in the first schema of its search path).

    Writers take turns by an advisory lock, so that revisions appear in order. Raises `StoreError` if the database
    cannot be used or holds tables of another program.
    """

    product = "PostgreSQL"

    def __init__(self, url: URL, *, busy_timeout_s: float = 30.0):
        super().__init__(shown := url.render_as_string(hide_password=True), f"The edits database {shown!r}")
        _check_driver()
        self._busy_timeout_s = busy_timeout_s
        self._pool = create_engine(
            url.set(drivername="postgresql+psycopg"),
            isolation_level="REPEATABLE READ",
            pool_pre_ping=True,
            pool_size=4,
            max_overflow=12,
            pool_timeout=busy_timeout_s,
            connect_args={"connect_timeout": _CONNECT_TIMEOUT_S},
        )
        event.listen(self._pool, "connect", self._set_up)
        try:
            self._prepare_tables(self._pool)
        except BaseException:
            self._pool.dispose()
            raise

    def schema_version(self, connection: Connection) -> int:
        """The row of the table `meta` that holds it."""
        found = inspect(connection)
        if not found.has_table("meta") or {"key", "value"} - {column["name"] for column in found.get_columns("meta")}:
            return 0
        row = connection.execute(text("SELECT value FROM meta WHERE key = 'liveedit_schema_version'")).first()
        return int(row.value) if row is not None else 0

    def problem_with_text(self, text: str) -> str | None:
        """PostgreSQL cannot store zero bytes in texts."""
        if "\x00" not in text:
            return None
        return f"holds a zero byte at position {text.index(chr(0))}, which PostgreSQL cannot store. Leave it out."

    def vacuum(self) -> None:
        """Rewrite the tables without the deleted rows. The server's own log and its backups are not touched."""
        with self.explained(), self._write_lock, self._engine(True).connect() as connection:
            alone = connection.execution_options(isolation_level="AUTOCOMMIT")
            for table in TABLES:
                alone.exec_driver_sql(f"VACUUM FULL {table.name}")

    def _set_schema_version(self, connection: Connection, version: int) -> None:
        connection.execute(
            text(
                "INSERT INTO meta (key, value) VALUES ('liveedit_schema_version', :version) "
                "ON CONFLICT (key) DO UPDATE SET value = excluded.value"
            ),
            {"version": str(version)},
        )

    def _holds_other_tables(self, connection: Connection) -> bool:
        return bool({table.name for table in TABLES}.intersection(inspect(connection).get_table_names()))

    def _engine(self, writing: bool) -> Engine:
        self.check_open()
        return self._pool

    def _dispose(self) -> None:
        self._pool.dispose()

    def _meaning(self, error: DBAPIError) -> str:
        state = getattr(error.orig, "sqlstate", None)
        if state is None:
            return _UNREACHABLE
        return _EXPLANATIONS.get(state) or _EXPLANATIONS.get(state[:2]) or UNKNOWN

    def _prepare(self, connection: Connection, writing: bool) -> None:
        # Each statement of a writer must see what was committed before the writer got the lock.
        level = "READ COMMITTED" if writing else "REPEATABLE READ"
        connection.execution_options(isolation_level=level)

    def _take_write_lock(self, connection: Connection) -> None:
        connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})

    def _set_up(self, connection: Any, _: object) -> None:
        connection.autocommit = True
        with connection.cursor() as cursor:
            # Overrides the server's default: a commit that was acknowledged is on the server's disk.
            cursor.execute("SET synchronous_commit = on")
            cursor.execute(f"SET lock_timeout = {max(1, math.ceil(1000 * self._busy_timeout_s))}")
        connection.autocommit = False


def _check_driver() -> None:
    try:
        import psycopg  # noqa: F401  # SQLAlchemy would import it too, but with a less helpful message.
    except ImportError as error:
        raise StoreError(
            "Edits in PostgreSQL need psycopg, which cannot be imported. Install it with: "
            "pip install 'liveedit[postgres]'"
        ) from error
