"""What can be asked of an edits file: edits, pages of them, experts, images, history, and whether all is well."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Final, Self

from sqlalchemy import func, select

from ..errors import NotFoundError, StoreError
from ..experts.expert import LowRankExpert, expert_from_bytes
from . import idempotency as requests
from . import paging, queries
from .database import Database
from .idempotency import ChangeRequest
from .paging import EditPage, State
from .records import Binding, BlobKind, Changes, Event, StoredEdit
from .schema import EDITS
from .verify import digest_problem, find_problems

_EXPERTS_AT_A_TIME: Final = 64
_RECOVERY: Final = "Undo that edit and make it again, or go back to a backup."


class EditReader:
    """The reading half of `EditStore`. Each method sees one state of the edits; several threads may share it."""

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
        """How many edits are in force."""
        with self._database.reading() as connection:
            return connection.execute(select(func.count()).select_from(EDITS).where(queries.active())).scalar_one()

    def __bool__(self) -> bool:
        """True: a store without edits is a store all the same."""
        return True

    @property
    def binding(self) -> Binding | None:
        """The backbone and editor that the store belongs to; None before the first edit."""
        with self._database.reading() as connection:
            return queries.binding_of(connection)

    def get(self, edit_id: str) -> StoredEdit:
        """The edit of this id, undone or not; the first characters do where no other id begins with them.

        Raises `NotFoundError` for an unknown id, `InvalidInputError` for a beginning that several share.
        """
        with self._database.reading() as connection:
            return self._attached(queries.edit_of(connection, edit_id))

    def made_by(self, request: ChangeRequest) -> StoredEdit | None:
        """The edit as it stood after the change that this request made; None where it made none, or it is forgotten.

        Raises `ConflictError` where the request came with another body, `EditPurgedError` where the edit was purged.
        """
        with self._database.reading() as connection:
            found = requests.made_by(connection, request)
        return None if found is None else self._attached(found)

    def same_question(self, image_sha256: str | None, prompt: str) -> tuple[StoredEdit, ...]:
        """The edits in force of this image, or without one, and this prompt up to spaces."""
        with self._database.reading() as connection:
            return tuple(map(self._attached, queries.same_question(connection, image_sha256, prompt)))

    def page(
        self, state: State = "active", *, newest_first: bool = False, after: str | None = None, limit: int = 100
    ) -> EditPage:
        """At most `limit` edits behind that of the whole id `after`, in the order they were made or against it.

        No more is read than is shown. Raises as `paging.page_of` does.
        """
        with self._database.reading() as connection:
            page = paging.page_of(connection, state, newest_first=newest_first, after=after, limit=limit)
        for edit in page.edits:
            self._attached(edit)
        return page

    def one(self, edit_id: str) -> EditPage:
        """The edit of exactly this id, as a page. Raises `NotFoundError`; cheap, for it looks at no other edit."""
        with self._database.reading() as connection:
            found = paging.edit_named(connection, edit_id)
            return EditPage((self._attached(found),), paging.thumbnails_among(connection, [found]), False)

    def expert(self, edit_id: str) -> LowRankExpert:
        """The expert of the edit of this id. Raises `NotFoundError`, and `StoreError` where it is damaged."""
        found = self._blob(edit_id, "expert")
        if found is None:
            raise self._no_expert(edit_id)
        return self._read_expert(edit_id, *found)

    def thumbnail(self, edit_id: str) -> bytes | None:
        """The thumbnail of the edit of this id as PNG, if it has one. Raises as `expert` does."""
        return self._file(edit_id, "thumbnail")

    def image(self, edit_id: str) -> bytes | None:
        """The file of the image of the edit of this id, if it was kept. Raises as `expert` does."""
        return self._file(edit_id, "image")

    def active_experts(self, at: int | None = None) -> Iterator[tuple[str, LowRankExpert]]:
        """(edit id, expert) of every edit in force, in the order they were made; few in memory at a time.

        at: those in force after this revision instead of now; edits purged since are left out. Which edits are meant
        is settled at the call, also where the file changes on the way. Raises `InvalidInputError` for a revision
        that there is not, `StoreError` where an expert is damaged.
        """
        with self._database.reading() as connection:
            if at is not None:
                queries.check_revision(connection, at)
            statement = select(EDITS.c.number, EDITS.c.id).where(queries.active(at)).order_by(EDITS.c.number)
            wanted = [(number, edit_id) for number, edit_id in connection.execute(statement)]
        return self._experts(wanted)

    def experts(self, edit_ids: Sequence[str]) -> Iterator[tuple[str, LowRankExpert]]:
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
        """Everything that ever happened to the edits, or to one, oldest first.

        To one there also happened what is told of another: that it was superseded, or came back when that was undone.
        """
        with self._database.reading() as connection:
            chosen = () if edit_id is None else (queries.happened_to(queries.resolve(connection, edit_id)),)
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
                chosen = (queries.active(at),)
            return tuple(self._attached(edit) for edit in queries.edits_where(connection, *chosen))

    # -- inside ------------------------------------------------------------------------------------------

    def _attached(self, edit: StoredEdit) -> StoredEdit:
        return edit.attached(self.expert, self.thumbnail)

    def _experts(self, wanted: Sequence[tuple[int, str]]) -> Iterator[tuple[str, LowRankExpert]]:
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

    def _read_expert(self, edit_id: str, sha256: str, data: bytes) -> LowRankExpert:
        if (problem := digest_problem(sha256, data)) is not None:
            raise self._damaged(edit_id, "expert", problem)
        try:
            return expert_from_bytes(data, LowRankExpert)
        except ValueError as error:
            raise self._damaged(edit_id, "expert", str(error)) from error

    def _damaged(self, edit_id: str, kind: BlobKind, problem: str) -> StoreError:
        return StoreError(f"The {kind} of edit {edit_id!r} in {self.location!r} is damaged: {problem}. {_RECOVERY}")

    def _no_expert(self, edit_id: str) -> StoreError:
        edit = self.get(edit_id)
        if edit.purged_at is not None:
            return StoreError(f"The edit {edit.id!r} was purged, at {edit.purged_at}: its expert is gone for good.")
        return StoreError(f"The edit {edit.id!r} in {self.location!r} has no expert. {_RECOVERY}")
