"""Looking at some edits of a file that may hold very many: page by page, and one by its whole id."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from sqlalchemy import ColumnElement, Connection, select, true

from ..errors import InvalidInputError, NotFoundError
from . import queries
from .records import StoredEdit
from .schema import BLOBS, EDITS

State = Literal["active", "undone", "all"]
"""Which edits: those in force, those that can be redone, or every one there ever was, purged ones included."""

MOST_ON_A_PAGE: Final = 500


@dataclass(frozen=True, slots=True)
class EditPage:
    """Some edits in the order asked for."""

    edits: tuple[StoredEdit, ...]
    with_thumbnail: frozenset[str]
    """Ids of those that have a thumbnail."""
    has_more: bool


def page_of(
    connection: Connection, state: State = "active", *, newest_first: bool = False, after: str | None, limit: int
) -> EditPage:
    """At most `limit` edits behind the one whose whole id is `after`, which may be in any state.

    Whatever is in the file, no more rows are read than are shown: each state has its index. Raises `NotFoundError` for
    an unknown id, `InvalidInputError` for a limit outside 1 to `MOST_ON_A_PAGE`.
    """
    if not 1 <= limit <= MOST_ON_A_PAGE:
        raise InvalidInputError(f"A page of {limit} edits was asked for; 1 to {MOST_ON_A_PAGE} are shown at once.")
    number = EDITS.c.number
    statement = select(*queries.EDIT_COLUMNS).where(_CONDITIONS[state])
    if after is not None:
        place = _number_of(connection, after)
        statement = statement.where(number < place if newest_first else number > place)
    statement = statement.order_by(number.desc() if newest_first else number).limit(limit + 1)
    found = [queries.edit_of_row(row) for row in connection.execute(statement)]
    shown = tuple(found[:limit])
    return EditPage(shown, thumbnails_among(connection, shown), len(found) > limit)


def edit_named(connection: Connection, edit_id: str) -> StoredEdit:
    """The edit of exactly this id; other edits are not looked at. Raises `NotFoundError`."""
    if queries.may_be_id(edit_id):
        for found in queries.edits_where(connection, EDITS.c.id == edit_id):
            return found
    raise _unknown(edit_id)


def thumbnails_among(connection: Connection, edits: Sequence[StoredEdit]) -> frozenset[str]:
    """Ids of those of these edits that have a thumbnail."""
    ids = {edit.number: edit.id for edit in edits}
    statement = select(BLOBS.c.edit_number).where(BLOBS.c.edit_number.in_(list(ids)), BLOBS.c.kind == "thumbnail")
    return frozenset(ids[number] for number in connection.execute(statement).scalars())


def _number_of(connection: Connection, edit_id: str) -> int:
    found = queries.numbers_of(connection, [edit_id])
    if edit_id not in found:
        raise _unknown(edit_id)
    return found[edit_id]


def _unknown(edit_id: str) -> NotFoundError:
    return NotFoundError(f"There is no edit {edit_id!r}. List the edits to see their ids.")


_CONDITIONS: Final[dict[State, ColumnElement[bool]]] = {
    "active": queries.active(),
    "undone": EDITS.c.revision_removed.is_not(None) & EDITS.c.purged_at.is_(None),
    "all": true(),
}
