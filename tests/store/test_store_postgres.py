"""Edits in PostgreSQL, against a real server: what differs from a file. `location` runs the other tests there too."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import edit_examples
import pytest
from edit_examples import bound, make_edit, make_expert, part_bytes
from postgres_server import PostgresServer
from sqlalchemy import Connection, NullPool, create_engine, inspect, text
from sqlalchemy.exc import DBAPIError

from liveedit.errors import InvalidInputError, StoreError
from liveedit.store import schema
from liveedit.store.store import EditStore

pytestmark = pytest.mark.postgres


@contextmanager
def connected(url: str) -> Iterator[Connection]:
    engine = create_engine(url, poolclass=NullPool)
    with engine.begin() as connection:
        yield connection


def run_sql(url: str, *statements: str) -> None:
    with connected(url) as connection:
        for statement in statements:
            connection.execute(text(statement))


def value_of(url: str, statement: str) -> object:
    with connected(url) as connection:
        return connection.execute(text(statement)).scalar_one()


def test_the_schema_version_is_recorded(postgres_url: str) -> None:
    for _ in range(2):
        with bound(postgres_url) as opened:
            opened.add(make_edit(), make_expert())
    found = value_of(postgres_url, "SELECT value FROM meta WHERE key = 'liveedit_schema_version'")
    assert found == str(schema.SCHEMA_VERSION)
    for version, reason in ((99, "newer LiveEdit.*left as it is"), (3, "before the first release.*left as it is")):
        run_sql(postgres_url, f"UPDATE meta SET value = '{version}' WHERE key = 'liveedit_schema_version'")
        with pytest.raises(StoreError, match=f"has schema version {version}; .* {reason}"):
            EditStore(postgres_url)


@pytest.mark.parametrize("table", ["events", "meta"])
def test_tables_of_another_program_are_left_alone(postgres_url: str, table: str) -> None:
    run_sql(postgres_url, f"CREATE TABLE {table} (text TEXT)")
    with pytest.raises(StoreError, match="tables of another program"):
        EditStore(postgres_url)
    assert value_of(postgres_url, "SELECT count(*) FROM information_schema.tables WHERE table_schema = 'public'") == 1


def test_the_tables_are_those_that_are_asked_for(postgres_url: str) -> None:
    with EditStore(postgres_url), connected(postgres_url) as connection:
        found = inspect(connection)
        columns = {name: [column["name"] for column in found.get_columns(name)] for name in found.get_table_names()}
    assert columns == {table.name: list(table.columns.keys()) for table in schema.TABLES}


def test_a_database_beside_other_tables_is_used(postgres_url: str) -> None:
    run_sql(postgres_url, "CREATE TABLE notes (text TEXT)")
    with bound(postgres_url) as opened:
        opened.add(make_edit(), make_expert())
        assert opened.verify() == ()


def test_the_history_cannot_be_rewritten(postgres_url: str) -> None:
    with bound(postgres_url) as opened:
        opened.add(make_edit(), make_expert())
    for statement in ("UPDATE events SET kind = 'undo'", "UPDATE events SET note = 'other'", "DELETE FROM events"):
        with pytest.raises(DBAPIError, match="only appended to"):
            run_sql(postgres_url, statement)


def test_zero_bytes_are_refused_before_anything_is_written(postgres_url: str) -> None:
    with bound(postgres_url) as opened:
        with pytest.raises(InvalidInputError, match="prompt holds a zero byte at position 1"):
            opened.add(dataclasses.replace(make_edit(), prompt="a\x00b"), make_expert())
        edit = opened.add(make_edit(), make_expert())
        with pytest.raises(InvalidInputError, match="The note holds a zero byte"):
            opened.undo(edit.id, note="\x00")
        assert opened.latest_revision() == 1


def test_servers_and_databases_that_are_not_there(postgres_url: str, postgres_server: PostgresServer) -> None:
    with pytest.raises(StoreError, match="cannot be reached"):
        EditStore("postgresql://me:secret@127.0.0.1:1/x")
    with pytest.raises(StoreError, match="does not exist") as caught:
        EditStore(f"postgresql://postgres:secret@/nowhere?host={postgres_server.folder}")
    assert "secret" not in str(caught.value)
    with pytest.raises(InvalidInputError, match=r"postgresql\+pg8000"):
        EditStore("postgresql+pg8000://me@host/name")


def test_a_writer_that_waits_too_long_is_told(postgres_url: str) -> None:
    with bound(postgres_url) as one, bound(postgres_url, busy_timeout_s=0.2) as other:
        edit = one.add(make_edit(), make_expert())
        with one._database.writing():
            assert other.list() == (edit,), "readers do not wait"
            with pytest.raises(StoreError, match="in use by another process"):
                other.undo(edit.id)
        assert not other.undo(edit.id).is_active


def test_revisions_appear_in_order_with_many_writers(postgres_url: str) -> None:
    """A replica that follows revision by revision never misses an edit."""
    errors: list[BaseException] = []

    def write(number: int) -> None:
        try:
            with bound(postgres_url) as opened:
                for seed in range(15):
                    opened.add(make_edit(f"{number}-{seed}"), make_expert(seed))
        except BaseException as error:
            errors.append(error)

    with EditStore(postgres_url) as replica:
        writers = [threading.Thread(target=write, args=(number,)) for number in range(4)]
        for writer in writers:
            writer.start()
        held: list[str] = []
        revision = 0
        while any(writer.is_alive() for writer in writers) or replica.latest_revision() > revision:
            changes = replica.changes_since(revision)
            assert len(changes.added) == changes.revision - revision
            held += changes.added
            revision = changes.revision
        assert errors == []
        assert held == [edit.id for edit in replica.list()] and len(held) == 60
        assert replica.verify() == ()


def test_a_lost_connection_is_made_anew(postgres_url: str) -> None:
    with bound(postgres_url) as opened:
        edit = opened.add(make_edit(), make_expert())
        run_sql(
            postgres_url,
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() "
            "AND pid != pg_backend_pid()",
        )
        assert opened.list() == (edit,)


def test_purged_rows_are_gone_from_the_servers_files(postgres_url: str, postgres_server: PostgresServer) -> None:
    secret, marker = b"Zebedee Quint asked this", part_bytes(make_expert(77))

    def traces() -> list[bytes]:
        run_sql(postgres_url, "CHECKPOINT")
        files = [file for file in (postgres_server.folder / "data" / "base").rglob("*") if file.is_file()]
        content = b"".join(file.read_bytes() for file in files)
        return [wanted for wanted in (secret, marker) if wanted in content]

    with bound(postgres_url) as opened:
        edit = opened.add(dataclasses.replace(make_edit(), prompt=secret.decode()), make_expert(77))
        other = opened.add(make_edit(), make_expert(1))
        assert traces() == [secret, marker]
        opened.purge(edit.id)
        assert traces() == []
        assert opened.expert(other.id) == make_expert(1)
        assert opened.verify() == ()


def test_without_the_driver_the_extra_is_named() -> None:
    code = (
        "import sys; sys.modules['psycopg'] = None\n"
        "from liveedit.store.store import EditStore\n"
        "EditStore('postgresql://me@host/name')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert "StoreError" in done.stderr and "pip install 'liveedit[postgres]'" in done.stderr


_WRITER = """
import sys
sys.path.insert(0, sys.argv[2])
from edit_examples import bound, make_edit, make_expert
with bound(sys.argv[1]) as store:
    for seed in range(3):
        print(store.add(make_edit(str(seed)), make_expert(seed)).id, flush=True)
"""


def test_another_process_is_followed_within_a_second(postgres_url: str) -> None:
    with EditStore(postgres_url) as replica:
        command = [sys.executable, "-c", _WRITER, postgres_url, str(Path(edit_examples.__file__).parent)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout is not None
            for number, line in enumerate(writer.stdout):
                started = time.monotonic()
                while replica.latest_revision() <= number:
                    time.sleep(0.01)
                assert time.monotonic() - started < 1
                assert replica.changes_since(number).added[0] == line.strip()
        assert writer.returncode == 0
