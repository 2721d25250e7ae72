"""The store of edits: every edit with its expert and its history, durable in an SQLite file or in PostgreSQL."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Final, get_args

from sqlalchemy import Connection

from ..errors import EditPurgedError, EditStateError, InvalidInputError, OvertakenError, StoreError
from . import idempotency, importing, queries, writes
from .bundle import BundleContents, export_bundle, open_bundle
from .checksums import NO_STATE_CHANGE, StateChange
from .contradictions import Contradiction, OnConflict
from .idempotency import ChangeRequest
from .importing import Imported
from .locations import open_database
from .reader import EditReader
from .records import Binding, BlobKind, Changes, Event, EventKind, NewEdit, StoredEdit
from .schema import EVENTS
from .thumbnails import check_image, check_thumbnail, thumbnail_png
from .validation import check_edit, check_expert, check_text
from .writes import Signature

__all__ = [
    "Binding",
    "Changes",
    "Contradiction",
    "EditStore",
    "Event",
    "Imported",
    "NewEdit",
    "OnConflict",
    "StoredEdit",
    "thumbnail_png",
]

_ID_BYTES: Final = 4


class EditStore(EditReader):
    """The edits made with one backbone and one editor. Undone edits stay, marked as undone.

    Each change is one transaction, synchronised to the disk before its method returns. Several processes may have the
    store open, and several threads may share one `EditStore`. Each change has a revision, one more than the last; the
    edits that were active after any revision can be read again. Experts are bytes (safetensors). Of an image the store
    keeps a thumbnail and a digest, and the image itself if it is given.

    location: the path of an SQLite file or a URL sqlite:///PATH; the first edit creates the file unless `create` is
    False, and its folder must exist. A URL postgresql://USER@HOST/NAME for a database. None for a store in memory,
    which ends with the process.
    busy_timeout_s: how long to wait for another process to finish writing, in seconds.

    Raises `StoreError` if it cannot be used. Files and tables of other programs are never written to.
    """

    def __init__(self, location: str | Path | None, *, create: bool = True, busy_timeout_s: float = 30.0):
        super().__init__(open_database(location, create=create, busy_timeout_s=busy_timeout_s))
        self._bound: Binding | None = None
        self._is_bound = False
        """Whether the store is known to belong to `_bound`. A store is never bound again to another model."""

    # -- which model it belongs to -----------------------------------------------------------------------

    def bind(self, backbone_digest: str, editor_digest: str, *, backbone: str, editor: str) -> None:
        """Name the backbone and the editor whose edits will be added; the first edit binds the store to them.

        Experts work only with the model they were made for. Raises `StoreError` if the store belongs to another model.
        """
        wanted = Binding(backbone_digest, editor_digest, backbone, editor)
        if not (backbone_digest and editor_digest):
            raise InvalidInputError(f"An edits file is bound by digests; received {wanted}. Give both digests.")
        self._check_binding(self.binding, wanted)
        self._bound, self._is_bound = wanted, False

    def check_backbone(self, digest: str, name: str) -> None:
        """Raise `StoreError` if the edits are those of another backbone, whatever the editor."""
        found = self.binding
        if found is not None and found.backbone_digest != digest:
            raise StoreError(
                f"{self._database.name} belongs to {found}; loaded is the model {name!r} (digest {digest[:12]}). Load "
                "that model, or give another edits file."
            )

    # -- changes -----------------------------------------------------------------------------------------

    def add(
        self,
        edit: NewEdit,
        expert: bytes,
        thumbnail: bytes | None = None,
        *,
        image: bytes | None = None,
        supersedes: Sequence[str] = (),
        alone: bool = False,
        request: ChangeRequest | None = None,
    ) -> StoredEdit:
        """Store an edit and its expert, and return it as stored.

        expert: safetensors with float32 tensors (`expert_to_bytes`). thumbnail: PNG (`thumbnail_png`). image: the bytes
        of the image file, if it is to be kept. supersedes: ids, as in `get`, of active edits to deactivate in the same
        change; undoing this edit activates them again. alone: refuse if another edit of the same question would be
        active as well, see `same_question`. request: if it has made an edit before, that edit is returned and nothing
        is stored.

        Raises `InvalidInputError` for what cannot be stored; `StoreError` before `bind`; `NotFoundError` if a
        superseded edit is not active; `OvertakenError` if other edits contradict `alone`; `ConflictError` for a request
        with another body than before. Nothing is stored then.
        """
        check_edit(edit)
        self._check_texts(edit)
        check_expert(expert)
        blobs: dict[BlobKind, bytes] = {"expert": expert}
        if thumbnail is not None:
            check_thumbnail(thumbnail)
            blobs["thumbnail"] = thumbnail
        if image is not None:
            check_image(image, edit.image_sha256)
            blobs["image"] = image
        if self._bound is None:
            raise StoreError(
                f"{self._database.name} was opened without naming its model, and an expert of another model would be "
                "useless. Call `bind` before adding edits."
            )
        with self._database.writing() as connection:
            if not self._is_bound:
                self._write_binding(connection, self._bound)
            stored = idempotency.made_by(connection, request)
            if stored is None:
                leaving = [self._active(connection, edit_id) for edit_id in dict.fromkeys(supersedes)]
                if alone:
                    _check_alone(connection, edit, {other.id for other in leaving})
                numbers = [other.number for other in leaving]
                edit_id = _unused_id(connection)
                digest = hashlib.sha256(expert).hexdigest()
                stored = writes.insert_new(connection, edit, edit_id, digest, self._bound, numbers)
                writes.insert_blobs(connection, stored.number, blobs)
                idempotency.remember(connection, request, stored.revision_added)
        self._is_bound = True
        return self._attached(stored)

    def remember(self, request: ChangeRequest, edit_id: str) -> None:
        """Answer a request with an edit that is there already, as if the request had made it. edit_id: as in `get`.

        Nothing changes if the request was carried out before. Raises as `made_by` does, and `NotFoundError`.
        """
        with self._database.writing() as connection:
            if idempotency.made_by(connection, request) is None:
                edit = queries.edit_of(connection, edit_id)
                idempotency.remember(connection, request, edit.revision_added)

    def undo(
        self, edit_id: str, *, author: str | None = None, note: str | None = None, request: ChangeRequest | None = None
    ) -> StoredEdit:
        """Deactivate an edit; the edit and its history stay. edit_id: as in `get`. request: as in `add`.

        Edits that it superseded become active again, unless something else happened to them since. Raises
        `NotFoundError` if there is no such edit, `EditStateError` if it is not active.
        """
        signature = self._signature(author, note)
        with self._database.writing() as connection:
            if (done := idempotency.made_by(connection, request)) is not None:
                return self._attached(done)
            edit = self._active(connection, edit_id)
            change = StateChange(writes.superseded_by(connection, edit), [edit.number])
            event = writes.make_change(connection, "undo", edit.id, signature, change)
            idempotency.remember(connection, request, event.revision)
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
        """Activate an undone edit; those that it superseded are deactivated again. edit_id, request: as in `undo`.

        alone: refuse if an edit that superseded it is active. Raises `NotFoundError` if there is no such edit,
        `EditStateError` if it is active, was purged, or contradicts `alone`.
        """
        signature = self._signature(author, note)
        with self._database.writing() as connection:
            if (done := idempotency.made_by(connection, request)) is not None:
                return self._attached(done)
            edit = queries.edit_of(connection, edit_id)
            if edit.is_active:
                raise EditStateError(f"The edit {edit.id!r} is active. There is nothing to redo.")
            if edit.purged_at is not None:
                raise EditPurgedError(f"The edit {edit.id!r} was purged, at {edit.purged_at}: make it again.")
            if alone and (successor := queries.successor_of(connection, edit)) is not None:
                raise EditStateError(
                    f"The edit {edit.id!r} was superseded: {successor.id!r} is active in its place. Undo that one."
                )
            change = StateChange([edit.number], writes.active_superseded(connection, edit))
            event = writes.make_change(connection, "redo", edit.id, signature, change)
            idempotency.remember(connection, request, event.revision)
        return self.get(edit.id)

    def purge(self, edit_id: str, *, author: str | None = None, note: str | None = None) -> StoredEdit:
        """Delete the content of an edit for good: texts, image, thumbnail, expert, author. edit_id: as in `get`.

        An active edit is deactivated as by `undo`. Its id, its times and a line in the history stay. The file is
        rewritten, so that the bytes are gone from it; purging the same edit again only rewrites it. Raises
        `NotFoundError` for an unknown id, `StoreError` if other processes hold the file open: the edit is purged then,
        but some bytes may be left.
        """
        signature = self._signature(author, note)
        with self._database.writing() as connection:
            edit = queries.edit_of(connection, edit_id)
            if edit.purged_at is None:
                change = NO_STATE_CHANGE
                if edit.is_active:
                    change = StateChange(writes.superseded_by(connection, edit), [edit.number])
                event = writes.make_change(connection, "purge", edit.id, signature, change)
                writes.erase(connection, edit, event)
        self._database.vacuum()
        return self.get(edit.id)

    # -- bundles -----------------------------------------------------------------------------------------

    def export_bundle(self, path: str | Path, *, whole: bool = True) -> BundleContents:
        """Write the edits to one file (see `bundle.py`) and return its records.

        whole: with undone edits and the history; otherwise only active edits. Raises `StoreError` if the file exists
        or cannot be written, or an edit is damaged.
        """
        with self._database.reading() as connection:
            return export_bundle(connection, whole, Path(path))

    def import_bundle(self, path: str | Path, *, on_conflict: OnConflict = "refuse") -> Imported:
        """Add the edits of a bundle, with their ids: all or none.

        An empty store takes over the history of a whole bundle. In another store each edit that is missing is a new
        change. An imported edit of the same question with the same answer as an active one supersedes it.

        on_conflict: what happens if an imported active edit has another answer than an active edit of the same
        question, here or in the bundle itself. "refuse" imports nothing. "supersede": later edits supersede earlier
        ones, imported ones those of the store, so that undoing them activates the earlier ones again; an empty store
        then takes the edits as new changes, without their history. "keep": all stay active.

        Raises `StoreError` if the bundle is damaged, belongs to another backbone or editor than this store (or than
        those given to `bind`), or has an id that the store has with other content; `ConflictError` for a contradiction
        that is refused.
        """
        if on_conflict not in get_args(OnConflict):
            raise InvalidInputError(f"on_conflict is {on_conflict!r}. Give one of {', '.join(get_args(OnConflict))}.")
        with open_bundle(Path(path)) as bundle:
            binding = bundle.contents.binding
            if binding is None:
                return Imported()
            for edit in bundle.contents.edits:
                self._check_texts(edit)
            if self._bound is not None:
                self._check_bundle(self._bound, binding)
            # Both before the first write creates the file.
            bundle.check()
            with self._database.reading() as connection:
                self._check_bundle(queries.binding_of(connection) or binding, binding)
                importing.plan_import(connection, bundle, on_conflict)
            with self._database.writing() as connection:
                found = queries.binding_of(connection)
                if found is None:
                    writes.write_binding(connection, binding)
                else:
                    self._check_bundle(found, binding)
                return importing.import_bundle(connection, bundle, on_conflict)

    # -- inside ------------------------------------------------------------------------------------------

    def _write_binding(self, connection: Connection, binding: Binding) -> None:
        found = queries.binding_of(connection)
        if found is None:
            writes.write_binding(connection, binding)
        self._check_binding(found, binding)

    def _check_binding(self, found: Binding | None, wanted: Binding) -> None:
        if found is not None and not found.matches(wanted):
            raise StoreError(
                f"{self._database.name} belongs to {found}; loaded is {wanted}. Load that model "
                "and editor (with --editor-path if it is of a folder of yours), or give another edits file."
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
                "There is nothing to undo."
            )
        return edit


def _check_alone(connection: Connection, edit: NewEdit, leaving: set[str]) -> None:
    found = queries.same_question(connection, edit.image_sha256, edit.prompt)
    if others := [other.id for other in found if other.id not in leaving]:
        raise OvertakenError(
            f"Edits of the same question became active meanwhile: {', '.join(others)}. Nothing was stored; try again."
        )


def _unused_id(connection: Connection) -> str:
    while True:
        edit_id = secrets.token_hex(_ID_BYTES)
        if not queries.is_taken(connection, edit_id):
            return edit_id
