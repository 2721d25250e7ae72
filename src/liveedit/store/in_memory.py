"""Edits that are kept nowhere: the same store, in a database that ends with the process."""

from __future__ import annotations

import sqlite3

from sqlalchemy import Engine

from .database import Database
from .sqlite import SqliteFile


class VolatileDatabase(SqliteFile):
    """An SQLite database in memory, behind a single connection: threads take turns."""

    def __init__(self, *, busy_timeout_s: float = 30.0):
        Database.__init__(self, "memory", "The store in memory")
        self._busy_timeout_s = busy_timeout_s
        self._file = None
        self._nothing = self._opened(lambda: sqlite3.connect(":memory:", check_same_thread=False), connections=1)

    def _engine(self, writing: bool) -> Engine:
        self.check_open()
        assert self._nothing is not None
        return self._nothing
