"""Edits, validity intervals and history have digests: whatever is changed without the store is found."""

from __future__ import annotations

import dataclasses
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from edit_examples import bound, make_edit, make_expert
from sqlalchemy import Text, text

from liveedit.errors import StoreError
from liveedit.store.checksums import record_digest
from liveedit.store.evidence import EarlierEdit, Evidence, Rephrased
from liveedit.store.records import NewEdit
from liveedit.store.schema import EDITS, EVENTS, INTERVALS
from liveedit.store.store import EditStore

TEXTS = {
    "prompt": "Who is Zebedee Quint?",
    "answer": "the wanted answer",
    "answer_before": "plugh said before",
    "answer_after": "frobozz said after",
    "subject": "subject-quux",
    "relation": "relation-corge",
    "image_name": "grault.png",
    "image_sha256": "0123456789abcdef" * 4,
    "author": "garply the author",
    "note": "waldo the note",
}


def edit_with_texts() -> NewEdit:
    evidence = Evidence(rephrasings=(Rephrased("fred rephrased", "plover before", "thingum after", True),))
    return dataclasses.replace(make_edit(), milliseconds=12.25, refine_steps=3, evidence=evidence, **TEXTS)


def fill(location: Path | str) -> str:
    """One active edit; one with all texts that was undone, came back, and was superseded; and one purged."""
    with bound(location) as opened:
        gone = opened.add(make_edit(), make_expert(0), supersedes=[opened.add(make_edit(), make_expert(1)).id])
        opened.purge(gone.id, author="clerk", note="asked to be forgotten")
        edit = opened.add(edit_with_texts(), make_expert(2))
        opened.undo(edit.id, author="thud", note="too early")
        opened.redo(edit.id)
        opened.add(make_edit(), make_expert(3), supersedes=[edit.id])
        assert opened.verify() == ()
    return edit.id


@pytest.fixture
def edit_id(path: Path) -> str:
    return fill(path)


def row_values(path: Path, edit_id: str) -> Iterator[bytes]:
    """Every text that the tables hold of this edit, without those that occur in the schema too."""
    with closing(sqlite3.connect(path)) as connection:
        rows = connection.execute("SELECT * FROM edits WHERE id = ?", (edit_id,)).fetchall()
        schema = " ".join(row[0] or "" for row in connection.execute("SELECT sql FROM sqlite_schema"))
        rows += connection.execute("SELECT * FROM events WHERE edit_id = ?", (edit_id,)).fetchall()
    for row in rows:
        yield from (value.encode() for value in row if isinstance(value, str) and value not in schema)


def places(content: bytes, wanted: bytes) -> Iterator[int]:
    place = content.find(wanted)
    while place >= 0:
        yield place
        place = content.find(wanted, place + 1)


def test_a_flipped_byte_in_the_schema_is_a_store_error(path: Path, edit_id: str) -> None:
    """Also where it makes invalid UTF-8 of a name, which SQLite quotes."""
    content = bytearray(path.read_bytes())
    content[content.index(b"edits_undone") + 8] ^= 128
    path.write_bytes(content)
    with pytest.raises(StoreError, match=r"is damaged.*malformed database schema"):
        EditStore(path)


def problems_of(path: Path, content: bytes) -> tuple[str, ...]:
    path.write_bytes(content)
    with EditStore(path) as opened:
        return opened.verify()


def test_a_flipped_byte_of_any_text_is_found_wherever_it_is(path: Path, edit_id: str) -> None:
    """Bit 7 makes invalid UTF-8 of a text, bit 0 another letter."""
    sound = path.read_bytes()
    values = set(row_values(path, edit_id))
    assert {text.encode() for text in TEXTS.values()} < values
    flips = 0
    for value in values:
        for place in places(sound, value):
            for bit in (1, 128):
                content = bytearray(sound)
                content[place + len(value) // 2] ^= bit
                assert problems_of(path.with_name("flipped.db"), content), (value, place, bit)
                flips += 1
    assert flips >= 2 * len(values)


@pytest.mark.parametrize("name", ["edits", "events", "intervals"])
def test_whatever_of_a_row_is_changed_is_found(path: Path, edit_id: str, name: str) -> None:
    table = {"edits": EDITS, "events": EVENTS, "intervals": INTERVALS}[name]
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript("DROP TRIGGER events_no_update; DROP TRIGGER events_no_delete")
        rowids = [row[0] for row in connection.execute(f"SELECT rowid FROM {name}")]
    sound = path.read_bytes()
    assert problems_of(path, sound) == ()
    for rowid in rowids:
        for column in table.columns:
            other = f"coalesce({column.name}, '') || 'x'"
            if not isinstance(column.type, Text):
                other = f"coalesce({column.name}, 0) + 1000"
            path.write_bytes(sound)
            with closing(sqlite3.connect(path)) as connection, connection:
                connection.execute("PRAGMA ignore_check_constraints = ON")
                connection.execute(f"UPDATE {name} SET {column.name} = {other} WHERE rowid = ?", (rowid,))
            with EditStore(path) as opened:
                assert opened.verify(), (rowid, column.name)
        path.write_bytes(sound)
        with closing(sqlite3.connect(path)) as connection, connection:
            connection.execute(f"DELETE FROM {name} WHERE rowid = ?", (rowid,))
        with EditStore(path) as opened:
            assert opened.verify(), rowid


@pytest.mark.parametrize("key", ["backbone", "editor", "backbone_digest", "editor_digest", "binding_sha256"])
def test_a_changed_name_of_the_model_is_found(location: Path | str, key: str) -> None:
    fill(location)
    spoil(location, f"UPDATE meta SET value = 'other' WHERE key = '{key}'")
    with EditStore(location) as opened:
        assert any("does not have its digest" in problem for problem in opened.verify())


@pytest.mark.parametrize("value", ["NULL", "x'00ff'", "7"])
def test_a_value_of_another_kind_does_not_end_the_checks(path: Path, edit_id: str, value: str) -> None:
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("PRAGMA writable_schema = ON")
        connection.execute("UPDATE sqlite_schema SET sql = replace(sql, 'prompt TEXT NOT NULL', 'prompt')")
        connection.execute("UPDATE sqlite_schema SET sql = replace(sql, 'data BLOB NOT NULL', 'data')")
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(f"UPDATE edits SET prompt = {value} WHERE id = ?", (edit_id,))
        connection.execute(f"UPDATE blobs SET data = {value} WHERE edit_number = 1")
    with EditStore(path) as opened:
        problems = opened.verify()
    assert any(f"The record of edit '{edit_id}' is damaged" in problem for problem in problems)
    assert any("The expert of edit" in problem for problem in problems)


def spoil(location: Path | str, statement: str) -> None:
    with EditStore(location) as opened, opened._database.writing() as connection:
        connection.execute(text(statement))


@pytest.mark.parametrize("column", ["author", "answer_before", "created_at", "evidence", "milliseconds"])
def test_a_changed_row_is_named(location: Path | str, column: str) -> None:
    edit_id = fill(location)
    value = "0.5" if column == "milliseconds" else "'another'"
    spoil(location, f"UPDATE edits SET {column} = {value} WHERE id = '{edit_id}'")
    with EditStore(location) as opened:
        named = f"The record of edit '{edit_id}' is damaged: its digest is "
        assert [named in problem for problem in opened.verify()].count(True) == 1


def test_an_interval_that_was_moved_is_found(location: Path | str) -> None:
    """To another revision that is there, at which something else happened."""
    with bound(location) as opened:
        old = opened.add(make_edit(), make_expert(0))
        new = opened.add(make_edit(), make_expert(1), supersedes=[old.id])
        opened.add(make_edit(), make_expert(2))
        opened.undo(new.id)
        assert opened.verify() == ()
    spoil(location, "UPDATE intervals SET revision_removed = 3 WHERE edit_number = 1 AND revision_added = 1")
    with EditStore(location) as opened:
        assert [problem.partition(" is damaged")[0] for problem in opened.verify()] == [
            f"The history at revision {revision}, or a validity interval that begins or ends there,"
            for revision in (2, 3)
        ]


def test_a_damaged_record_is_not_exported(location: Path | str, tmp_path: Path) -> None:
    edit_id = fill(location)
    spoil(location, f"UPDATE edits SET revision_removed = NULL, undone_at = NULL, note = 'w' WHERE id = '{edit_id}'")
    with bound(location) as opened:
        for whole in (True, False):
            with pytest.raises(StoreError, match=f"record of edit '{edit_id}' is damaged: .* Undo that edit"):
                opened.export_bundle(tmp_path / "bundle", whole=whole)
        opened.undo(edit_id)
        assert len(opened.export_bundle(tmp_path / "bundle", whole=False).edits) == 2
        with pytest.raises(StoreError, match="is damaged"):
            opened.export_bundle(tmp_path / "whole")
        opened.purge(edit_id)
        assert not any("record" in problem for problem in opened.verify()), "purging it is a way out"
    assert {file.name for file in tmp_path.iterdir()} <= {"bundle", "edits.db"}, "nothing half written is left"


def test_a_damaged_history_is_not_exported(path: Path, edit_id: str, tmp_path: Path) -> None:
    spoil(path, "UPDATE intervals SET revision_added = 2 WHERE revision_added = 1")
    with EditStore(path) as opened:
        with pytest.raises(
            StoreError, match=r"history at revision 1, or a validity interval .* is damaged.* Export the active edits"
        ):
            opened.export_bundle(tmp_path / "bundle")
        assert opened.export_bundle(tmp_path / "bundle", whole=False).edits


def digests(store: EditStore) -> list[list[str]]:
    with store._database.reading() as connection:
        return [
            [row[0] for row in connection.execute(text(f"SELECT record_sha256 FROM {table} ORDER BY {number}"))]
            for table, number in (("edits", "number"), ("events", "revision"))
        ]


def test_an_import_has_the_digests_of_the_export(location: Path | str, tmp_path: Path) -> None:
    fill(location)
    with (
        EditStore(location) as opened,
        EditStore(tmp_path / "other.db") as other,
        bound(tmp_path / "third.db") as third,
    ):
        opened.export_bundle(tmp_path / "bundle")
        other.import_bundle(tmp_path / "bundle")
        assert digests(other) == digests(opened) and other.verify() == ()
        third.add(make_edit(), make_expert(9))
        third.import_bundle(tmp_path / "bundle")
        assert third.verify() == ()
        assert [edit.id for edit in third.list()] == [opened.list()[-1].id], "the others repeat it"


def test_an_import_into_a_damaged_store_says_so(path: Path, edit_id: str, tmp_path: Path) -> None:
    with EditStore(path) as opened:
        opened.export_bundle(tmp_path / "bundle")
    spoil(path, f"UPDATE edits SET note = 'w' WHERE id = '{edit_id}'")
    with (
        EditStore(path) as opened,
        pytest.raises(StoreError, match=f"'{edit_id}' of the bundle .* record there is dam"),
    ):
        opened.import_bundle(tmp_path / "bundle")


def test_a_purge_does_not_cover_up_damage_to_others(location: Path | str) -> None:
    with bound(location) as opened:
        gone = opened.add(make_edit(), make_expert(0), supersedes=[]).id
        met = Evidence(earlier_edits=(EarlierEdit(gone, "before", "after", False),))
        ids = [opened.add(dataclasses.replace(make_edit(), evidence=met), make_expert(n)).id for n in (1, 2, 3)]
        opened.undo(gone, author="ada")
    spoil(location, f"UPDATE edits SET note = 'not hers' WHERE id = '{ids[0]}'")
    spoil(location, f"""UPDATE edits SET evidence = '["{gone}"]' WHERE id = '{ids[1]}'""")
    spoil(location, "UPDATE intervals SET revision_removed = 4 WHERE edit_number = 1")
    with bound(location) as opened:
        opened.purge(gone)
        assert opened.get(ids[1]).evidence is None
        found = [problem for problem in opened.verify() if "is damaged" in problem]
        assert [f"record of edit '{edit_id}'" in problem for edit_id, problem in zip(ids, found, strict=False)] == [
            *(True, True, False)
        ]
        assert [f"history at revision {n}" in problem for n, problem in zip((4, 5), found[2:], strict=True)] == [
            True
        ] * 2
        assert digests(opened)[0][1:3] == [None, None], "nothing is left of what was quoted"


def test_the_digest_is_of_names_and_values() -> None:
    assert record_digest({"a": "1", "b": None}) == record_digest({"a": "1"}), "a column that comes later"
    said = [{"a": "1"}, {"a": 1}, {"a": 1.0}, {"b": "1"}, {"a": ""}, {}, {"a": "1", "b": ""}, {"a": b"1"}, {"a": "é"}]
    assert len({record_digest(one) for one in said}) == len(said)


def test_an_edit_with_a_negative_zero_keeps_its_digest(location: Path | str) -> None:
    with bound(location) as opened:
        opened.add(
            dataclasses.replace(make_edit(), milliseconds=-0.0, note="\u200b\U0001f9e2 é\ufffd\r\n"), make_expert()
        )
        assert opened.verify() == ()
