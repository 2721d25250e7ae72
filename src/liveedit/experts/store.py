"""The edits file: every edit with its expert and its history, durable in one SQLite file."""

from __future__ import annotations

import difflib
import hashlib
import secrets
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Final, Literal, Self

from ..errors import InvalidInputError, NotFoundError, StoreError
from .database import explained, open_database
from .expert import Expert
from .expert_bytes import expert_from_bytes, expert_to_bytes
from .integrity import blob_problem, find_problems
from .migrations import transaction
from .records import Event, EventKind, NewEdit, StoredEdit, check_edit, check_thumbnail, thumbnail_png

__all__ = ["Binding", "EditStore", "Event", "NewEdit", "StoredEdit", "thumbnail_png"]

_COLUMNS: Final = ", ".join(field.name for field in fields(StoredEdit))
_ID_BYTES: Final = 4

_RECOVERY: Final = "Undo that edit and make it again, or go back to a backup."

_BlobKind = Literal["expert", "thumbnail"]


@dataclass(frozen=True, slots=True)
class Binding:
    """The backbone and the editor that an edits file belongs to: names for people, digests to compare."""

    backbone_digest: str
    editor_digest: str
    backbone: str
    editor: str

    def __str__(self) -> str:
        return (
            f"the model {self.backbone!r} (digest {self.backbone_digest[:12]}) with the editor "
            f"{self.editor!r} (digest {self.editor_digest[:12]})"
        )

    def matches(self, other: Binding) -> bool:
        """Whether the digests agree, whatever the names."""
        return (self.backbone_digest, self.editor_digest) == (other.backbone_digest, other.editor_digest)


class EditStore:
    """Every edit that was made with one backbone and one editor; undone edits stay, marked as such.

    What a method has returned is on the disk: each change is one transaction, synchronised before the method
    returns. Several processes may have the file open, and several threads may share one store. Of pictures
    only a thumbnail and a digest are kept.

    `path`: the file, created where there is none unless `create` is False; its folder must exist.
    `busy_timeout_s`: how long to wait for another process to finish writing, in seconds.

    Raises `StoreError` where the file cannot be used; a file of another program is never written to.
    """

    def __init__(self, path: str | Path, *, create: bool = True, busy_timeout_s: float = 30.0):
        self.path = Path(path)
        self._lock = threading.RLock()
        self._is_bound = False
        self._connection: sqlite3.Connection | None = open_database(self.path, create, busy_timeout_s)

    def close(self) -> None:
        """Close the file. Closing twice does nothing."""
        with self._lock, explained(self.path):
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __len__(self) -> int:
        """How many edits are in force."""
        with self._reading() as connection:
            return int(connection.execute("SELECT count(*) FROM edits WHERE undone_at IS NULL").fetchone()[0])

    def __bool__(self) -> bool:
        """True: a store without edits is a store all the same."""
        return True

    def bind(self, backbone_digest: str, editor_digest: str, *, backbone: str, editor: str) -> None:
        """Tie the file to one backbone and one editor, or check that it is tied to these.

        Experts mean nothing to another model. Raises `StoreError` where the file belongs to one.
        """
        wanted = Binding(backbone_digest, editor_digest, backbone, editor)
        if not (backbone_digest and editor_digest):
            raise InvalidInputError(f"An edits file is bound by digests; received {wanted}. Give both digests.")
        if self.binding is None:
            self._write_binding(wanted)
        found = self.binding
        if found is None or not found.matches(wanted):
            raise StoreError(
                f"The edits file {str(self.path)!r} belongs to {found}; loaded is {wanted}. Load that model "
                "and editor, or give another edits file."
            )
        self._is_bound = True

    @property
    def binding(self) -> Binding | None:
        """The backbone and editor that the file belongs to; None before the first `bind`."""
        with self._reading() as connection:
            meta = dict(connection.execute("SELECT key, value FROM meta").fetchall())
        names = [field.name for field in fields(Binding)]
        return Binding(**{name: meta[name] for name in names}) if meta.keys() >= set(names) else None

    def add(self, edit: NewEdit, expert: Expert, thumbnail: bytes | None = None) -> StoredEdit:
        """Store an edit that was made. `thumbnail`: PNG bytes, see `thumbnail_png`.

        Raises `InvalidInputError` for what cannot be stored, `StoreError` before `bind`: an expert added
        unchecked could be another model's.
        """
        check_edit(edit)
        blobs: dict[_BlobKind, bytes] = {"expert": expert_to_bytes(expert)}
        if thumbnail is not None:
            check_thumbnail(thumbnail)
            blobs["thumbnail"] = thumbnail
        if not self._is_bound:
            raise StoreError(
                f"The edits file {str(self.path)!r} was opened without saying for which model. Call `bind` "
                "before adding edits."
            )
        with self._writing() as connection:
            edit_id = _unused_id(connection)
            number = _insert_edit(connection, edit, edit_id)
            _insert_blobs(connection, number, blobs)
        return self.get(edit_id)

    def undo(self, edit_id: str) -> StoredEdit:
        """Take an edit out of force; the edit and its history stay. `edit_id` as in `get`.

        Raises `NotFoundError` where there is no such edit in force.
        """
        with self._writing() as connection:
            edit_id = _resolve(connection, edit_id)
            (undone_at,) = connection.execute("SELECT undone_at FROM edits WHERE id = ?", (edit_id,)).fetchone()
            if undone_at is not None:
                raise NotFoundError(
                    f"The edit {edit_id!r} was already undone, at {undone_at}. Nothing is left to undo."
                )
            now = _now()
            connection.execute("UPDATE edits SET undone_at = ? WHERE id = ?", (now, edit_id))
            _append_event(connection, now, "undo", edit_id)
        return self.get(edit_id)

    def get(self, edit_id: str) -> StoredEdit:
        """The edit of this id, undone or not; the first characters do where no other id begins with them.

        Raises `NotFoundError` for an unknown id, `InvalidInputError` for a beginning that several share.
        """
        with self._reading() as connection:
            edit_id = _resolve(connection, edit_id)
            row = connection.execute(f"SELECT {_COLUMNS} FROM edits WHERE id = ?", (edit_id,)).fetchone()
        return self._edit(row)

    def expert(self, edit_id: str) -> Expert:
        """The expert of the edit of this id. Raises `NotFoundError`, and `StoreError` where it is damaged."""
        data = self._blob(edit_id, "expert")
        if data is None:
            raise StoreError(f"The edit {edit_id!r} in {str(self.path)!r} has no expert. {_RECOVERY}")
        return expert_from_bytes(data)

    def thumbnail(self, edit_id: str) -> bytes | None:
        """The thumbnail of the edit of this id as PNG, if it has one. Raises as `expert` does."""
        return self._blob(edit_id, "thumbnail")

    def active_experts(self) -> Iterator[tuple[str, Expert]]:
        """(edit id, expert) of every edit in force, in the order they were made; one in memory at a time.

        Which edits are in force is settled at the call, also where the file changes on the way.
        """
        with self._reading() as connection:
            rows = connection.execute("SELECT id FROM edits WHERE undone_at IS NULL ORDER BY number").fetchall()
        return ((edit_id, self.expert(edit_id)) for (edit_id,) in rows)

    def history(self) -> tuple[Event, ...]:
        """Everything that ever happened to the edits, oldest first."""
        with self._reading() as connection:
            rows = connection.execute("SELECT number, at, kind, edit_id FROM events ORDER BY number").fetchall()
        return tuple(Event(*row) for row in rows)

    def verify(self) -> tuple[str, ...]:
        """What is wrong with the file, one sentence each; empty where all is well."""
        with self._reading() as connection:
            return find_problems(connection)

    # Last, because below its definition `list` means this method.
    def list(self, include_undone: bool = False) -> tuple[StoredEdit, ...]:
        """The edits in force, in the order they were made; with those undone where asked for."""
        condition = "" if include_undone else "WHERE undone_at IS NULL"
        with self._reading() as connection:
            rows = connection.execute(f"SELECT {_COLUMNS} FROM edits {condition} ORDER BY number").fetchall()
        return tuple(self._edit(row) for row in rows)

    def _write_binding(self, binding: Binding) -> None:
        with self._writing() as connection:
            # Where another process has bound the file meanwhile, its binding stands.
            if connection.execute("SELECT count(*) FROM meta WHERE key = 'backbone_digest'").fetchone()[0]:
                return
            for field in fields(Binding):
                connection.execute("INSERT INTO meta VALUES (?, ?)", (field.name, getattr(binding, field.name)))

    def _edit(self, row: sqlite3.Row) -> StoredEdit:
        return StoredEdit(**dict(row)).attached(self.expert, self.thumbnail)

    def _blob(self, edit_id: str, kind: _BlobKind) -> bytes | None:
        with self._reading() as connection:
            edit_id = _resolve(connection, edit_id)
            row = connection.execute(
                "SELECT sha256, data FROM blobs JOIN edits ON number = edit_number WHERE id = ? AND kind = ?",
                (edit_id, kind),
            ).fetchone()
        if row is None:
            return None
        if (problem := blob_problem(kind, row["sha256"], row["data"])) is not None:
            raise StoreError(f"The {kind} of edit {edit_id!r} in {str(self.path)!r} is damaged: {problem}. {_RECOVERY}")
        return row["data"]

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        with self._lock, explained(self.path):
            if self._connection is None:
                raise StoreError(f"The edits file {str(self.path)!r} is closed. Open it with `EditStore(path)`.")
            yield self._connection

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        with self._reading() as connection, transaction(connection):
            yield connection


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _unused_id(connection: sqlite3.Connection) -> str:
    while True:
        edit_id = secrets.token_hex(_ID_BYTES)
        if connection.execute("SELECT 1 FROM edits WHERE id = ?", (edit_id,)).fetchone() is None:
            return edit_id


def _insert_edit(connection: sqlite3.Connection, edit: NewEdit, edit_id: str) -> int:
    now = _now()
    values = {field.name: getattr(edit, field.name) for field in fields(NewEdit)}
    # Numbers of numpy would be stored as bytes.
    values |= {"milliseconds": float(edit.milliseconds), "refine_steps": int(edit.refine_steps)}
    values |= {"id": edit_id, "created_at": now}
    marks = ", ".join(f":{name}" for name in values)
    cursor = connection.execute(f"INSERT INTO edits ({', '.join(values)}) VALUES ({marks})", values)
    _append_event(connection, now, "edit", edit_id)
    number = cursor.lastrowid
    assert number is not None
    return number


def _insert_blobs(connection: sqlite3.Connection, number: int, blobs: dict[_BlobKind, bytes]) -> None:
    for kind, data in blobs.items():
        connection.execute(
            "INSERT INTO blobs (edit_number, kind, sha256, data) VALUES (?, ?, ?, ?)",
            (number, kind, hashlib.sha256(data).hexdigest(), data),
        )


def _append_event(connection: sqlite3.Connection, at: str, kind: EventKind, edit_id: str) -> None:
    connection.execute("INSERT INTO events (at, kind, edit_id) VALUES (?, ?, ?)", (at, kind, edit_id))


def _resolve(connection: sqlite3.Connection, given: str) -> str:
    """The id that this id, or beginning of one, stands for."""
    prefix = given.strip().lower()
    if not prefix:
        raise InvalidInputError("The id of an edit is empty. Give the id, or its first characters.")
    if not prefix.isascii():
        raise NotFoundError(f"There is no edit {given!r}: ids are made of the digits 0-9 and a-f.")
    matches = [
        row[0]
        for row in connection.execute(
            "SELECT id FROM edits WHERE substr(id, 1, length(?)) = ? ORDER BY number", (prefix, prefix)
        )
    ]
    if prefix in matches or len(matches) == 1:
        return prefix if prefix in matches else matches[0]
    if matches:
        shown = ", ".join(matches[:5]) + (", ..." if len(matches) > 5 else "")
        raise InvalidInputError(f"{len(matches)} edits begin with {given!r}: {shown}. Give more characters.")
    raise NotFoundError(f"There is no edit {given!r}. {_suggestion(connection, prefix)}")


def _suggestion(connection: sqlite3.Connection, wanted: str) -> str:
    ids = [row[0] for row in connection.execute("SELECT id FROM edits")]
    if not ids:
        return "The file holds no edits yet."
    close = difflib.get_close_matches(wanted, ids, n=3)
    if close:
        return f"Did you mean {' or '.join(close)}?"
    return f"The file holds {len(ids)} edits; list them to see their ids."
