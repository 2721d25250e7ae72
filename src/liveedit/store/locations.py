"""Opens the database at a path or URL."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import URL
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from ..errors import InvalidInputError
from .database import Database
from .sqlite import InMemoryDatabase, SqliteFile

_ALLOWED = "Give the path of a file, sqlite:///PATH, or postgresql://USER@HOST/NAME."


def open_database(location: str | Path | None, *, create: bool = True, busy_timeout_s: float = 30.0) -> Database:
    """Open the edits file or database at a path or URL; None opens one in memory.

    Raises `InvalidInputError` for a URL of another kind, `StoreError` if it cannot be used.
    """
    if location is None:
        return InMemoryDatabase(busy_timeout_s=busy_timeout_s)
    if isinstance(location, Path) or "://" not in location:
        return SqliteFile(Path(location), create=create, busy_timeout_s=busy_timeout_s)
    url = _parsed(location)
    family = url.drivername.partition("+")[0]
    if family == "sqlite":
        if not url.database or url.query:
            raise InvalidInputError(f"The edits file {location!r} names no file, or has options. {_ALLOWED}")
        return SqliteFile(Path(url.database), create=create, busy_timeout_s=busy_timeout_s)
    if url.drivername in ("postgresql", "postgres", "postgresql+psycopg"):
        from .postgres import PostgresDatabase

        return PostgresDatabase(url, busy_timeout_s=busy_timeout_s)
    raise InvalidInputError(f"Edits cannot be kept in {url.drivername!r}. {_ALLOWED}")


def is_absent(location: str | Path) -> bool:
    """Whether this names a file that does not exist yet."""
    if isinstance(location, Path) or "://" not in location:
        return not Path(location).exists()
    url = _parsed(location)
    return url.drivername.startswith("sqlite") and not Path(url.database or "").exists()


def _parsed(location: str) -> URL:
    try:
        return make_url(location)
    except ArgumentError as error:
        # The URL is not quoted: it may hold a password.
        raise InvalidInputError(f"The URL of the edits cannot be read. {_ALLOWED}") from error
