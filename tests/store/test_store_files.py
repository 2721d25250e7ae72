"""Which files are opened, and which are left as they are."""

from __future__ import annotations

import os
import sqlite3
import struct
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from edit_examples import bound, file_bytes, make_edit, make_expert
from safetensors.numpy import save

from liveedit.errors import InvalidInputError, NotFoundError, StoreError
from liveedit.store import schema
from liveedit.store.store import EditStore

# Files that are not there yet


def test_a_file_is_made_by_the_first_edit(path: Path) -> None:
    with bound(path) as opened:
        assert (len(opened), opened.list(), opened.history(), opened.verify()) == (0, (), (), ())
        assert opened.binding is None
        with pytest.raises(NotFoundError, match="holds no edits yet"):
            opened.get("abc")
        with pytest.raises(InvalidInputError, match="NaN"):
            opened.add(make_edit(), save({"u": np.full((2, 3), np.nan, np.float32)}))
        assert list(path.parent.iterdir()) == []
        opened.add(make_edit(), make_expert())
        assert path.exists() and len(opened) == 1


def test_a_file_that_another_process_makes_is_seen(path: Path) -> None:
    with bound(path) as waiting, bound(path) as writing:
        assert waiting.list() == ()
        edit = writing.add(make_edit(), make_expert())
        assert waiting.list() == (edit,)


# Files that are not ours


def sqlite_file(path: Path, application_id: int = 0) -> None:
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE notes (text TEXT)")
        connection.execute(f"PRAGMA application_id = {application_id}")


def write_text(path: Path) -> None:
    path.write_text("dear diary\n" * 100)


def write_short(path: Path) -> None:
    path.write_bytes(b"SQLite")


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (sqlite_file, "SQLite file of another program"),
        (lambda path: sqlite_file(path, 12345), "SQLite file of another program"),
        (write_text, "not an edits file"),
        (write_short, "not an edits file"),
    ],
)
def test_foreign_files_are_left_as_they_are(path: Path, write: Callable[[Path], None], message: str) -> None:
    write(path)
    before, written = file_bytes(path.parent), path.stat().st_mtime_ns
    with pytest.raises(StoreError, match=f"{message}.*left as it is"):
        EditStore(path)
    assert file_bytes(path.parent) == before
    assert path.stat().st_mtime_ns == written


def test_a_foreign_file_with_a_log_is_left_as_it_is(path: Path) -> None:
    with closing(sqlite3.connect(path)) as other:
        other.execute("PRAGMA journal_mode = WAL")
        other.execute("CREATE TABLE notes (text TEXT)")
        before = file_bytes(path.parent)
        assert len(before) == 3
        with pytest.raises(StoreError, match="another program"):
            EditStore(path)
        assert file_bytes(path.parent) == before


def test_an_empty_file_becomes_an_edits_file(path: Path) -> None:
    path.touch()
    with bound(path) as opened:
        opened.add(make_edit(), make_expert())
    header = path.read_bytes()[:100]
    assert struct.unpack(">I", header[68:72]) == (schema.APPLICATION_ID,)


def test_our_mark_without_our_tables_is_refused(path: Path) -> None:
    sqlite_file(path, schema.APPLICATION_ID)
    before = file_bytes(path.parent)
    with pytest.raises(StoreError, match="tables of another program"):
        EditStore(path)
    assert file_bytes(path.parent) == before


# Paths


def test_paths_that_cannot_be_an_edits_file(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"there is no folder .*missing'\. Create it first"):
        EditStore(tmp_path / "missing" / "edits.db")
    with pytest.raises(StoreError, match="is a folder"):
        EditStore(tmp_path)
    with pytest.raises(StoreError, match="does not exist"):
        EditStore(tmp_path / "edits.db", create=False)
    with pytest.raises(StoreError, match="cannot be opened"):
        EditStore("edits\x00.db")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(StoreError, match="a device or a pipe"):
        EditStore(tmp_path / "pipe")
    assert [file.name for file in tmp_path.iterdir()] == ["pipe"]


@pytest.mark.parametrize("name", [":memory:", "file:x?mode=memory", "100%25 #1?.db", "käse.db"])
def test_odd_names_are_names_of_files(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with bound(Path(name)) as opened:
        opened.add(make_edit(), make_expert())
    assert [file.name for file in tmp_path.iterdir()] == [name]
    with EditStore(name, create=False) as opened:
        assert len(opened) == 1


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that an unprivileged user may reach; pytest's own are closed to others."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture
def unprivileged() -> Iterator[None]:
    """Root may write anywhere, so it steps down for the test."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_read_only_folder_is_refused_for_a_new_file(open_folder: Path, unprivileged: None) -> None:
    if os.geteuid() == open_folder.stat().st_uid:
        open_folder.chmod(0o555)
    with pytest.raises(StoreError, match=r"cannot be written to.*Make the folder writable"):
        EditStore(open_folder / "edits.db")
    assert list(open_folder.iterdir()) == []


def test_a_read_only_file_is_refused(open_folder: Path, request: pytest.FixtureRequest) -> None:
    path = open_folder / "edits.db"
    with bound(path) as opened:
        opened.add(make_edit(), make_expert())
    path.chmod(0o444)
    open_folder.chmod(0o777)
    before = path.read_bytes()
    request.getfixturevalue("unprivileged")
    refusal = pytest.raises(StoreError, match="Make the file and its folder writable")
    with refusal, EditStore(path) as opened:
        opened.undo(opened.list()[0].id)
    assert path.read_bytes() == before


def test_a_closed_store_says_so(path: Path) -> None:
    opened = bound(path)
    opened.close()
    opened.close()
    calls = (
        opened.list,
        opened.history,
        opened.verify,
        opened.active_experts,
        lambda: len(opened),
        lambda: opened.undo("a"),
    )
    for call in calls:
        with pytest.raises(StoreError, match=r"is closed\. Open it with"):
            call()


def test_closing_leaves_one_file(path: Path) -> None:
    with bound(path) as opened:
        opened.add(make_edit(), make_expert())
    assert [file.name for file in path.parent.iterdir()] == ["edits.db"]


# Durability


@pytest.mark.parametrize("writing", [False, True])
def test_the_file_is_durable_by_its_settings(path: Path, writing: bool) -> None:
    with bound(path) as opened:
        opened.add(make_edit(), make_expert())
        database = opened._database
        with database.writing() if writing else database.reading() as connection:
            wanted = {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "secure_delete": 1}
            found = {name: connection.exec_driver_sql(f"PRAGMA {name}").scalar_one() for name in wanted}
            assert found == wanted
            assert database.schema_version(connection) == schema.SCHEMA_VERSION
