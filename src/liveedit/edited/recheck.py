"""Do edits still hold? Ask them again, about what is left of their images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from PIL import Image

from ..answering import Answering
from ..answers import Answer, Fired, is_broken, same_answer
from ..images import open_image
from ..samples import Question
from ..store.records import StoredEdit
from ..store.store import EditStore

AskedAbout = Literal["text", "image", "thumbnail", "nothing"]
"""What an edit is asked about again: "text": it has no image. "image": its own pixels. "thumbnail": a smaller copy.
"nothing": the image was not kept, so the edit cannot be asked."""


@dataclass(frozen=True)
class CheckedEdit:
    """The model's present answer to the question of an active edit.

    answer: the edit's. answer_now: the model's, None if the edit could not be asked. fired: the edits that took part.
    answer_before: the model's before the edit was made, None if it is not known.
    """

    edit_id: str
    prompt: str
    answer: str
    answer_now: str | None
    asked_about: AskedAbout
    fired: tuple[Fired, ...] = ()
    answer_before: str | None = None

    @property
    def holds(self) -> bool | None:
        """Whether the model gives the edit's answer; None if unknown."""
        return None if self.answer_now is None else same_answer(self.answer_now, self.answer)

    @property
    def broken(self) -> bool | None:
        """Whether the model gives neither the edit's answer nor the one before it; None if unknown."""
        if self.holds:
            return False
        if self.answer_now is None or self.answer_before is None:
            return None
        return is_broken(self.answer_now, (self.answer, self.answer_before))

    @property
    def others(self) -> tuple[Fired, ...]:
        """The other edits that took part."""
        return tuple(fired for fired in self.fired if fired.edit_id != self.edit_id)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "holds": self.holds, "broken": self.broken}


def check_edits(
    answering: Answering, store: EditStore, edits: Sequence[StoredEdit], batch: int
) -> Iterator[CheckedEdit]:
    """Ask these edits again in their order, `batch` at a time."""
    for start in range(0, len(edits), batch):
        some = edits[start : start + batch]
        about = [question_of(store, edit) for edit in some]
        asked = [place for place, (kind, _) in enumerate(about) if kind != "nothing"]
        found: dict[int, Answer] = {}
        if asked:
            questions = [Question(some[place].prompt, about[place][1]) for place in asked]
            new_tokens = max(answering.tokens_for(some[place].answer) for place in asked)
            found = dict(zip(asked, answering.ask(questions, new_tokens), strict=True))
        for place, edit in enumerate(some):
            answer = found.get(place, Answer("", ()))
            text = answer.text if place in found else None
            yield CheckedEdit(
                *(edit.id, edit.prompt, edit.answer, text, about[place][0]), answer.fired or (), edit.answer_before
            )


def question_of(store: EditStore, edit: StoredEdit) -> tuple[AskedAbout, Image.Image | None]:
    """What is left of an edit's image to ask about. Raises `StoreError` if it is damaged."""
    if edit.image_sha256 is None:
        return "text", None
    if (whole := store.whole_image(edit)) is not None:
        return "image", open_image(whole)
    thumbnail = store.thumbnail(edit.id)
    return ("nothing", None) if thumbnail is None else ("thumbnail", open_image(thumbnail))
