"""Requests that may come twice: which change each made, so that it is made once, by whatever process."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

from sqlalchemy import Connection, delete, insert, select

from ..errors import ConflictError, EditPurgedError, InvalidInputError
from .queries import edits_where, events_where
from .records import Event, StoredEdit
from .schema import EDITS, EVENTS, REQUESTS

LONGEST_KEY = 255


@dataclass(frozen=True, slots=True)
class ChangeRequest:
    """A request for a change, by the key that its sender gave it. Only digests of it are stored.

    owner: who sent it, and for what; keys of different owners have nothing to do with one another. body: what was
    asked for. kept_changes: for how many further changes of the store the request is remembered.

    Raises `InvalidInputError` for a key that is empty or too long.
    """

    owner: str
    key: str
    body: bytes
    kept_changes: int = 10_000

    def __post_init__(self) -> None:
        if not 0 < len(self.key) <= LONGEST_KEY:
            raise InvalidInputError(
                f"The Idempotency-Key has {len(self.key)} characters; 1 to {LONGEST_KEY} are taken."
            )

    @property
    def sha256(self) -> str:
        """What it is found by."""
        return _sha256(f"{len(self.owner)}:{self.owner}{self.key}".encode("utf-8", "surrogatepass"))

    @property
    def body_sha256(self) -> str:
        """What tells it from another with the same key."""
        return _sha256(self.body)

    def check_same(self, body_sha256: str) -> None:
        """Raise `ConflictError` where the earlier request with this key had another body."""
        if body_sha256 != self.body_sha256:
            raise ConflictError("This Idempotency-Key came before with another body. Take a new key for a new request.")


def made_by(connection: Connection, request: ChangeRequest | None) -> StoredEdit | None:
    """The edit as it stood after the change that this request made, marked as a replay; None where it made none yet.

    Raises `ConflictError` where the key came with another body, `EditPurgedError` where the edit was purged since.
    """
    if request is None:
        return None
    statement = select(REQUESTS.c.body_sha256, REQUESTS.c.revision).where(REQUESTS.c.request_sha256 == request.sha256)
    row = connection.execute(statement).first()
    if row is None:
        return None
    (event,) = events_where(connection, EVENTS.c.revision == row.revision)
    (edit,) = edits_where(connection, EDITS.c.id == event.edit_id)
    if edit.purged_at is not None:
        raise EditPurgedError(f"The edit {edit.id!r} of this request was purged, at {edit.purged_at}.")
    request.check_same(row.body_sha256)
    return _after(edit, event).as_replay()


def remember(connection: Connection, request: ChangeRequest | None, revision: int) -> None:
    """Note that this request made this change, and forget those that are old enough."""
    if request is None:
        return
    row = {"request_sha256": request.sha256, "body_sha256": request.body_sha256, "revision": revision}
    connection.execute(insert(REQUESTS), row)
    connection.execute(delete(REQUESTS).where(REQUESTS.c.revision <= revision - request.kept_changes))


def _after(edit: StoredEdit, event: Event) -> StoredEdit:
    if event.kind == "undo":
        return replace(edit, revision_removed=event.revision, undone_at=event.at)
    return replace(edit, revision_removed=None, undone_at=None)


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
