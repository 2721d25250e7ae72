"""The layout of the edits file, as steps that are only ever appended to.

A step is written out in full here, and never in terms of `schema.py`, which changes with the newest layout.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sqlalchemy import Connection, text

from ..experts.expert import LowRankExpert, expert_from_bytes
from .checksums import record_digest
from .records import question_digest

APPLICATION_ID = 0x4C456474
"""`LEdt`, in the header of every edits file: how a file of another program is told from ours."""

Migration = Callable[[Connection], None]
"""One step from a layout to the next. It runs inside a transaction that it neither opens nor closes."""


def _first_layout(connection: Connection) -> None:
    if connection.dialect.name != "sqlite":
        # Only files were ever of this layout; databases begin with the second, and need a place for its number.
        connection.exec_driver_sql(_META)
        return
    for statement in _FIRST_LAYOUT:
        connection.exec_driver_sql(statement)


_META = "CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL)"


_FIRST_LAYOUT = (
    f"PRAGMA application_id = {APPLICATION_ID}",
    _META,
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
    """,
    """
    CREATE TABLE blobs (
        edit_number INTEGER NOT NULL REFERENCES edits (number),
        kind TEXT NOT NULL CHECK (kind IN ('expert', 'thumbnail')),
        sha256 TEXT NOT NULL,
        data BLOB NOT NULL,
        UNIQUE (edit_number, kind)
    )
    """,
    """
    CREATE TABLE events (
        number INTEGER PRIMARY KEY AUTOINCREMENT,
        at TEXT NOT NULL,
        kind TEXT NOT NULL CHECK (kind IN ('edit', 'undo')),
        edit_id TEXT NOT NULL REFERENCES edits (id)
    )
    """,
    *(
        f"CREATE TRIGGER events_no_{change.lower()} BEFORE {change} ON events "
        "BEGIN SELECT RAISE(ABORT, 'the history is only appended to'); END"
        for change in ("UPDATE", "DELETE")
    ),
)


def _revisions(connection: Connection) -> None:
    """Every change a revision, with the spans in which an edit was in force, and who made it."""
    is_file = connection.dialect.name == "sqlite"
    if is_file:
        for change in ("update", "delete"):
            connection.exec_driver_sql(f"DROP TRIGGER IF EXISTS events_no_{change}")
        # The references of the first two to the third follow its new name.
        for table in ("blobs", "events", "edits"):
            connection.exec_driver_sql(f"ALTER TABLE {table} RENAME TO old_{table}")
    types = {"blob": "BLOB", "real": "REAL"} if is_file else {"blob": "BYTEA", "real": "DOUBLE PRECISION"}
    for statement in (*_SECOND_LAYOUT, *(_FILE_HISTORY_IS_KEPT if is_file else _SERVER_HISTORY_IS_KEPT)):
        connection.exec_driver_sql(statement % types if "%(" in statement else statement)
    if is_file:
        _copy_first_layout(connection)


_SECOND_LAYOUT = (
    """
    CREATE TABLE edits (
        number INTEGER PRIMARY KEY,
        id TEXT NOT NULL UNIQUE,
        created_at TEXT NOT NULL,
        author TEXT,
        note TEXT,
        editor TEXT NOT NULL,
        prompt TEXT NOT NULL,
        answer TEXT NOT NULL,
        answer_before TEXT,
        answer_after TEXT,
        milliseconds %(real)s NOT NULL,
        refine_steps INTEGER NOT NULL,
        subject TEXT,
        relation TEXT,
        image_sha256 TEXT,
        image_name TEXT,
        expert_digest TEXT,
        backbone_digest TEXT NOT NULL,
        editor_digest TEXT NOT NULL,
        revision_added INTEGER NOT NULL,
        revision_removed INTEGER,
        undone_at TEXT,
        purged_at TEXT
    )
    """,
    # Apart from the edits, so that listing those does not read through megabytes of parameters.
    """
    CREATE TABLE blobs (
        edit_number INTEGER NOT NULL REFERENCES edits (number),
        kind TEXT NOT NULL CHECK (kind IN ('expert', 'thumbnail', 'image')),
        sha256 TEXT NOT NULL,
        data %(blob)s NOT NULL,
        PRIMARY KEY (edit_number, kind)
    )
    """,
    """
    CREATE TABLE events (
        revision INTEGER PRIMARY KEY,
        at TEXT NOT NULL,
        kind TEXT NOT NULL CHECK (kind IN ('edit', 'undo', 'redo', 'supersede', 'purge')),
        edit_id TEXT NOT NULL REFERENCES edits (id),
        author TEXT,
        note TEXT
    )
    """,
    """
    CREATE TABLE spans (
        edit_number INTEGER NOT NULL REFERENCES edits (number),
        revision_added INTEGER NOT NULL,
        revision_removed INTEGER,
        PRIMARY KEY (edit_number, revision_added)
    )
    """,
    "CREATE INDEX spans_by_addition ON spans (revision_added)",
    "CREATE INDEX spans_by_removal ON spans (revision_removed)",
    "CREATE INDEX events_by_edit ON events (edit_id)",
)

_FILE_HISTORY_IS_KEPT = (
    "CREATE TRIGGER events_no_delete BEFORE DELETE ON events "
    "BEGIN SELECT RAISE(ABORT, 'the history is only appended to'); END",
    # A purge takes out who did it and why; nothing else may change.
    """
    CREATE TRIGGER events_no_update BEFORE UPDATE ON events
    WHEN NEW.revision IS NOT OLD.revision OR NEW.at IS NOT OLD.at OR NEW.kind IS NOT OLD.kind
        OR NEW.edit_id IS NOT OLD.edit_id OR NEW.author IS NOT NULL OR NEW.note IS NOT NULL
    BEGIN SELECT RAISE(ABORT, 'the history is only appended to'); END
    """,
)

_SERVER_HISTORY_IS_KEPT = (
    """
    CREATE FUNCTION liveedit_history_is_kept() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF TG_OP = 'UPDATE' AND NEW.author IS NULL AND NEW.note IS NULL AND
            (NEW.revision, NEW.at, NEW.kind, NEW.edit_id) = (OLD.revision, OLD.at, OLD.kind, OLD.edit_id)
        THEN
            RETURN NEW;
        END IF;
        RAISE EXCEPTION 'the history is only appended to';
    END $$
    """,
    "CREATE TRIGGER events_are_kept BEFORE UPDATE OR DELETE ON events "
    "FOR EACH ROW EXECUTE FUNCTION liveedit_history_is_kept()",
)


def _copy_first_layout(connection: Connection) -> None:
    meta: dict[Any, Any] = {row[0]: row[1] for row in connection.exec_driver_sql("SELECT key, value FROM meta")}
    shared = (
        "number, id, created_at, undone_at, editor, prompt, answer, answer_before, answer_after, milliseconds, "
        "refine_steps, subject, relation, image_sha256, image_name"
    )
    connection.execute(
        text(
            f"""
            INSERT INTO edits ({shared}, backbone_digest, editor_digest, revision_added, revision_removed)
            SELECT {shared}, :backbone, :editor,
                coalesce((SELECT min(number) FROM old_events WHERE edit_id = id AND kind = 'edit'), 0),
                (SELECT min(number) FROM old_events WHERE edit_id = id AND kind = 'undo')
            FROM old_edits
            """
        ),
        {"backbone": meta.get("backbone_digest", ""), "editor": meta.get("editor_digest", "")},
    )
    for statement in (
        "INSERT INTO events (revision, at, kind, edit_id) SELECT number, at, kind, edit_id FROM old_events",
        "INSERT INTO spans SELECT number, revision_added, revision_removed FROM edits",
        "INSERT INTO blobs SELECT edit_number, kind, sha256, data FROM old_blobs",
        *(f"DROP TABLE old_{table}" for table in ("blobs", "events", "edits")),
    ):
        connection.exec_driver_sql(statement)
    _name_experts(connection)


def _name_experts(connection: Connection) -> None:
    numbers = connection.exec_driver_sql("SELECT edit_number FROM blobs WHERE kind = 'expert'").scalars().all()
    for number in numbers:
        statement = text("SELECT data FROM blobs WHERE edit_number = :number AND kind = 'expert'")
        try:
            digest = expert_from_bytes(
                connection.execute(statement, {"number": number}).scalar_one(), LowRankExpert
            ).digest
        except ValueError:
            continue  # Damaged before; `verify` says so.
        update = text("UPDATE edits SET expert_digest = :digest WHERE number = :number")
        connection.execute(update, {"digest": digest, "number": number})


def _evidence(connection: Connection) -> None:
    """What each edit did, edits found by question and state, requests that made changes, and digests of all rows."""
    is_file = connection.dialect.name == "sqlite"
    # The history refuses to be changed, also for its digests.
    connection.exec_driver_sql("DROP TRIGGER events_no_update" if is_file else "DROP TRIGGER events_are_kept ON events")
    for statement in _THIRD_LAYOUT:
        connection.exec_driver_sql(statement)
    rows = connection.exec_driver_sql("SELECT number, image_sha256, prompt FROM edits WHERE purged_at IS NULL").all()
    if rows:
        update = text("UPDATE edits SET question_sha256 = :digest WHERE number = :number")
        found = [{"number": number, "digest": question_digest(image, prompt)} for number, image, prompt in rows]
        connection.execute(update, found)
    _digest_binding(connection)
    _digest_edits(connection)
    _digest_events(connection)
    for statement in (_FILE_DIGESTS_ARE_KEPT,) if is_file else _SERVER_DIGESTS_ARE_KEPT:
        connection.exec_driver_sql(statement)


def _digest_binding(connection: Connection) -> None:
    meta: dict[Any, Any] = {row[0]: row[1] for row in connection.exec_driver_sql("SELECT key, value FROM meta")}
    names = ("backbone_digest", "editor_digest", "backbone", "editor")
    if meta.keys() >= set(names):
        digest = record_digest({name: meta[name] for name in names})
        connection.execute(text("INSERT INTO meta (key, value) VALUES ('binding_sha256', :digest)"), {"digest": digest})


def _digest_edits(connection: Connection) -> None:
    names = (
        "number, id, created_at, author, note, editor, prompt, answer, answer_before, answer_after, milliseconds, "
        "refine_steps, subject, relation, image_sha256, image_name, expert_digest, backbone_digest, editor_digest, "
        "revision_added, purged_at, evidence, question_sha256"
    )
    rows = connection.exec_driver_sql(f"SELECT {names} FROM edits").mappings()
    found = [{"number": row["number"], "digest": record_digest(row)} for row in rows]
    if found:
        connection.execute(text("UPDATE edits SET record_sha256 = :digest WHERE number = :number"), found)


def _digest_events(connection: Connection) -> None:
    moved: dict[str, dict[int, list[int]]] = {"came": {}, "left": {}}
    spans = "SELECT edit_number, revision_added, revision_removed FROM spans ORDER BY edit_number"
    for number, added, removed in connection.exec_driver_sql(spans):
        moved["came"].setdefault(added, []).append(number)
        moved["left"].setdefault(removed, []).append(number)
    rows = connection.exec_driver_sql("SELECT revision, at, kind, edit_id, author, note FROM events").mappings()
    found = [
        {
            "revision": row["revision"],
            "digest": record_digest({**row, **{how: moved[how].get(row["revision"], []) for how in moved}}),
        }
        for row in rows
    ]
    if found:
        connection.execute(text("UPDATE events SET record_sha256 = :digest WHERE revision = :revision"), found)


_THIRD_LAYOUT = (
    "ALTER TABLE edits ADD COLUMN evidence TEXT",
    "ALTER TABLE edits ADD COLUMN question_sha256 TEXT",
    "ALTER TABLE edits ADD COLUMN record_sha256 TEXT",
    "ALTER TABLE events ADD COLUMN record_sha256 TEXT",
    "CREATE INDEX edits_by_question ON edits (question_sha256) WHERE revision_removed IS NULL",
    # So that a page of one state reads no rows of the other.
    "CREATE INDEX edits_in_force ON edits (number) WHERE revision_removed IS NULL",
    "CREATE INDEX edits_undone ON edits (number) WHERE revision_removed IS NOT NULL AND purged_at IS NULL",
    """
    CREATE TABLE requests (
        request_sha256 TEXT PRIMARY KEY,
        body_sha256 TEXT NOT NULL,
        revision INTEGER NOT NULL REFERENCES events (revision)
    )
    """,
    "CREATE INDEX requests_by_revision ON requests (revision)",
)

# As before, and the digest changes only with what a purge takes out.
_FILE_DIGESTS_ARE_KEPT = """
    CREATE TRIGGER events_no_update BEFORE UPDATE ON events
    WHEN NEW.revision IS NOT OLD.revision OR NEW.at IS NOT OLD.at OR NEW.kind IS NOT OLD.kind
        OR NEW.edit_id IS NOT OLD.edit_id OR NEW.author IS NOT NULL OR NEW.note IS NOT NULL
        OR (NEW.record_sha256 IS NOT OLD.record_sha256 AND OLD.author IS NULL AND OLD.note IS NULL)
    BEGIN SELECT RAISE(ABORT, 'the history is only appended to'); END
    """

_SERVER_DIGESTS_ARE_KEPT = (
    """
    CREATE OR REPLACE FUNCTION liveedit_history_is_kept() RETURNS trigger LANGUAGE plpgsql AS $$
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


MIGRATIONS: tuple[Migration, ...] = (_first_layout, _revisions, _evidence)
"""Step n brings a file from layout n to layout n + 1. Append; never change or reorder a released step."""
