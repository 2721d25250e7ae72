"""The edits file: every edit with its expert and its history, durable in an SQLite file or a PostgreSQL database."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from sqlalchemy import Connection

from ..errors import EditPurgedError, EditStateError, InvalidInputError, OvertakenError, StoreError
from ..experts.expert import LowRankExpert, expert_to_bytes
from . import idempotency as requests
from . import queries, transfer
from . import writes as changes
from .bundle import BundleContents, Imported, open_bundle
from .checksums import Moved
from .idempotency import ChangeRequest
from .opening import open_database
from .reader import EditReader
from .records import (
    Binding,
    BlobKind,
    Changes,
    Event,
    EventKind,
    NewEdit,
    StoredEdit,
    check_edit,
    check_image,
    check_text,
    check_thumbnail,
    thumbnail_png,
)
from .schema import EVENTS
from .writes import Signature

__all__ = ["Binding", "Changes", "EditStore", "Event", "Imported", "NewEdit", "StoredEdit", "thumbnail_png"]

_ID_BYTES: Final = 4


class EditStore(EditReader):
    """Every edit that was made with one backbone and one editor; undone edits stay, marked as such.

    What a method has returned is on the disk: each change is one transaction, synchronised before the method
    returns. Several processes may have the store open, and several threads may share one. Each change has a
    revision, one more than the last; what was in force after any of them can be read again. Of images a
    thumbnail and a digest are kept, the image itself where it is given.

    `location`: an SQLite file by its path or a URL sqlite:///PATH, created at the first edit where there is none
    unless `create` is False (its folder must exist); a database by a URL postgresql://USER@HOST/NAME; or None for a
    store in memory, which ends with the process.
    `busy_timeout_s`: how long to wait for another process to finish writing, in seconds.

    Raises `StoreError` where it cannot be used; what belongs to another program is never written to.
    """

    def __init__(self, location: str | Path | None, *, create: bool = True, busy_timeout_s: float = 30.0):
        super().__init__(open_database(location, create=create, busy_timeout_s=busy_timeout_s))
        self._bound: Binding | None = None
        self._is_tied = False
        """Whether the store is known to belong to `_bound`, which then stays so."""

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

    # -- changes -----------------------------------------------------------------------------------------

    def add(
        self,
        edit: NewEdit,
        expert: LowRankExpert,
        thumbnail: bytes | None = None,
        *,
        image: bytes | None = None,
        supersedes: Sequence[str] = (),
        alone: bool = False,
        request: ChangeRequest | None = None,
    ) -> StoredEdit:
        """Store an edit that was made. `thumbnail`: PNG bytes, see `thumbnail_png`.

        image: the bytes of the image's file, where it is to be kept. supersedes: ids, as in `get`, of edits in
        force that leave in the same change; they come back if this one is undone. alone: no other edit of the same
        question may be in force afterwards, see `same_question`. request: where it has made an edit before, that one is
        returned, and nothing is stored.

        Raises `InvalidInputError` for what cannot be stored, `StoreError` before `bind`: an expert added
        unchecked could be another model's; `NotFoundError` for superseded ones that are not in force; `OvertakenError`
        where others are against `alone`; `ConflictError` for a request with another body than before. Nothing is stored
        then.
        """
        check_edit(edit)
        self._check_texts(edit)
        blobs: dict[BlobKind, bytes] = {"expert": expert_to_bytes(expert)}
        if thumbnail is not None:
            check_thumbnail(thumbnail)
            blobs["thumbnail"] = thumbnail
        if image is not None:
            check_image(image, edit.image_sha256)
            blobs["image"] = image
        if self._bound is None:
            raise StoreError(
                f"{self._database.name} was opened without saying for which model. Call `bind` before adding edits."
            )
        with self._database.writing() as connection:
            if not self._is_tied:
                self._tie(connection, self._bound)
            stored = requests.made_by(connection, request)
            if stored is None:
                leaving = [self._active(connection, edit_id) for edit_id in dict.fromkeys(supersedes)]
                if alone:
                    _check_alone(connection, edit, {other.id for other in leaving})
                numbers = [other.number for other in leaving]
                edit_id = _unused_id(connection)
                stored = changes.insert_new(connection, edit, edit_id, expert.digest, self._bound, numbers)
                changes.insert_blobs(connection, stored.number, blobs)
                requests.remember(connection, request, stored.revision_added)
        self._is_tied = True
        return self._attached(stored)

    def undo(
        self, edit_id: str, *, author: str | None = None, note: str | None = None, request: ChangeRequest | None = None
    ) -> StoredEdit:
        """Take an edit out of force; the edit and its history stay. `edit_id` as in `get`, `request` as in `add`.

        Edits that it superseded come back, unless something else happened to them since. Raises `NotFoundError` where
        there is no such edit, `EditStateError` where it is not in force.
        """
        signature = self._signature(author, note)
        with self._database.writing() as connection:
            if (done := requests.made_by(connection, request)) is not None:
                return self._attached(done)
            edit = self._active(connection, edit_id)
            moved = Moved(changes.left_for(connection, edit), [edit.number])
            event = changes.make_change(connection, "undo", edit.id, signature, moved)
            requests.remember(connection, request, event.revision)
        return self.get(edit.id)

    def redo(
        self,
        edit_id: str,
        *,
        alone: bool = False,
        author: str | None = None,
        note: str | None = None,
        request: ChangeRequest | None = None,
    ) -> StoredEdit:
        """Put an edit into force again; those that it had superseded leave again. `edit_id`, `request` as in `undo`.

        alone: not beside the one that superseded it. Raises `NotFoundError` where there is no such edit,
        `EditStateError` where it is in force, was purged, or is against `alone`.
        """
        signature = self._signature(author, note)
        with self._database.writing() as connection:
            if (done := requests.made_by(connection, request)) is not None:
                return self._attached(done)
            edit = queries.edit_of(connection, edit_id)
            if edit.is_active:
                raise EditStateError(f"The edit {edit.id!r} is in force. Nothing is there to redo.")
            if edit.purged_at is not None:
                raise EditPurgedError(f"The edit {edit.id!r} was purged, at {edit.purged_at}: make it again.")
            if alone and (successor := queries.successor_of(connection, edit)) is not None:
                raise EditStateError(
                    f"The edit {edit.id!r} was superseded: {successor.id!r} is in force in its place. Undo that one."
                )
            moved = Moved([edit.number], changes.active_rivals(connection, edit))
            event = changes.make_change(connection, "redo", edit.id, signature, moved)
            requests.remember(connection, request, event.revision)
        return self.get(edit.id)

    def purge(self, edit_id: str, *, author: str | None = None, note: str | None = None) -> StoredEdit:
        """Remove what an edit says for good: texts, image, thumbnail, expert, and who made it. `edit_id` as in `get`.

        Where it is in force it is taken out as by `undo`. Its id, its times and a line in the history stay. The bytes
        are gone from the file, which is written anew for that; purging the same edit again only does that. Raises
        `NotFoundError` for an unknown id, `StoreError` where others hold on to the file: the edit is purged then,
        but some bytes may be left.
        """
        signature = self._signature(author, note)
        with self._database.writing() as connection:
            edit = queries.edit_of(connection, edit_id)
            if edit.purged_at is None:
                moved = Moved(changes.left_for(connection, edit), [edit.number]) if edit.is_active else Moved()
                event = changes.make_change(connection, "purge", edit.id, signature, moved)
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

    def _active(self, connection: Connection, edit_id: str) -> StoredEdit:
        edit = queries.edit_of(connection, edit_id)
        if not edit.is_active:
            (event,) = queries.events_where(connection, EVENTS.c.revision == edit.revision_removed)
            verbs: dict[EventKind, str] = {"supersede": "superseded", "redo": "superseded", "purge": "purged"}
            kind = EditStateError if edit.purged_at is None else EditPurgedError
            raise kind(
                f"The edit {edit.id!r} was already {verbs.get(event.kind, 'undone')}, at {edit.undone_at}. "
                "Nothing is left to undo."
            )
        return edit


def _check_alone(connection: Connection, edit: NewEdit, leaving: set[str]) -> None:
    found = queries.same_question(connection, edit.image_sha256, edit.prompt)
    if others := [other.id for other in found if other.id not in leaving]:
        raise OvertakenError(
            f"Edits of the same question came into force meanwhile: {', '.join(others)}. Nothing was stored; try again."
        )


def _unused_id(connection: Connection) -> str:
    while True:
        edit_id = secrets.token_hex(_ID_BYTES)
        if not queries.is_taken(connection, edit_id):
            return edit_id
