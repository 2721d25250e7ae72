"""Other schema versions are refused and left as they are; migrations apply in order, once, or not at all."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from edit_examples import bound, file_bytes, make_edit, make_expert
from sqlalchemy import Connection

from liveedit.errors import StoreError
from liveedit.store import schema
from liveedit.store.idempotency import ChangeRequest
from liveedit.store.store import EditStore


def version_of(path: Path) -> int:
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute("PRAGMA user_version").fetchone()[0]


@pytest.mark.parametrize(
    ("version", "reason"),
    [
        (1, "has other tables"),
        (3, "has other tables"),
        (4, "compares prompts with their case and final punctuation.* can be imported"),
    ],
)
def test_a_file_from_before_the_first_release_is_refused(path: Path, version: int, reason: str) -> None:
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE edits (number INTEGER PRIMARY KEY)")
        connection.execute(f"PRAGMA application_id = {schema.APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {version}")
    before = file_bytes(path.parent)
    with pytest.raises(
        StoreError,
        match=rf"edits.db' has schema version {version}; .* reads 6\. Version {version} {reason}.*Make the edits again",
    ):
        EditStore(path)
    assert file_bytes(path.parent) == before


def test_a_file_of_a_newer_version_is_refused(path: Path) -> None:
    with bound(path) as opened:
        opened.add(make_edit(), make_expert())
    newer = schema.SCHEMA_VERSION + 1
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA user_version = {newer}")
    before = file_bytes(path.parent)
    with pytest.raises(StoreError, match=f"has schema version {newer}; .* newer LiveEdit .* Update LiveEdit"):
        EditStore(path)
    assert file_bytes(path.parent) == before


def test_a_new_file_has_the_tables_that_are_asked_for(path: Path) -> None:
    with bound(path) as opened:
        opened.add(make_edit(), make_expert())
    with closing(sqlite3.connect(path)) as connection:
        tables = [row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        found = {table: [row[1] for row in connection.execute(f"PRAGMA table_info({table})")] for table in tables}
    assert found == {table.name: list(table.columns.keys()) for table in schema.TABLES}
    assert version_of(path) == schema.SCHEMA_VERSION


def test_the_last_migration_makes_the_present_version() -> None:
    versions = [version for version, _, _ in schema.MIGRATIONS]
    assert versions == list(range(schema.SCHEMA_VERSION - len(versions) + 1, schema.SCHEMA_VERSION + 1))


def test_a_file_of_version_5_is_read_with_its_requests(path: Path) -> None:
    request = ChangeRequest("ada", "k", b"body")
    with bound(path) as opened:
        edit = opened.add(make_edit(), make_expert(), request=request)
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("DROP INDEX requests_by_expiry")
        connection.execute("ALTER TABLE requests DROP COLUMN kept_until")
        connection.execute("PRAGMA user_version = 5")
    with bound(path) as opened:
        assert opened.made_by(request) == edit and opened.verify() == ()
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT kept_until FROM requests").fetchall() == [(10_001,)]
        indexes = [row[1] for row in connection.execute("PRAGMA index_list(requests)")]
    assert {"requests_by_expiry", "requests_by_revision"} < set(indexes)
    assert version_of(path) == 6


def test_migrations_apply_in_order_and_once(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with bound(path) as opened:
        edit = opened.add(make_edit(), make_expert(5))
    applied: list[str] = []

    def add_mood(connection: Connection) -> None:
        applied.append("add")
        connection.exec_driver_sql("ALTER TABLE edits ADD COLUMN mood TEXT")

    def fill_mood(connection: Connection) -> None:
        applied.append("fill")
        connection.exec_driver_sql("UPDATE edits SET mood = 'from ' || id")

    present = schema.SCHEMA_VERSION
    more = ((present + 1, "add mood", add_mood), (present + 2, "fill mood", fill_mood))
    monkeypatch.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, *more))
    monkeypatch.setattr(schema, "SCHEMA_VERSION", present + 2)
    for _ in range(2):
        with EditStore(path) as opened:
            assert opened.get(edit.id) == edit
            assert opened.expert(edit.id) == make_expert(5)
    assert applied == ["add", "fill"]
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT mood FROM edits").fetchall() == [(f"from {edit.id}",)]
    assert version_of(path) == present + 2


def test_a_migration_that_fails_leaves_the_file_as_it_was(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with bound(path) as opened:
        edit = opened.add(make_edit(), make_expert())

    def broken(connection: Connection) -> None:
        connection.exec_driver_sql("DROP TABLE blobs")
        connection.exec_driver_sql("SELECT * FROM nowhere")

    present = schema.SCHEMA_VERSION
    with monkeypatch.context() as patch:
        patch.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, (present + 1, "broken", broken)))
        patch.setattr(schema, "SCHEMA_VERSION", present + 1)
        with pytest.raises(StoreError, match="nowhere"):
            EditStore(path)
    with EditStore(path) as opened:
        assert opened.get(edit.id) == edit
        assert opened.verify() == ()
