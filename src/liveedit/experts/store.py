"""The edits file: every edit with its expert and its history, durable in an SQLite file or a PostgreSQL database."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from sqlalchemy import Connection, func, select

from ..errors import InvalidInputError, NotFoundError, StoreError
from . import changes, queries, transfer
from .bundle import BundleContents, Imported, open_bundle
from .changes import Signature
from .expert import Expert
from .expert_bytes import expert_from_bytes, expert_to_bytes
from .integrity import digest_problem, find_problems
from .opening import open_database
from .records import (
    Binding,
    BlobKind,
    Changes,
    Event,
    EventKind,
    NewEdit,
    StoredEdit,
    check_edit,
    check_picture,
    check_text,
    check_thumbnail,
    thumbnail_png,
)
from .schema import EDITS, EVENTS

__all__ = ["Binding", "Changes", "EditStore", "Event", "Imported", "NewEdit", "StoredEdit", "thumbnail_png"]

_ID_BYTES: Final = 4
_EXPERTS_AT_A_TIME: Final = 64
_RECOVERY: Final = "Undo that edit and make it again, or go back to a backup."


class EditStore:
    """Every edit that was made with one backbone and one editor; undone edits stay, marked as such.

    What a method has returned is on the disk: each change is one transaction, synchronised before the method
    returns. Several processes may have the store open, and several threads may share one. Each change has a
    revision, one more than the last; what was in force after any of them can be read again. Of pictures a
    thumbnail and a digest are kept, the picture itself where it is given.

    `location`: an SQLite file by its path or a URL sqlite:///PATH, created at the first edit where there is none
    unless `create` is False (its folder must exist); or a database by a URL postgresql://USER@HOST/NAME.
    `busy_timeout_s`: how long to wait for another process to finish writing, in seconds.

    Raises `StoreError` where it cannot be used; what belongs to another program is never written to.
    """

    def __init__(self, location: str | Path, *, create: bool = True, busy_timeout_s: float = 30.0):
        self._database = open_database(location, create=create, busy_timeout_s=busy_timeout_s)
        self._bound: Binding | None = None
        self._is_tied = False
        """Whether the store is known to belong to `_bound`, which then stays so."""

    @property
    def location(self) -> str:
        """The path or the URL, without a password."""
        return self._database.location

    def close(self) -> None:
        """Close the file or the connections. Closing twice does nothing."""
        self._database.close()

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
        with self._database.reading() as connection:
            return connection.execute(select(func.count()).select_from(EDITS).where(queries.in_force())).scalar_one()

    def __bool__(self) -> bool:
        """True: a store without edits is a store all the same."""
        return True

    # -- which model it belongs to -----------------------------------------------------------------------

    def bind(self, backbone_digest: str, editor_digest: str, *, backbone: str, editor: str) -> None:
        """Say for which backbone and editor edits will be added; the first edit ties the store to them.

        Experts mean nothing to another model. Raises `StoreError` where the store belongs to one.
        """
        wanted = Binding(backbone_digest, editor_digest, backbone, editor)
        if not (backbone_digest and editor_digest):
            raise InvalidInputError(f"An edits file is bound by digests; received {wanted}. Give both digests.")
        self._check_binding(self.binding, wanted)
        self._bound, self._is_tied = wanted, False

    @property
    def binding(self) -> Binding | None:
        """The backbone and editor that the store belongs to; None before the first edit."""
        with self._database.reading() as connection:
            return queries.binding_of(connection)

    # -- changes -----------------------------------------------------------------------------------------

    def add(
        self,
        edit: NewEdit,
        expert: Expert,
        thumbnail: bytes | None = None,
        *,
        picture: bytes | None = None,
        supersedes: Sequence[str] = (),
    ) -> StoredEdit:
        """Store an edit that was made. `thumbnail`: PNG bytes, see `thumbnail_png`.

        picture: the bytes of the picture's file, where it is to be kept. supersedes: ids, as in `get`, of edits in
        force that leave in the same change; they come back if this one is undone.

        Raises `InvalidInputError` for what cannot be stored, `StoreError` before `bind`: an expert added
        unchecked could be another model's. Nothing is stored then.
        """
        check_edit(edit)
        self._check_texts(edit)
        blobs: dict[BlobKind, bytes] = {"expert": expert_to_bytes(expert)}
        if thumbnail is not None:
            check_thumbnail(thumbnail)
            blobs["thumbnail"] = thumbnail
        if picture is not None:
            check_picture(picture, edit.image_sha256)
            blobs["picture"] = picture
        if self._bound is None:
            raise StoreError(
                f"{self._database.name} was opened without saying for which model. Call `bind` before adding edits."
            )
        with self._database.writing() as connection:
            if not self._is_tied:
                self._tie(connection, self._bound)
            leaving = [self._in_force(connection, edit_id).number for edit_id in dict.fromkeys(supersedes)]
            edit_id = _unused_id(connection)
            stored = changes.insert_new(connection, edit, edit_id, expert.digest, self._bound, leaving)
            changes.insert_blobs(connection, stored.number, blobs)
        self._is_tied = True
        return self._attached(stored)

    def undo(self, edit_id: str, *, author: str | None = None, note: str | None = None) -> StoredEdit:
        """Take an edit out of force; the edit and its history stay. `edit_id` as in `get`.

        Edits that it superseded come back, unless something else happened to them since. Raises `NotFoundError` where
        there is no such edit in force.
        """
        signature = self._signature(author, note)
        with self._database.writing() as connection:
            edit = self._in_force(connection, edit_id)
            event = changes.append_event(connection, "undo", edit.id, signature)
            returning = changes.left_for(connection, edit)
            changes.take_out(connection, [edit.number], event)
            changes.bring_in(connection, returning, event)
        return self.get(edit.id)

    def redo(self, edit_id: str, *, author: str | None = None, note: str | None = None) -> StoredEdit:
        """Put an edit into force again; those that it had superseded leave again. `edit_id` as in `get`.

        Raises `NotFoundError` where there is no such edit out of force, or it was purged.
        """
        signature = self._signature(author, note)
        with self._database.writing() as connection:
            edit = queries.edit_of(connection, edit_id)
            if edit.is_active:
                raise NotFoundError(f"The edit {edit.id!r} is in force. Nothing is there to redo.")
            if edit.purged_at is not None:
                raise NotFoundError(f"The edit {edit.id!r} was purged, at {edit.purged_at}: make it again.")
            event = changes.append_event(connection, "redo", edit.id, signature)
            changes.take_out(connection, changes.rivals_in_force(connection, edit), event)
            changes.bring_in(connection, [edit.number], event)
        return self.get(edit.id)

    def purge(self, edit_id: str, *, author: str | None = None, note: str | None = None) -> StoredEdit:
        """Remove what an edit says for good: texts, picture, thumbnail, expert, and who made it. `edit_id` as in `get`.

        Where it is in force it is taken out as by `undo`. Its id, its times and a line in the history stay. The bytes
        are gone from the file, which is written anew for that; purging the same edit again only does that. Raises
        `NotFoundError` for an unknown id, `StoreError` where others hold on to the file: the edit is purged then,
        but some bytes may be left.
        """
        signature = self._signature(author, note)
        with self._database.writing() as connection:
            edit = queries.edit_of(connection, edit_id)
            if edit.purged_at is None:
                event = changes.append_event(connection, "purge", edit.id, signature)
                returning = changes.left_for(connection, edit) if edit.is_active else []
                if edit.is_active:
                    changes.take_out(connection, [edit.number], event)
                changes.bring_in(connection, returning, event)
                changes.erase(connection, edit, event)
        self._database.sweep()
        return self.get(edit.id)

    # -- moving ------------------------------------------------------------------------------------------

    def export_bundle(self, path: str | Path, *, whole: bool = True) -> BundleContents:
        """Write the edits to one file (see `bundle.py`); returns what its records say.

        whole: with undone edits and the history; else only those in force. Raises `StoreError` where the file is there
        already or cannot be written, or an expert is damaged.
        """
        with self._database.reading() as connection:
            return transfer.write_out(connection, whole, Path(path))

    def import_bundle(self, path: str | Path) -> Imported:
        """Take in the edits of a bundle, with their ids: all or none.

        A whole bundle comes into an empty store with its history; elsewhere each edit that is not there yet is a new
        change. Raises `StoreError` where the bundle is damaged, belongs to another backbone or editor than this store
        (or than the one it was bound to), or has an id that is there with other content.
        """
        with open_bundle(Path(path)) as bundle:
            binding = bundle.contents.binding
            if binding is None:
                return Imported((), (), ())
            for edit in bundle.contents.edits:
                self._check_texts(edit)
            if self._bound is not None:
                self._check_bundle(self._bound, binding)
            bundle.check()  # Before a new file is made.
            with self._database.writing() as connection:
                found = queries.binding_of(connection)
                if found is None:
                    changes.write_binding(connection, binding)
                else:
                    self._check_bundle(found, binding)
                return transfer.take_in(connection, bundle)

    # -- reading -----------------------------------------------------------------------------------------

    def get(self, edit_id: str) -> StoredEdit:
        """The edit of this id, undone or not; the first characters do where no other id begins with them.

        Raises `NotFoundError` for an unknown id, `InvalidInputError` for a beginning that several share.
        """
        with self._database.reading() as connection:
            return self._attached(queries.edit_of(connection, edit_id))

    def expert(self, edit_id: str) -> Expert:
        """The expert of the edit of this id. Raises `NotFoundError`, and `StoreError` where it is damaged."""
        found = self._blob(edit_id, "expert")
        if found is None:
            raise self._no_expert(edit_id)
        return self._read_expert(edit_id, *found)

    def thumbnail(self, edit_id: str) -> bytes | None:
        """The thumbnail of the edit of this id as PNG, if it has one. Raises as `expert` does."""
        return self._file(edit_id, "thumbnail")

    def picture(self, edit_id: str) -> bytes | None:
        """The file of the picture of the edit of this id, if it was kept. Raises as `expert` does."""
        return self._file(edit_id, "picture")

    def active_experts(self, at: int | None = None) -> Iterator[tuple[str, Expert]]:
        """(edit id, expert) of every edit in force, in the order they were made; few in memory at a time.

        at: those in force after this revision instead of now; edits purged since are left out. Which edits are meant
        is settled at the call, also where the file changes on the way. Raises `InvalidInputError` for a revision
        that there is not, `StoreError` where an expert is damaged.
        """
        with self._database.reading() as connection:
            if at is not None:
                queries.check_revision(connection, at)
            statement = select(EDITS.c.number, EDITS.c.id).where(queries.in_force(at)).order_by(EDITS.c.number)
            wanted = [(number, edit_id) for number, edit_id in connection.execute(statement)]
        return self._experts(wanted)

    def experts(self, edit_ids: Sequence[str]) -> Iterator[tuple[str, Expert]]:
        """(edit id, expert) of the edits of these ids, given whole, as `active_experts` gives them."""
        with self._database.reading() as connection:
            numbers = queries.numbers_of(connection, edit_ids)
        for edit_id in edit_ids:
            if edit_id not in numbers:
                raise NotFoundError(f"There is no edit {edit_id!r} in {self.location!r}.")
        return self._experts([(numbers[edit_id], edit_id) for edit_id in edit_ids])

    def latest_revision(self) -> int:
        """The revision of the last change; 0 before the first."""
        with self._database.reading() as connection:
            return queries.latest_revision(connection)

    def changes_since(self, revision: int) -> Changes:
        """What a replica that was loaded at `revision` has to put in and take out.

        Cheap where nothing happened. Raises `InvalidInputError` for a revision that there is not.
        """
        with self._database.reading() as connection:
            return queries.changes_since(connection, revision)

    def history(self, edit_id: str | None = None) -> tuple[Event, ...]:
        """Everything that ever happened to the edits, or to one, oldest first."""
        with self._database.reading() as connection:
            chosen = () if edit_id is None else (EVENTS.c.edit_id == queries.resolve(connection, edit_id),)
            return tuple(queries.events_where(connection, *chosen))

    def verify(self) -> tuple[str, ...]:
        """What is wrong with the file, one sentence each; empty where all is well. Every digest is derived anew."""
        with self._database.reading() as connection:
            return find_problems(connection, self._database.structure_problems)

    # Last of the public methods, because below its definition `list` means this method.
    def list(self, include_undone: bool = False, *, at: int | None = None) -> tuple[StoredEdit, ...]:
        """The edits in force, in the order they were made; with those undone where asked for.

        at: those in force after this revision instead of now; edits purged since are left out.
        """
        with self._database.reading() as connection:
            if at is not None:
                queries.check_revision(connection, at)
            if include_undone:
                chosen = () if at is None else (EDITS.c.revision_added <= at,)
            else:
                chosen = (queries.in_force(at),)
            return tuple(self._attached(edit) for edit in queries.edits_where(connection, *chosen))

    # -- inside ------------------------------------------------------------------------------------------

    def _tie(self, connection: Connection, binding: Binding) -> None:
        found = queries.binding_of(connection)
        if found is None:
            changes.write_binding(connection, binding)
        self._check_binding(found, binding)

    def _check_binding(self, found: Binding | None, wanted: Binding) -> None:
        if found is not None and not found.matches(wanted):
            raise StoreError(
                f"{self._database.name} belongs to {found}; loaded is {wanted}. Load that model "
                "and editor, or give another edits file."
            )

    def _check_bundle(self, wanted: Binding, found: Binding) -> None:
        if not found.matches(wanted):
            raise StoreError(
                f"The bundle's edits belong to {found}; {self._database.name} belongs to {wanted}. Nothing was "
                "imported. Import them into an edits file of that model and editor."
            )

    def _check_texts(self, edit: NewEdit) -> None:
        for name, value in vars(edit).items():
            if isinstance(value, str) and (problem := self._database.problem_with_text(value)) is not None:
                raise InvalidInputError(f"An edit's {name} {problem}")

    def _signature(self, author: str | None, note: str | None) -> Signature:
        for name, value in (("author", author), ("note", note)):
            if value is not None:
                check_text(f"The {name}", value)
                if (problem := self._database.problem_with_text(value)) is not None:
                    raise InvalidInputError(f"The {name} {problem}")
        return Signature(author, note)

    def _in_force(self, connection: Connection, edit_id: str) -> StoredEdit:
        edit = queries.edit_of(connection, edit_id)
        if not edit.is_active:
            (event,) = queries.events_where(connection, EVENTS.c.revision == edit.revision_removed)
            verbs: dict[EventKind, str] = {"supersede": "superseded", "redo": "superseded", "purge": "purged"}
            raise NotFoundError(
                f"The edit {edit.id!r} was already {verbs.get(event.kind, 'undone')}, at {edit.undone_at}. "
                "Nothing is left to undo."
            )
        return edit

    def _attached(self, edit: StoredEdit) -> StoredEdit:
        return edit.attached(self.expert, self.thumbnail)

    def _experts(self, wanted: Sequence[tuple[int, str]]) -> Iterator[tuple[str, Expert]]:
        for start in range(0, len(wanted), _EXPERTS_AT_A_TIME):
            batch = wanted[start : start + _EXPERTS_AT_A_TIME]
            with self._database.reading() as connection:
                blobs = queries.expert_blobs(connection, [number for number, _ in batch])
            for number, edit_id in batch:
                if number in blobs:
                    yield edit_id, self._read_expert(edit_id, *blobs[number])
                elif self.get(edit_id).purged_at is None:  # Else it was purged on the way.
                    raise self._no_expert(edit_id)

    def _blob(self, edit_id: str, kind: BlobKind) -> tuple[str, bytes] | None:
        with self._database.reading() as connection:
            return queries.blob_of(connection, queries.resolve(connection, edit_id), kind)

    def _file(self, edit_id: str, kind: BlobKind) -> bytes | None:
        found = self._blob(edit_id, kind)
        if found is not None and (problem := digest_problem(*found)) is not None:
            raise self._damaged(edit_id, kind, problem)
        return found and found[1]

    def _read_expert(self, edit_id: str, sha256: str, data: bytes) -> Expert:
        if (problem := digest_problem(sha256, data)) is not None:
            raise self._damaged(edit_id, "expert", problem)
        try:
            return expert_from_bytes(data)
        except ValueError as error:
            raise self._damaged(edit_id, "expert", str(error)) from error

    def _damaged(self, edit_id: str, kind: BlobKind, problem: str) -> StoreError:
        return StoreError(f"The {kind} of edit {edit_id!r} in {self.location!r} is damaged: {problem}. {_RECOVERY}")

    def _no_expert(self, edit_id: str) -> StoreError:
        edit = self.get(edit_id)
        if edit.purged_at is not None:
            return StoreError(f"The edit {edit.id!r} was purged, at {edit.purged_at}: its expert is gone for good.")
        return StoreError(f"The edit {edit.id!r} in {self.location!r} has no expert. {_RECOVERY}")


def _unused_id(connection: Connection) -> str:
    while True:
        edit_id = secrets.token_hex(_ID_BYTES)
        if not queries.is_taken(connection, edit_id):
            return edit_id
