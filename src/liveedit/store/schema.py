"""The tables of an edits database, their schema version, and the migrations from one version to the next."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from sqlalchemy import (
    CheckConstraint,
    Column,
    Connection,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
)

APPLICATION_ID: Final = 0x4C456474
"""`LEdt`, in the header of every edits file. It distinguishes an edits file from other SQLite files."""

SCHEMA_VERSION: Final = 6
"""Stored in every database."""

UNREADABLE_VERSIONS: Final = {
    **dict.fromkeys((1, 2, 3), "has other tables"),
    4: "compares prompts with their case and final punctuation, which no longer count; a bundle that was exported from "
    "it can be imported",
}
"""Versions that were used before the first release, and why they cannot be read."""

Migration = tuple[int, str, Callable[[Connection], None]]


def _requests_expire_one_by_one(connection: Connection) -> None:
    connection.exec_driver_sql("ALTER TABLE requests ADD COLUMN kept_until INTEGER")
    connection.exec_driver_sql("UPDATE requests SET kept_until = revision + 10000")
    connection.exec_driver_sql("CREATE INDEX requests_by_expiry ON requests (kept_until)")


MIGRATIONS: Final[tuple[Migration, ...]] = ((6, "requests expire one by one", _requests_expire_one_by_one),)
"""(version, name, function) of each migration. The function brings a database from `version - 1` to `version`, inside a
transaction that it neither opens nor closes.

Append, and raise `SCHEMA_VERSION`. Never change or reorder a released migration. Its statements are written out in
full: the tables below describe only the newest version.
"""

_METADATA: Final = MetaData()

META: Final = Table("meta", _METADATA, Column("key", Text, primary_key=True), Column("value", Text, nullable=False))

EDITS: Final = Table(
    "edits",
    _METADATA,
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("id", Text, nullable=False, unique=True),
    Column("created_at", Text, nullable=False),
    Column("author", Text),
    Column("note", Text),
    Column("editor", Text, nullable=False),
    Column("prompt", Text, nullable=False),
    Column("answer", Text, nullable=False),
    Column("answer_before", Text),
    Column("answer_after", Text),
    Column("milliseconds", Float, nullable=False),
    Column("refine_steps", Integer, nullable=False),
    Column("subject", Text),
    Column("relation", Text),
    Column("image_sha256", Text),
    Column("image_name", Text),
    Column("expert_digest", Text),
    Column("backbone_digest", Text, nullable=False),
    Column("editor_digest", Text, nullable=False),
    Column("revision_added", Integer, nullable=False),
    Column("revision_removed", Integer),
    Column("undone_at", Text),
    Column("purged_at", Text),
    Column("evidence", Text),
    Column("question_sha256", Text),
    Column("record_sha256", Text),
)

_IS_ACTIVE: Final = EDITS.c.revision_removed.is_(None)
_IS_UNDONE: Final = EDITS.c.revision_removed.is_not(None) & EDITS.c.purged_at.is_(None)
Index("edits_by_question", EDITS.c.question_sha256, sqlite_where=_IS_ACTIVE, postgresql_where=_IS_ACTIVE)
# A page of edits in one state reads no rows of edits in another.
Index("edits_active", EDITS.c.number, sqlite_where=_IS_ACTIVE, postgresql_where=_IS_ACTIVE)
Index("edits_undone", EDITS.c.number, sqlite_where=_IS_UNDONE, postgresql_where=_IS_UNDONE)

INTERVALS: Final = Table(
    "intervals",
    _METADATA,
    Column("edit_number", Integer, ForeignKey("edits.number"), primary_key=True, autoincrement=False),
    Column("revision_added", Integer, primary_key=True, autoincrement=False),
    Column("revision_removed", Integer),
    Index("intervals_by_addition", "revision_added"),
    Index("intervals_by_removal", "revision_removed"),
)
"""Validity intervals: an edit is active from `revision_added` up to, but not including, `revision_removed`."""

BLOBS: Final = Table(
    "blobs",
    _METADATA,
    Column("edit_number", Integer, ForeignKey("edits.number"), primary_key=True, autoincrement=False),
    Column("kind", Text, CheckConstraint("kind IN ('expert', 'thumbnail', 'image')"), primary_key=True),
    Column("sha256", Text, nullable=False),
    Column("data", LargeBinary, nullable=False),
)
"""Experts and images. They are not columns of `edits`, so that listing edits does not read megabytes of parameters."""

EVENTS: Final = Table(
    "events",
    _METADATA,
    Column("revision", Integer, primary_key=True, autoincrement=False),
    Column("at", Text, nullable=False),
    Column("kind", Text, CheckConstraint("kind IN ('edit', 'undo', 'redo', 'supersede', 'purge')"), nullable=False),
    Column("edit_id", Text, ForeignKey("edits.id"), nullable=False),
    Column("author", Text),
    Column("note", Text),
    Column("record_sha256", Text),
    Index("events_by_edit", "edit_id"),
)
"""The history, one row per change. Triggers keep it append-only; a purge may clear only `author` and `note`."""

REQUESTS: Final = Table(
    "requests",
    _METADATA,
    Column("request_sha256", Text, primary_key=True),
    Column("body_sha256", Text, nullable=False),
    Column("revision", Integer, ForeignKey("events.revision"), nullable=False),
    Column("kept_until", Integer),
    Index("requests_by_revision", "revision"),
    Index("requests_by_expiry", "kept_until"),
)
"""Requests that came with an idempotency key, the revision that each of them made, and the one that it is kept until;
NULL: for good."""

TABLES: Final = tuple(_METADATA.tables.values())

_SQLITE_TRIGGERS: Final = (
    "CREATE TRIGGER events_no_delete BEFORE DELETE ON events "
    "BEGIN SELECT RAISE(ABORT, 'the history is only appended to'); END",
    # The digest of a row may change only together with the author or the note that a purge clears.
    """
    CREATE TRIGGER events_no_update BEFORE UPDATE ON events
    WHEN NEW.revision IS NOT OLD.revision OR NEW.at IS NOT OLD.at OR NEW.kind IS NOT OLD.kind
        OR NEW.edit_id IS NOT OLD.edit_id OR NEW.author IS NOT NULL OR NEW.note IS NOT NULL
        OR (NEW.record_sha256 IS NOT OLD.record_sha256 AND OLD.author IS NULL AND OLD.note IS NULL)
    BEGIN SELECT RAISE(ABORT, 'the history is only appended to'); END
    """,
)

_POSTGRES_TRIGGERS: Final = (
    """
    CREATE FUNCTION liveedit_history_is_kept() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF TG_OP = 'UPDATE' AND NEW.author IS NULL AND NEW.note IS NULL AND
            (NEW.revision, NEW.at, NEW.kind, NEW.edit_id) = (OLD.revision, OLD.at, OLD.kind, OLD.edit_id) AND
            (NEW.record_sha256 IS NOT DISTINCT FROM OLD.record_sha256 OR NOT (OLD.author IS NULL AND OLD.note IS NULL))
        THEN
            RETURN NEW;
        END IF;
        RAISE EXCEPTION 'the history is only appended to';
    END $$
    """,
    "CREATE TRIGGER events_are_kept BEFORE UPDATE OR DELETE ON events "
    "FOR EACH ROW EXECUTE FUNCTION liveedit_history_is_kept()",
)


def create_tables(connection: Connection) -> None:
    """Create everything in an empty database, inside the transaction of the caller."""
    is_sqlite = connection.dialect.name == "sqlite"
    if is_sqlite:
        connection.exec_driver_sql(f"PRAGMA application_id = {APPLICATION_ID}")
    _METADATA.create_all(connection, checkfirst=False)
    for statement in _SQLITE_TRIGGERS if is_sqlite else _POSTGRES_TRIGGERS:
        connection.exec_driver_sql(statement)
