"""What the store returns: edits, lines of the history, changes between revisions, pages of edits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Literal, TypeVar

from ..errors import StoreError
from .evidence import Evidence

EventKind = Literal["edit", "undo", "redo", "supersede", "purge"]
"""What can happen to an edit. "supersede" is a new edit that deactivates others in the same change."""

BlobKind = Literal["expert", "thumbnail", "image"]
"""What is stored apart from the row of an edit."""

State = Literal["active", "undone", "all"]
"""Which edits to list: the active ones, those that can be redone, or all that were ever made, purged ones included."""

_Read = TypeVar("_Read")


@dataclass(frozen=True, kw_only=True)
class NewEdit:
    """An edit that was made and is about to be stored.

    answer: the requested answer. answer_before, answer_after: the answers of the model without and with the edit.
    image_sha256, image_name: digest and file name of the image; its folder is not stored. author, note: who made the
    edit, and why.
    """

    prompt: str
    answer: str
    editor: str
    answer_before: str | None = None
    answer_after: str | None = None
    milliseconds: float = 0.0
    refine_steps: int = 0
    subject: str | None = None
    relation: str | None = None
    image_sha256: str | None = None
    image_name: str | None = None
    author: str | None = None
    note: str | None = None
    evidence: Evidence | None = None


@dataclass(frozen=True, kw_only=True)
class StoredEdit(NewEdit):
    """A stored edit. `expert` and `thumbnail` are read from the store when they are first used."""

    id: str
    number: int
    created_at: str
    """ISO 8601, UTC."""
    expert_digest: str | None = None
    """SHA-256 of the stored bytes of the expert; None if the edit was purged."""
    backbone_digest: str = ""
    editor_digest: str = ""
    revision_added: int = 0
    revision_removed: int | None = None
    """The revision that last deactivated the edit; None while it is active."""
    undone_at: str | None = None
    """ISO 8601, UTC; None while the edit is active."""
    purged_at: str | None = None
    """ISO 8601, UTC; a purged edit has no texts, no image and no expert."""

    # Not fields: `dataclasses.asdict`, `repr`, digests and comparisons must not see an open file or a replay mark.
    _is_replay: ClassVar[bool] = False
    _read_expert: ClassVar[Callable[[str], bytes] | None] = None
    _read_thumbnail: ClassVar[Callable[[str], bytes | None] | None] = None

    def attached(
        self, read_expert: Callable[[str], bytes], read_thumbnail: Callable[[str], bytes | None]
    ) -> StoredEdit:
        """This edit, with functions that read its expert and its thumbnail by its id."""
        object.__setattr__(self, "_read_expert", read_expert)
        object.__setattr__(self, "_read_thumbnail", read_thumbnail)
        return self

    def as_replay(self) -> StoredEdit:
        """This edit, marked as the result of an earlier request; see `is_replay`."""
        object.__setattr__(self, "_is_replay", True)
        return self

    @property
    def is_replay(self) -> bool:
        """Whether a `ChangeRequest` had made this change before, so that nothing happened this time."""
        return self._is_replay

    @property
    def is_active(self) -> bool:
        """Whether the edit changes answers, that is, is not undone."""
        return self.undone_at is None

    @cached_property
    def expert(self) -> bytes:
        """The expert as safetensors. Raises `StoreError` if it is damaged or the store is closed."""
        return self._reader(self._read_expert)(self.id)

    @cached_property
    def thumbnail(self) -> bytes | None:
        """The image as PNG, at most `THUMBNAIL_PIXELS` wide and high, or None. Raises as `expert` does."""
        return self._reader(self._read_thumbnail)(self.id)

    def _reader(self, read: Callable[[str], _Read] | None) -> Callable[[str], _Read]:
        if read is None:
            raise StoreError(f"The edit {self.id!r} is a copy without its file. Get it from an EditStore again.")
        return read


@dataclass(frozen=True, slots=True)
class Event:
    """One line of the history: a change, numbered by its revision."""

    revision: int
    at: str
    """ISO 8601, UTC."""
    kind: EventKind
    edit_id: str
    author: str | None = None
    note: str | None = None


@dataclass(frozen=True, slots=True)
class Changes:
    """The edits that a replica has to activate and deactivate to get from one revision to another.

    Every edit that changed in between is listed by its state at the end. Applying the changes is therefore correct
    also for a replica that has applied some of them: edits that it has already, or lacks already, are skipped.
    """

    revision: int
    """The revision of the replica after the changes."""
    added: tuple[str, ...]
    """Ids of the changed edits that are active, in the order they were made."""
    removed: tuple[str, ...]
    """Ids of the changed edits that are not active."""

    def __bool__(self) -> bool:
        return bool(self.added or self.removed)


@dataclass(frozen=True, slots=True)
class EditPage:
    """Some edits, in the requested order."""

    edits: tuple[StoredEdit, ...]
    with_thumbnail: frozenset[str]
    """Ids of those that have a thumbnail."""
    has_more: bool


@dataclass(frozen=True, slots=True)
class Binding:
    """The backbone and the editor that a store belongs to: names to show, digests to compare."""

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
        """Whether both digests are equal; names do not matter."""
        return (self.backbone_digest, self.editor_digest) == (other.backbone_digest, other.editor_digest)
