"""Looking an edits file over for damage."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Callable, Iterator

from .expert_bytes import expert_from_bytes


def find_problems(connection: sqlite3.Connection) -> tuple[str, ...]:
    """What is wrong with the file, one sentence each; nothing where all is well.

    Checked are SQLite's own structure, the references between tables, the digest of every expert and
    thumbnail, and that edits, experts and history agree in number. A check that damage keeps from ending is
    a problem too.
    """
    problems: list[str] = []
    # One transaction, so that what others write meanwhile does not look like damage.
    connection.execute("BEGIN")
    try:
        for check in (_structure, _references, _blobs, _counts, _binding):
            problems += _outcome(check, connection)
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
    return tuple(problems)


def _outcome(check: Callable[[sqlite3.Connection], Iterator[str]], connection: sqlite3.Connection) -> list[str]:
    found: list[str] = []
    try:
        found.extend(check(connection))
    except sqlite3.DatabaseError as error:
        found.append(f"The check of the {check.__name__.strip('_')} could not be finished: {error}.")
    return found


def _structure(connection: sqlite3.Connection) -> Iterator[str]:
    for (line,) in connection.execute("PRAGMA integrity_check"):
        if line != "ok":
            yield f"SQLite: {line}."


def _references(connection: sqlite3.Connection) -> Iterator[str]:
    for table, row, parent, _ in connection.execute("PRAGMA foreign_key_check"):
        yield f"Row {row} of {table} refers to something that is not in {parent}."


def _blobs(connection: sqlite3.Connection) -> Iterator[str]:
    edits = connection.execute("SELECT number, id FROM edits ORDER BY number").fetchall()
    for number, edit_id in edits:
        rows = connection.execute("SELECT kind, sha256, data FROM blobs WHERE edit_number = ?", (number,))
        kinds = set()
        for kind, sha256, data in rows:
            kinds.add(kind)
            if (problem := blob_problem(kind, sha256, data)) is not None:
                yield f"The {kind} of edit {edit_id!r} is damaged: {problem}."
        if "expert" not in kinds:
            yield f"The edit {edit_id!r} has no expert."


def blob_problem(kind: str, sha256: str, data: bytes) -> str | None:
    """What is wrong with a stored expert or thumbnail, or None."""
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        return f"its digest is {found[:12]}, not {sha256[:12]}"
    if kind == "expert":
        try:
            expert_from_bytes(data)
        except ValueError as error:
            return str(error)
    return None


def _counts(connection: sqlite3.Connection) -> Iterator[str]:
    for table in ("edits", "events"):
        count, last = connection.execute(f"SELECT count(*), coalesce(max(number), 0) FROM {table}").fetchone()
        (given,) = connection.execute(
            "SELECT coalesce(max(seq), 0) FROM sqlite_sequence WHERE name = ?", (table,)
        ).fetchone()
        if not count == last == given:
            yield f"The table {table} has {count} rows, but {max(last, given)} numbers were given out."
    uneven = connection.execute(
        """
        SELECT id, undone_at,
            (SELECT count(*) FROM events WHERE edit_id = id AND kind = 'edit') AS made,
            (SELECT count(*) FROM events WHERE edit_id = id AND kind = 'undo') AS undone
        FROM edits WHERE made != 1 OR undone != (undone_at IS NOT NULL)
        """
    )
    for edit_id, undone_at, made, undone in uneven:
        state = "in force" if undone_at is None else f"undone at {undone_at}"
        times = f"made {made} and undone {undone} times"
        yield f"The edit {edit_id!r} is {state}, but the history has it {times}."


def _binding(connection: sqlite3.Connection) -> Iterator[str]:
    (edits,) = connection.execute("SELECT count(*) FROM edits").fetchone()
    (bound,) = connection.execute("SELECT count(*) FROM meta WHERE key LIKE '%_digest'").fetchone()
    if edits and bound != 2:
        yield "The file holds edits but does not say which model and editor they belong to."
