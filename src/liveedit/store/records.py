"""What the edits file says of one edit, before and after it is stored, and the line in the history."""

from __future__ import annotations

import hashlib
import io
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import PureWindowsPath
from typing import ClassVar, Literal, TypeVar

from PIL import Image, UnidentifiedImageError

from ..errors import ImageError, InvalidInputError, StoreError
from ..experts.expert import LowRankExpert
from ..images import image_digest, open_image
from .evidence import Evidence, evidence_to_json

THUMBNAIL_PIXELS = 128
"""The longest side of a stored image, in pixels: enough to recognise it, too little to reuse it."""

EventKind = Literal["edit", "undo", "redo", "supersede", "purge"]
"""What can happen to an edit. "supersede" is an edit that takes others out of force in the same change."""

BlobKind = Literal["expert", "thumbnail", "image"]
"""What is kept apart from an edit's row."""

_Read = TypeVar("_Read")

_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True)
class NewEdit:
    """An edit that was made and is about to be stored.

    `answer` is what was asked for; `answer_before` and `answer_after` are what the model said. Of the image
    only the digest and the file's name are kept, never its folder. `author` and `note`: who made the edit, and why.
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
    """An edit as it stands in the file. `expert` and `thumbnail` are read when first asked for."""

    id: str
    number: int
    created_at: str
    """ISO 8601, UTC."""
    expert_digest: str | None = None
    """`Expert.digest`; None where the edit was purged."""
    backbone_digest: str = ""
    editor_digest: str = ""
    revision_added: int = 0
    revision_removed: int | None = None
    """The revision that took the edit out of force last; None while it is in force."""
    undone_at: str | None = None
    """ISO 8601, UTC; None while the edit is in force."""
    purged_at: str | None = None
    """ISO 8601, UTC; of a purged edit the texts, the image and the expert are gone."""

    # Not fields: an open file, and how the edit was come by, have no place in `dataclasses.asdict`, `repr`, a digest or
    # a comparison.
    _is_replay: ClassVar[bool] = False
    _read_expert: ClassVar[Callable[[str], LowRankExpert] | None] = None
    _read_thumbnail: ClassVar[Callable[[str], bytes | None] | None] = None

    def attached(
        self, read_expert: Callable[[str], LowRankExpert], read_thumbnail: Callable[[str], bytes | None]
    ) -> StoredEdit:
        """This edit, told where to read its expert and its thumbnail."""
        object.__setattr__(self, "_read_expert", read_expert)
        object.__setattr__(self, "_read_thumbnail", read_thumbnail)
        return self

    def as_replay(self) -> StoredEdit:
        """This edit, marked as what an earlier request did; see `is_replay`."""
        object.__setattr__(self, "_is_replay", True)
        return self

    @property
    def is_replay(self) -> bool:
        """Whether this was returned for a `ChangeRequest` that had made its change before, so that nothing happened."""
        return self._is_replay

    @property
    def is_active(self) -> bool:
        """Whether the edit is in force, that is, not undone."""
        return self.undone_at is None

    @cached_property
    def expert(self) -> LowRankExpert:
        """The edit's parameters. Raises `StoreError` where they are damaged or the file is closed."""
        return self._reader(self._read_expert)(self.id)

    @cached_property
    def thumbnail(self) -> bytes | None:
        """The image as PNG, at most `THUMBNAIL_PIXELS` wide and high, if there is one. Raises alike."""
        return self._reader(self._read_thumbnail)(self.id)

    def _reader(self, read: Callable[[str], _Read] | None) -> Callable[[str], _Read]:
        if read is None:
            raise StoreError(f"The edit {self.id!r} is a copy without its file. Get it from an EditStore again.")
        return read


@dataclass(frozen=True, slots=True)
class Event:
    """One line of the history, which is only ever appended to: a change, numbered by its revision."""

    revision: int
    at: str
    """ISO 8601, UTC."""
    kind: EventKind
    edit_id: str
    author: str | None = None
    note: str | None = None


@dataclass(frozen=True, slots=True)
class Changes:
    """The edits that a replica has to put in and take out to get from one revision to another.

    Both name every edit that changed on the way by how it stands at the end, so that applying them is right also for
    a replica that was ahead in part: what is there already stays, what is gone already is no matter.
    """

    revision: int
    """The revision that the replica is at afterwards."""
    added: tuple[str, ...]
    """Ids of those in force, in the order they were made."""
    removed: tuple[str, ...]
    """Ids of those out of force."""

    def __bool__(self) -> bool:
        return bool(self.added or self.removed)


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


def thumbnail_png(image: Image.Image) -> bytes:
    """An image as PNG, scaled down to at most `THUMBNAIL_PIXELS` wide and high, without metadata."""
    small = image.convert("RGB")
    small.thumbnail((THUMBNAIL_PIXELS, THUMBNAIL_PIXELS))
    return image_png(small)


def image_png(image: Image.Image) -> bytes:
    """An image as PNG, whole and without metadata."""
    bare = image.convert("RGB")
    bare.info = {}
    stream = io.BytesIO()
    bare.save(stream, format="PNG", optimize=True)
    return stream.getvalue()


def question_digest(image_sha256: str | None, prompt: str) -> str:
    """What two edits of the same fact share: the image, or that there is none, and the prompt up to spaces.

    Case counts: to a model, capitals are other tokens, and an edit in them may not reach the question in small letters.
    It is stored with each edit: another definition takes another layout.
    """
    asked = " ".join(prompt.split())
    return hashlib.sha256(f"{image_sha256 or ''}:{asked}".encode()).hexdigest()


def check_edit(edit: NewEdit) -> None:
    """Raise `InvalidInputError` where a field cannot be stored."""
    for name, text in vars(edit).items():
        if isinstance(text, str):
            check_text(f"An edit's {name}", text)
    for name in ("prompt", "answer", "editor"):
        if not getattr(edit, name):
            raise InvalidInputError(f"An edit's {name} is empty. Give some text.")
    if not (math.isfinite(edit.milliseconds) and edit.milliseconds >= 0):
        raise InvalidInputError(f"An edit took {edit.milliseconds} milliseconds. Give a number from 0 up.")
    if edit.evidence is not None:
        evidence_to_json(edit.evidence)
    if edit.refine_steps < 0:
        raise InvalidInputError(f"An edit took {edit.refine_steps} refine steps. Give a number from 0 up.")
    if edit.image_sha256 is not None and not _SHA256.fullmatch(edit.image_sha256):
        raise InvalidInputError(f"The image's digest is {edit.image_sha256!r}. Give 64 lower-case hexadecimal digits.")
    # The Windows reading of a path splits at both kinds of slash.
    if edit.image_name is not None and PureWindowsPath(edit.image_name).name != edit.image_name:
        raise InvalidInputError(
            f"The image's name is {edit.image_name!r}. Give the file name only: folders are not stored."
        )


def check_thumbnail(thumbnail: bytes) -> None:
    """Raise `ImageError` unless this is a PNG within the size of a thumbnail."""
    advice = "Make one with `thumbnail_png`."
    try:
        with Image.open(io.BytesIO(thumbnail), formats=("PNG",)) as image:
            size = image.size
    except (UnidentifiedImageError, OSError, ValueError) as error:
        raise ImageError(f"The thumbnail of {len(thumbnail)} bytes is not a PNG. {advice}") from error
    if max(size) > THUMBNAIL_PIXELS:
        raise ImageError(
            f"The thumbnail is {size[0]} x {size[1]} pixels; at most {THUMBNAIL_PIXELS} x {THUMBNAIL_PIXELS} "
            f"are stored. {advice}"
        )


def check_image(image: bytes, image_sha256: str | None) -> None:
    """Raise `ImageError` unless this opens as the image of this digest."""
    if image_digest(open_image(image)) != image_sha256:
        raise ImageError(
            f"The image of {len(image)} bytes is not the one that the edit was made with: its digest is another. "
            "Give that one, and its digest as `image_sha256`."
        )


def check_text(what: str, text: str) -> None:
    """Raise `InvalidInputError` for text that is not valid Unicode."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InvalidInputError(
            f"{what} holds half of a surrogate pair at position {error.start}: it is not valid "
            "Unicode. Give text that can be written as UTF-8."
        ) from error
