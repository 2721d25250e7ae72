"""Transactions on the database that holds the edits: an SQLite file or PostgreSQL, by the same code."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError, SQLAlchemyError, TimeoutError

from ..errors import StoreError
from . import schema

IN_USE = "is in use by another process, which did not finish in time. Wait and try again, or close that process."
UNKNOWN = "could not be used. Try a new one to find out whether the fault lies in this one."


class Database(ABC):
    """An open edits file or database. One transaction writes at a time; several may read meanwhile.

    location: the path or URL, without a password. name: what messages call it.
    """

    product: ClassVar[str]
    """The database system, named when its errors are quoted."""

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
        """A transaction that writes all or nothing, and is on the disk when the block ends.

        It takes the write lock at its beginning, so that what it reads stays true until it ends.
        """
        engine = self._engine(True)
        with self._write_lock, self._transaction(engine, writing=True) as connection:
            yield connection

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Turn errors of the database into a `StoreError` that says what is wrong and what to do."""
        try:
            yield
        except TimeoutError as error:
            raise StoreError(f"{self.name} {IN_USE} ({error})") from error
        except DBAPIError as error:
            raise StoreError(f"{self.name} {self._meaning(error)} ({self.product}: {error.orig})") from error
        except SQLAlchemyError as error:
            raise StoreError(f"{self.name} {UNKNOWN} ({error})") from error

    def close(self) -> None:
        """Release the connections. Closing twice does nothing."""
        self._is_closed = True
        with self.explained():
            self._dispose()

    def check_open(self) -> None:
        """Raise `StoreError` if it was closed."""
        if self._is_closed:
            raise StoreError(f"{self.name} is closed. Open it with `EditStore`.")

    def vacuum(self) -> None:
        """Overwrite and release the space of deleted rows. Raises `StoreError` if other processes prevent it."""
        return

    def problem_with_text(self, text: str) -> str | None:
        """Why this text cannot be stored here, or None."""
        return None

    def structure_problems(self, connection: Connection) -> Iterator[str]:
        """What the database system itself finds wrong with the structure, one sentence each."""
        return iter(())

    def _prepare_tables(self, engine: Engine) -> None:
        """Create the tables in an empty database, or migrate them, each step in a transaction of its own.

        Raises `StoreError` if the schema version cannot be read or the tables are not those of an edits database.
        """
        while True:
            with self._transaction(engine, writing=False) as connection:
                version = self.schema_version(connection)
            if version == schema.SCHEMA_VERSION:
                return
            self._check_version(version)
            with self._transaction(engine, writing=True) as connection:
                self._next_version(connection)

    def _check_version(self, version: int) -> None:
        readable = f"{self.name} has schema version {version}; this version of LiveEdit reads {schema.SCHEMA_VERSION}."
        if version > schema.SCHEMA_VERSION:
            raise StoreError(
                f"{readable} It was written by a newer LiveEdit and was left as it is. Update LiveEdit, or use another "
                "edits file."
            )
        if version != 0 and version + 1 not in {found for found, _, _ in schema.MIGRATIONS}:
            reason = schema.UNREADABLE_VERSIONS.get(version, "is not known")
            raise StoreError(
                f"{readable} Version {version} {reason}. It was written before the first release, cannot be converted, "
                "and was left as it is. Make the edits again in a new edits file, or use the version of LiveEdit that "
                "wrote it."
            )

    def _next_version(self, connection: Connection) -> None:
        # Read again under the lock: another process may have done it in the meantime.
        version = self.schema_version(connection)
        if version == 0:
            if self._holds_other_tables(connection):
                raise StoreError(
                    f"{self.name} holds tables of another program, or of a LiveEdit from before the first release. It "
                    "was left as it is; give another one."
                )
            schema.create_tables(connection)
            self._set_schema_version(connection, schema.SCHEMA_VERSION)
            return
        for new_version, _, migrate in schema.MIGRATIONS:
            if new_version == version + 1:
                migrate(connection)
                self._set_schema_version(connection, new_version)

    @contextmanager
    def _transaction(self, engine: Engine, *, writing: bool) -> Iterator[Connection]:
        with self.explained(), engine.connect() as connection:
            self._prepare(connection, writing)
            transaction = connection.begin()
            try:
                if writing:
                    self._take_write_lock(connection)
                yield connection
                if writing:
                    transaction.commit()
            finally:
                # Also after reading: a damaged file that cannot commit can still be released.
                transaction.close()

    @abstractmethod
    def schema_version(self, connection: Connection) -> int:
        """The schema version stored in the database; 0 if it is empty."""

    @abstractmethod
    def _set_schema_version(self, connection: Connection, version: int) -> None: ...

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
        """Configure the connection for a transaction that reads or writes."""

    def _take_write_lock(self, connection: Connection) -> None:
        """Exclude other writers, if beginning a writing transaction does not do so already."""
        return
