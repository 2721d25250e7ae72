"""Idempotent requests: the change that each request made is recorded, so that no process makes it twice."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Final

from sqlalchemy import Connection, delete, insert, select

from ..errors import ConflictError, EditPurgedError, InvalidInputError
from .queries import edits_where, events_where, latest_revision
from .records import Event, StoredEdit
from .schema import EDITS, EVENTS, REQUESTS

LONGEST_KEY: Final = 255
"""Longest idempotency key, in characters."""


@dataclass(frozen=True, slots=True)
class ChangeRequest:
    """A request for a change, identified by a key that its sender chose. Only digests of it are stored.

    owner: the sender and the purpose; equal keys of different owners are different requests. body: the content of the
    request. kept_changes: the number of later changes of the store for which the request is remembered; None: for good.

    Raises `InvalidInputError` for a key that is empty or too long.
    """

    owner: str
    key: str
    body: bytes
    kept_changes: int | None = 10_000

    def __post_init__(self) -> None:
        if not 0 < len(self.key) <= LONGEST_KEY:
            raise InvalidInputError(
                f"The Idempotency-Key has {len(self.key)} characters; 1 to {LONGEST_KEY} are allowed."
            )

    @property
    def sha256(self) -> str:
        """The digest of owner and key, by which the request is found."""
        return _sha256(f"{len(self.owner)}:{self.owner}{self.key}".encode("utf-8", "surrogatepass"))

    @property
    def body_sha256(self) -> str:
        """The digest of the body."""
        return _sha256(self.body)

    def check_same(self, body_sha256: str) -> None:
        """Raise `ConflictError` if the earlier request with this key had another body."""
        if body_sha256 != self.body_sha256:
            raise ConflictError("This Idempotency-Key came before with another body. Use a new key for a new request.")


def made_by(connection: Connection, request: ChangeRequest | None) -> StoredEdit | None:
    """The edit right after the change that this request made, marked as a replay; None if it made none yet.

    Raises `ConflictError` if the key came with another body, `EditPurgedError` if the edit was purged since.
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
    """Record that this request made this change, and delete the requests that have expired."""
    if request is None:
        return
    row = {
        "request_sha256": request.sha256,
        "body_sha256": request.body_sha256,
        "revision": revision,
        "kept_until": None if request.kept_changes is None else revision + request.kept_changes,
    }
    connection.execute(insert(REQUESTS), row)
    connection.execute(delete(REQUESTS).where(REQUESTS.c.kept_until <= latest_revision(connection)))


def _after(edit: StoredEdit, event: Event) -> StoredEdit:
    if event.kind == "undo":
        return replace(edit, revision_removed=event.revision, undone_at=event.at)
    return replace(edit, revision_removed=None, undone_at=None)


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
