"""The reading half of the store: edits, pages of edits, experts, images, history, verification."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Final, Self

from sqlalchemy import func, select

from ..errors import NotFoundError, StoreError
from ..images import image_digest, open_image
from . import idempotency, queries
from .contradictions import Contradiction, active_contradictions
from .database import Database
from .idempotency import ChangeRequest
from .records import Binding, BlobKind, Changes, EditPage, Event, State, StoredEdit
from .schema import EDITS
from .verify import blob_problem, find_problems

_EXPERTS_PER_READ: Final = 64
_RECOVERY: Final = "Undo that edit and make it again, or go back to a backup."


class EditReader:
    """The reading half of `EditStore`. Each method reads one consistent state; several threads may share a reader."""

    def __init__(self, database: Database):
        self._database = database

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
        """Number of active edits."""
        with self._database.reading() as connection:
            return connection.execute(select(func.count()).select_from(EDITS).where(queries.active())).scalar_one()

    def __bool__(self) -> bool:
        """True, also for a store without edits."""
        return True

    @property
    def binding(self) -> Binding | None:
        """The backbone and the editor that the store belongs to; None before the first edit."""
        with self._database.reading() as connection:
            return queries.binding_of(connection)

    def get(self, edit_id: str) -> StoredEdit:
        """The edit with this id, active or not. A prefix of the id suffices if no other id begins with it.

        Raises `NotFoundError` for an unknown id, `InvalidInputError` for a prefix that several edits share.
        """
        with self._database.reading() as connection:
            return self._attached(queries.edit_of(connection, edit_id))

    def made_by(self, request: ChangeRequest) -> StoredEdit | None:
        """The edit right after the change that this request made; None if it made none, or its record has expired.

        Raises `ConflictError` if the request came with another body, `EditPurgedError` if the edit was purged.
        """
        with self._database.reading() as connection:
            found = idempotency.made_by(connection, request)
        return None if found is None else self._attached(found)

    def same_question(self, image_sha256: str | None, prompt: str) -> tuple[StoredEdit, ...]:
        """The active edits of this image (None: without an image) and this prompt, compared by `normalize_prompt`."""
        with self._database.reading() as connection:
            return tuple(map(self._attached, queries.same_question(connection, image_sha256, prompt)))

    def page(
        self,
        state: State = "active",
        *,
        newest_first: bool = False,
        after: str | None = None,
        limit: int = 100,
        search: str | None = None,
    ) -> EditPage:
        """At most `limit` edits after the one with the full id `after`, in the order they were made or in reverse.

        search: only those with this text in their prompt, answer, author or note, in upper or lower case. Without it,
        only the rows that are shown are read. Raises as `queries.page_of` does.
        """
        with self._database.reading() as connection:
            page = queries.page_of(
                connection, state, newest_first=newest_first, after=after, limit=limit, search=search
            )
        for edit in page.edits:
            self._attached(edit)
        return page

    def one(self, edit_id: str) -> EditPage:
        """The edit with exactly this id, as a page; reads no other edit. Raises `NotFoundError`."""
        with self._database.reading() as connection:
            found = queries.edit_named(connection, edit_id)
            return EditPage((self._attached(found),), queries.thumbnails_among(connection, [found]), False)

    def expert(self, edit_id: str) -> bytes:
        """The expert of an edit as safetensors. Raises `NotFoundError`, and `StoreError` if it is damaged."""
        found = self._blob(edit_id, "expert")
        if found is None:
            raise self._no_expert(edit_id)
        return found

    def thumbnail(self, edit_id: str) -> bytes | None:
        """The thumbnail of an edit as PNG, or None. Raises as `expert` does."""
        return self._blob(edit_id, "thumbnail")

    def image(self, edit_id: str) -> bytes | None:
        """The image of an edit as it was stored, or None if it was not. Raises as `expert` does."""
        return self._blob(edit_id, "image")

    def whole_image(self, edit: StoredEdit) -> bytes | None:
        """The image of an edit pixel by pixel: as it was stored, or its thumbnail if that is the whole image.

        None if only a smaller copy was kept, or nothing, or if the edit has no image. Raises as `expert` does.
        """
        if edit.image_sha256 is None:
            return None
        if (image := self.image(edit.id)) is not None:
            return image
        thumbnail = self.thumbnail(edit.id)
        is_whole = thumbnail is not None and image_digest(open_image(thumbnail)) == edit.image_sha256
        return thumbnail if is_whole else None

    def active_experts(self, at: int | None = None) -> Iterator[tuple[str, bytes]]:
        """(edit id, expert as safetensors) of every active edit, in the order they were made; few in memory at a time.

        at: those active after this revision instead of now; edits purged since are left out. The call decides which
        edits are read, also if the store changes during the iteration. Raises `InvalidInputError` for a revision that
        does not exist, `StoreError` if an expert is damaged.
        """
        with self._database.reading() as connection:
            if at is not None:
                queries.check_revision(connection, at)
            statement = select(EDITS.c.number, EDITS.c.id).where(queries.active(at)).order_by(EDITS.c.number)
            wanted = [(number, edit_id) for number, edit_id in connection.execute(statement)]
        return self._experts(wanted)

    def experts(self, edit_ids: Sequence[str]) -> Iterator[tuple[str, bytes]]:
        """(edit id, expert as safetensors) of the edits with these full ids, read as by `active_experts`."""
        with self._database.reading() as connection:
            numbers = queries.numbers_of(connection, edit_ids)
        for edit_id in edit_ids:
            if edit_id not in numbers:
                raise NotFoundError(f"There is no edit {edit_id!r} in {self.location!r}.")
        return self._experts([(numbers[edit_id], edit_id) for edit_id in edit_ids])

    def numbers(self, edit_ids: Sequence[str]) -> dict[str, int]:
        """The numbers of the edits with these full ids, in the order they were made; unknown ids are left out."""
        with self._database.reading() as connection:
            return queries.numbers_of(connection, edit_ids)

    def latest_revision(self) -> int:
        """The revision of the last change; 0 before the first."""
        with self._database.reading() as connection:
            return queries.latest_revision(connection)

    def changes_since(self, revision: int, until: int | None = None) -> Changes:
        """The edits that a replica loaded at `revision` has to activate and deactivate.

        until: the revision that the replica shall have then; by default the latest. Cheap if nothing changed. Raises
        `InvalidInputError` for a revision that does not exist.
        """
        with self._database.reading() as connection:
            return queries.changes_since(connection, revision, until)

    def history(self, edit_id: str | None = None) -> tuple[Event, ...]:
        """All changes of the edits, or of one edit, oldest first.

        Includes events of other edits that superseded or restored this one.
        """
        with self._database.reading() as connection:
            chosen = () if edit_id is None else (queries.events_affecting(queries.resolve(connection, edit_id)),)
            return tuple(queries.events_where(connection, *chosen))

    def verify(self) -> tuple[str, ...]:
        """What is wrong with the store, one sentence each; empty if all is well. Every digest is computed again."""
        with self._database.reading() as connection:
            return find_problems(connection, self._database.structure_problems)

    def contradictions(self) -> tuple[Contradiction, ...]:
        """The questions that have active edits with different answers; they are no damage."""
        with self._database.reading() as connection:
            return active_contradictions(connection)

    def damage(self, edit_id: str, kind: BlobKind, problem: str) -> StoreError:
        """The error for an expert or image that cannot be used. Raise it if stored bytes cannot be converted."""
        return StoreError(f"The {kind} of edit {edit_id!r} in {self.location!r} is damaged: {problem}. {_RECOVERY}")

    # The last public method: below its definition, `list` means this method.
    def list(self, include_undone: bool = False, *, at: int | None = None) -> tuple[StoredEdit, ...]:
        """The active edits, in the order they were made; include_undone: and those that are not active.

        at: those active after this revision instead of now; edits purged since are left out.
        """
        with self._database.reading() as connection:
            if at is not None:
                queries.check_revision(connection, at)
            if include_undone:
                chosen = () if at is None else (EDITS.c.revision_added <= at,)
            else:
                chosen = (queries.active(at),)
            return tuple(self._attached(edit) for edit in queries.edits_where(connection, *chosen))

    # -- inside ------------------------------------------------------------------------------------------

    def _attached(self, edit: StoredEdit) -> StoredEdit:
        return edit.attached(self.expert, self.thumbnail)

    def _experts(self, wanted: Sequence[tuple[int, str]]) -> Iterator[tuple[str, bytes]]:
        for start in range(0, len(wanted), _EXPERTS_PER_READ):
            batch = wanted[start : start + _EXPERTS_PER_READ]
            with self._database.reading() as connection:
                blobs = queries.expert_blobs(connection, [number for number, _ in batch])
            for number, edit_id in batch:
                if number in blobs:
                    yield edit_id, self._checked(edit_id, "expert", *blobs[number])
                elif self.get(edit_id).purged_at is None:  # Otherwise it was purged during the iteration.
                    raise self._no_expert(edit_id)

    def _blob(self, edit_id: str, kind: BlobKind) -> bytes | None:
        with self._database.reading() as connection:
            found = queries.blob_of(connection, queries.resolve(connection, edit_id), kind)
        return None if found is None else self._checked(edit_id, kind, *found)

    def _checked(self, edit_id: str, kind: BlobKind, sha256: str, data: bytes) -> bytes:
        if (problem := blob_problem(kind, sha256, data)) is not None:
            raise self.damage(edit_id, kind, problem)
        return data

    def _no_expert(self, edit_id: str) -> StoreError:
        edit = self.get(edit_id)
        if edit.purged_at is not None:
            return StoreError(f"The edit {edit.id!r} was purged, at {edit.purged_at}: its expert is gone for good.")
        return StoreError(f"The edit {edit.id!r} in {self.location!r} has no expert. {_RECOVERY}")
