"""Where edits are kept: transactions on an SQLite file or a PostgreSQL database, by one code."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError, SQLAlchemyError, TimeoutError

from ..errors import StoreError
from . import migrations

IN_USE = "is in use by another process, which did not finish in time. Wait and try again, or close that process."
UNKNOWN = "could not be used. Try again with a new one to see whether it is this one."


class Database(ABC):
    """An opened edits file or database. One transaction writes at a time; several may read beside it.

    `location`: the path or URL, without a password. `name`: what messages call it.
    """

    product: ClassVar[str]
    """Whose errors are quoted."""

    def __init__(self, location: str, name: str):
        self.location, self.name = location, name
        self._write_lock = threading.Lock()
        self._is_closed = False

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A transaction that sees one state of the edits and changes nothing."""
        with self._transaction(self._engine(False), writing=False) as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """All or nothing, on the disk when it is left. The write lock is taken at once, so what is read stays true."""
        engine = self._engine(True)
        with self._write_lock, self._transaction(engine, writing=True) as connection:
            yield connection

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Turn the errors of the database into a `StoreError` that says what is wrong and what to do."""
        try:
            yield
        except TimeoutError as error:
            raise StoreError(f"{self.name} {IN_USE} ({error})") from error
        except DBAPIError as error:
            raise StoreError(f"{self.name} {self._meaning(error)} ({self.product}: {error.orig})") from error
        except SQLAlchemyError as error:
            raise StoreError(f"{self.name} {UNKNOWN} ({error})") from error

    def close(self) -> None:
        """Let go of it. Closing twice does nothing."""
        self._is_closed = True
        with self.explained():
            self._dispose()

    def check_open(self) -> None:
        """Raise `StoreError` where it was closed."""
        if self._is_closed:
            raise StoreError(f"{self.name} is closed. Open it with `EditStore`.")

    def sweep(self) -> None:
        """Overwrite and give back the space of what was deleted. Raises `StoreError` where others hold on to it."""
        return

    def problem_with_text(self, text: str) -> str | None:
        """Why this text cannot be stored here, or None."""
        return None

    def structure_problems(self, connection: Connection) -> Iterator[str]:
        """What the database itself finds wrong with its structure, one sentence each."""
        return iter(())

    def _migrate(self, engine: Engine) -> None:
        """Bring it to the newest layout, each step in a transaction of its own.

        Raises `StoreError` where the layout is newer than this version knows, or not ours.
        """
        newest = len(migrations.MIGRATIONS)
        while True:
            with self._transaction(engine, writing=False) as connection:
                version = self.layout_version(connection)
            if version == newest:
                return
            if version > newest:
                raise StoreError(
                    f"{self.name} has layout {version}; this version of LiveEdit reads up to {newest}. "
                    "It was written by a newer LiveEdit: update this one, or use another edits file."
                )
            with self._transaction(engine, writing=True) as connection:
                self._apply_next(connection)

    def _apply_next(self, connection: Connection) -> None:
        # Read again under the lock: another process may have just done it.
        version = self.layout_version(connection)
        if version >= len(migrations.MIGRATIONS):
            return
        if version == 0 and self._holds_other_tables(connection):
            raise StoreError(f"{self.name} holds tables of another program. It was left as it is; give another one.")
        migrations.MIGRATIONS[version](connection)
        self._set_layout_version(connection, version + 1)

    @contextmanager
    def _transaction(self, engine: Engine, *, writing: bool) -> Iterator[Connection]:
        with self.explained(), engine.connect() as connection:
            self._prepare(connection, writing)
            transaction = connection.begin()
            try:
                if writing:
                    self._lock_others_out(connection)
                yield connection
                if writing:
                    transaction.commit()
            finally:
                # Also after reading: what a damaged file cannot commit, it can still let go of.
                transaction.close()

    @abstractmethod
    def layout_version(self, connection: Connection) -> int:
        """How many migrations it has had; 0 for an empty one."""

    @abstractmethod
    def _set_layout_version(self, connection: Connection, version: int) -> None: ...

    @abstractmethod
    def _holds_other_tables(self, connection: Connection) -> bool: ...

    @abstractmethod
    def _engine(self, writing: bool) -> Engine: ...

    @abstractmethod
    def _dispose(self) -> None: ...

    @abstractmethod
    def _meaning(self, error: DBAPIError) -> str: ...

    @abstractmethod
    def _prepare(self, connection: Connection, writing: bool) -> None:
        """Say what kind of transaction the next one is."""

    def _lock_others_out(self, connection: Connection) -> None:
        """Where beginning to write does not do it."""
        return
