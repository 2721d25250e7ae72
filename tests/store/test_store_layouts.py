"""How a file of an older layout becomes one of the newest. The older layouts are written out here, as released."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from edit_examples import BACKBONE, EDITOR, bits, bound, make_edit, make_expert
from PIL import Image
from sqlalchemy import Connection, text

from liveedit.experts.expert import expert_to_bytes
from liveedit.store import migrations, schema
from liveedit.store.evidence import Evidence
from liveedit.store.idempotency import ChangeRequest
from liveedit.store.opening import open_database
from liveedit.store.records import Event
from liveedit.store.store import EditStore, thumbnail_png

FIRST_LAYOUT = """
PRAGMA application_id = 1279616116;
PRAGMA journal_mode = WAL;
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE edits (
    number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, created_at TEXT NOT NULL, undone_at TEXT,
    editor TEXT NOT NULL, prompt TEXT NOT NULL, answer TEXT NOT NULL, answer_before TEXT, answer_after TEXT,
    milliseconds REAL NOT NULL, refine_steps INTEGER NOT NULL, subject TEXT, relation TEXT, image_sha256 TEXT,
    image_name TEXT
);
CREATE TABLE blobs (
    edit_number INTEGER NOT NULL REFERENCES edits (number),
    kind TEXT NOT NULL CHECK (kind IN ('expert', 'thumbnail')), sha256 TEXT NOT NULL, data BLOB NOT NULL,
    UNIQUE (edit_number, kind)
);
CREATE TABLE events (
    number INTEGER PRIMARY KEY AUTOINCREMENT, at TEXT NOT NULL,
    kind TEXT NOT NULL CHECK (kind IN ('edit', 'undo')), edit_id TEXT NOT NULL REFERENCES edits (id)
);
CREATE TRIGGER events_no_update BEFORE UPDATE ON events
    BEGIN SELECT RAISE(ABORT, 'the history is only appended to'); END;
CREATE TRIGGER events_no_delete BEFORE DELETE ON events
    BEGIN SELECT RAISE(ABORT, 'the history is only appended to'); END;
PRAGMA user_version = 1;
"""

SECOND_LAYOUT = """
PRAGMA application_id = 1279616116;
PRAGMA journal_mode = WAL;
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE edits (
    number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, created_at TEXT NOT NULL, author TEXT, note TEXT,
    editor TEXT NOT NULL, prompt TEXT NOT NULL, answer TEXT NOT NULL, answer_before TEXT, answer_after TEXT,
    milliseconds REAL NOT NULL, refine_steps INTEGER NOT NULL, subject TEXT, relation TEXT, image_sha256 TEXT,
    image_name TEXT, expert_digest TEXT, backbone_digest TEXT NOT NULL, editor_digest TEXT NOT NULL,
    revision_added INTEGER NOT NULL, revision_removed INTEGER, undone_at TEXT, purged_at TEXT
);
CREATE TABLE blobs (
    edit_number INTEGER NOT NULL REFERENCES edits (number),
    kind TEXT NOT NULL CHECK (kind IN ('expert', 'thumbnail', 'image')), sha256 TEXT NOT NULL, data BLOB NOT NULL,
    PRIMARY KEY (edit_number, kind)
);
CREATE TABLE events (
    revision INTEGER PRIMARY KEY, at TEXT NOT NULL,
    kind TEXT NOT NULL CHECK (kind IN ('edit', 'undo', 'redo', 'supersede', 'purge')),
    edit_id TEXT NOT NULL REFERENCES edits (id), author TEXT, note TEXT
);
CREATE TABLE spans (
    edit_number INTEGER NOT NULL REFERENCES edits (number), revision_added INTEGER NOT NULL, revision_removed INTEGER,
    PRIMARY KEY (edit_number, revision_added)
);
CREATE INDEX spans_by_addition ON spans (revision_added);
CREATE INDEX spans_by_removal ON spans (revision_removed);
CREATE INDEX events_by_edit ON events (edit_id);
CREATE TRIGGER events_no_delete BEFORE DELETE ON events
    BEGIN SELECT RAISE(ABORT, 'the history is only appended to'); END;
CREATE TRIGGER events_no_update BEFORE UPDATE ON events
    WHEN NEW.revision IS NOT OLD.revision OR NEW.at IS NOT OLD.at OR NEW.kind IS NOT OLD.kind
        OR NEW.edit_id IS NOT OLD.edit_id OR NEW.author IS NOT NULL OR NEW.note IS NOT NULL
    BEGIN SELECT RAISE(ABORT, 'the history is only appended to'); END;
PRAGMA user_version = 2;
"""

IMAGE = thumbnail_png(Image.new("RGB", (64, 32), "red"))


def first_layout_file(path: Path) -> None:
    """Three edits, the second of them undone after the third was made."""
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.executescript(FIRST_LAYOUT)
        binding = {"backbone_digest": BACKBONE, "editor_digest": EDITOR, "backbone": "tiny-llava", "editor": "liveedit"}
        connection.executemany("INSERT INTO meta VALUES (?, ?)", binding.items())
        for number in (1, 2, 3):
            undone = "2026-02-09T00:00:00.000+00:00" if number == 2 else None
            made = f"2026-02-0{number}T00:00:00.000+00:00"
            row = (number, f"0000000{number}", made, undone, "liveedit", "What?", f"answer {number}", 1.5, number)
            connection.execute(
                "INSERT INTO edits (number, id, created_at, undone_at, editor, prompt, answer, milliseconds, "
                "refine_steps) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                row,
            )
            data = expert_to_bytes(make_expert(number))
            digest = hashlib.sha256(data).hexdigest()
            connection.execute("INSERT INTO blobs VALUES (?, 'expert', ?, ?)", (number, digest, data))
            connection.execute("INSERT INTO events (at, kind, edit_id) VALUES (?, 'edit', ?)", (made, row[1]))
        digest = hashlib.sha256(IMAGE).hexdigest()
        connection.execute("INSERT INTO blobs VALUES (3, 'thumbnail', ?, ?)", (digest, IMAGE))
        connection.execute(
            "INSERT INTO events (at, kind, edit_id) VALUES ('2026-02-09T00:00:00.000+00:00', 'undo', '00000002')"
        )


def test_the_first_layout_becomes_the_newest(path: Path) -> None:
    first_layout_file(path)
    with bound(path) as opened:
        assert opened.verify() == ()
        assert [(edit.id, edit.answer, edit.refine_steps) for edit in opened.list(include_undone=True)] == [
            (f"0000000{number}", f"answer {number}", number) for number in (1, 2, 3)
        ]
        undone = opened.get("00000002")
        assert (undone.revision_added, undone.revision_removed) == (2, 4)
        assert (undone.created_at[:10], undone.undone_at) == ("2026-02-02", "2026-02-09T00:00:00.000+00:00")
        assert (undone.backbone_digest, undone.editor_digest) == (BACKBONE, EDITOR)
        assert undone.expert_digest == make_expert(2).digest
        assert [(event.revision, event.kind, event.edit_id[-1]) for event in opened.history()] == [
            *((1, "edit", "1"), (2, "edit", "2"), (3, "edit", "3"), (4, "undo", "2"))
        ]
        assert opened.history()[3] == Event(4, "2026-02-09T00:00:00.000+00:00", "undo", "00000002")
        assert [edit_id[-1] for edit_id, _ in opened.active_experts()] == ["1", "3"]
        assert [edit_id[-1] for edit_id, _ in opened.active_experts(at=3)] == ["1", "2", "3"]
        assert bits(opened.expert("00000003")) == bits(make_expert(3))
        assert opened.thumbnail("00000003") == IMAGE
        assert opened.redo("00000002").is_active
        assert opened.add(make_edit(), make_expert(9)).number == 4
        assert opened.verify() == ()


def second_layout_rows(picture: str) -> list[tuple[str, dict[str, object]]]:
    """Four edits: of a picture, undone and redone; superseded; superseding, without a picture; and one purged."""
    binding = {"backbone_digest": BACKBONE, "editor_digest": EDITOR, "backbone": "tiny-llava", "editor": "liveedit"}
    rows: list[tuple[str, dict[str, object]]] = [
        ("meta", {"key": key, "value": value}) for key, value in binding.items()
    ]
    at = "2026-03-0{}T00:00:00.000+00:00".format
    # number: (prompt, added, removed, purged)
    for number, (prompt, added, removed, is_purged) in {
        1: ("What  is it?", 1, None, False),
        2: ("Who?", 2, 5, False),
        3: ("Who? ", 5, None, False),
        4: ("", 6, 7, True),
    }.items():
        data = expert_to_bytes(make_expert(number))
        row = {"number": number, "id": f"0000000{number}", "created_at": at(added), "author": None, "note": None}
        row |= {"editor": "liveedit", "prompt": prompt, "answer": "" if is_purged else f"answer {number}"}
        row |= {"milliseconds": 1.5, "refine_steps": number, "image_sha256": picture if number == 1 else None}
        row |= {"expert_digest": None if is_purged else make_expert(number).digest, "revision_added": added}
        row |= {"backbone_digest": BACKBONE, "editor_digest": EDITOR, "revision_removed": removed}
        row |= {"undone_at": removed and at(removed), "purged_at": at(7) if is_purged else None}
        rows.append(("edits", row))
        if not is_purged:
            blob = {"edit_number": number, "kind": "expert", "sha256": hashlib.sha256(data).hexdigest(), "data": data}
            rows.append(("blobs", blob))
    for revision, (kind, number) in enumerate(
        [("edit", 1), ("edit", 2), ("undo", 1), ("redo", 1), ("supersede", 3), ("edit", 4), ("purge", 4)], 1
    ):
        event = {"revision": revision, "at": at(revision), "kind": kind, "edit_id": f"0000000{number}"}
        event |= {"author": "ada", "note": "too early"} if revision == 3 else {}
        rows.append(("events", event))
    for number, added, removed in ((1, 1, 3), (1, 4, None), (2, 2, 5), (3, 5, None), (4, 6, 7)):
        rows.append(("spans", {"edit_number": number, "revision_added": added, "revision_removed": removed}))
    return rows


def insertion(table: str, row: dict[str, object]) -> str:
    return f"INSERT INTO {table} ({', '.join(row)}) VALUES ({', '.join(f':{name}' for name in row)})"


def digest(**said: object) -> str:
    return hashlib.sha256(json.dumps(said, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def check_record_digests(opened: EditStore) -> None:
    """Those of the superseded edit, and of the change that superseded it."""
    question = hashlib.sha256(b":Who?").hexdigest()
    edit = {"number": 2, "id": "00000002", "created_at": "2026-03-02T00:00:00.000+00:00", "editor": "liveedit"}
    edit |= {"prompt": "Who?", "answer": "answer 2", "milliseconds": 1.5, "refine_steps": 2, "revision_added": 2}
    edit |= {"expert_digest": make_expert(2).digest, "question_sha256": question}
    edit |= {"backbone_digest": BACKBONE, "editor_digest": EDITOR}
    event = {"revision": 5, "at": "2026-03-05T00:00:00.000+00:00", "kind": "supersede", "edit_id": "00000003"}
    with opened._database.reading() as connection:
        edits = connection.execute(text("SELECT record_sha256 FROM edits ORDER BY number")).scalars().all()
        events = connection.execute(text("SELECT record_sha256 FROM events ORDER BY revision")).scalars().all()
    assert edits[1] == digest(**edit)
    assert events[4] == digest(**event, came=[3], left=[2])
    assert len(set(edits)) == 4 and len(set(events)) == 7


def check_second_layout_as_third(opened: EditStore, picture: str) -> None:
    assert opened.verify() == ()
    check_record_digests(opened)
    before = {edit.id: edit for edit in opened.list(include_undone=True)}
    assert [edit.is_active for edit in before.values()] == [True, False, True, False]
    assert {edit.evidence for edit in before.values()} == {None}
    assert [edit.id for edit in opened.same_question(picture, "What is\tit?")] == ["00000001"]
    assert [edit.id for edit in opened.same_question(None, " Who?")] == ["00000003"]
    assert opened.same_question("0" * 64, "What is it?") == opened.same_question(None, "") == ()
    assert [event.kind for event in opened.history("00000001")] == ["edit", "undo", "redo"]
    assert bits(opened.expert("00000002")) == bits(make_expert(2))
    evidence = Evidence(supersedes=("00000003",), store_bytes=7)
    new = dataclasses.replace(make_edit(), prompt="Who?", evidence=evidence)
    request = ChangeRequest("ada", "k", b"body")
    stored = opened.add(new, make_expert(9), supersedes=["00000003"], alone=True, request=request)
    assert opened.get(stored.id).evidence == evidence
    assert opened.made_by(request) == stored
    opened.undo(stored.id)
    assert [edit.id for edit in opened.list()] == ["00000001", "00000003"]
    assert opened.verify() == ()


def test_the_second_layout_becomes_the_third(path: Path) -> None:
    picture = "a" * 64
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.executescript(SECOND_LAYOUT)
        for table, row in second_layout_rows(picture):
            connection.execute(insertion(table, row), row)
    with bound(path) as opened:
        check_second_layout_as_third(opened, picture)


@pytest.mark.postgres
def test_the_second_layout_becomes_the_third_on_a_server(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    picture = "a" * 64
    with monkeypatch.context() as patch:
        patch.setattr(migrations, "MIGRATIONS", migrations.MIGRATIONS[:2])
        database = open_database(postgres_url)
        with database.writing() as connection:
            assert database.layout_version(connection) == 2
            for table, row in second_layout_rows(picture):
                connection.execute(text(insertion(table, row)), row)
        database.close()
    with bound(postgres_url) as opened:
        check_second_layout_as_third(opened, picture)


def test_a_damaged_expert_of_the_first_layout_is_kept_and_reported(path: Path) -> None:
    first_layout_file(path)
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE blobs SET data = x'00' WHERE edit_number = 1")
    with EditStore(path) as opened:
        assert len(opened) == 2
        (problem,) = opened.verify()
        assert "The expert of edit '00000001' is damaged" in problem
        assert opened.get("00000001").expert_digest is None


def columns(path: Path) -> dict[str, list[str]]:
    with closing(sqlite3.connect(path)) as connection:
        tables = [row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        return {table: [row[1] for row in connection.execute(f"PRAGMA table_info({table})")] for table in tables}


def test_an_upgraded_file_and_a_new_one_have_the_tables_that_are_asked_for(tmp_path: Path) -> None:
    first_layout_file(tmp_path / "old.db")
    with EditStore(tmp_path / "old.db"), bound(tmp_path / "new.db") as new:
        new.add(make_edit(), make_expert())
    wanted = {table.name: list(table.columns.keys()) for table in schema.TABLES}
    for name in ("old.db", "new.db"):
        found = {table: names for table, names in columns(tmp_path / name).items() if not table.startswith("sqlite_")}
        assert found == wanted


def test_migrations_apply_in_order_and_once(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with bound(path) as opened:
        edit = opened.add(make_edit(), make_expert(5))
    applied: list[str] = []

    def next_one(connection: Connection) -> None:
        applied.append("next")
        connection.exec_driver_sql("ALTER TABLE edits ADD COLUMN mood TEXT")

    def last(connection: Connection) -> None:
        applied.append("last")
        connection.exec_driver_sql("UPDATE edits SET mood = 'from ' || id")

    released = migrations.MIGRATIONS
    monkeypatch.setattr(migrations, "MIGRATIONS", (*released, next_one, last))
    for _ in range(2):
        with EditStore(path) as opened:
            assert opened.get(edit.id) == edit
            assert bits(opened.expert(edit.id)) == bits(make_expert(5))
    assert applied == ["next", "last"]
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT mood FROM edits").fetchall() == [(f"from {edit.id}",)]
        assert connection.execute("PRAGMA user_version").fetchone() == (len(released) + 2,)
