"""Do edits still hold? They are asked again, about what is left of their pictures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from PIL import Image

from ..editors import Fired
from ..images import image_digest, open_image
from ..store.evidence import same_answer
from ..store.records import StoredEdit
from ..store.store import EditStore

if TYPE_CHECKING:
    from .model import Answer, EditedModel

AskedAbout = Literal["text", "picture", "thumbnail", "nothing"]
"""What an edit is asked about again: its text alone, which is all of its question; its picture, to the pixel; a smaller
copy of the picture; or nothing, because the picture was not kept, so that it is not asked at all."""


@dataclass(frozen=True)
class CheckedEdit:
    """What the model says now to the question of an edit in force.

    answer: what the edit asked for; answer_now: None where it could not be asked. fired: the edits that took part.
    """

    edit_id: str
    prompt: str
    answer: str
    answer_now: str | None
    asked_about: AskedAbout
    fired: tuple[Fired, ...] = ()

    @property
    def holds(self) -> bool | None:
        """Whether the model says what the edit asked for; None where that is not known."""
        return None if self.answer_now is None else same_answer(self.answer_now, self.answer)

    @property
    def others(self) -> tuple[Fired, ...]:
        """The other edits that took part."""
        return tuple(fired for fired in self.fired if fired.edit_id != self.edit_id)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "holds": self.holds}


def check_edits(model: EditedModel, edits: Sequence[StoredEdit], batch: int) -> Iterator[CheckedEdit]:
    """Ask these edits again, so many at a time, in their order."""
    for start in range(0, len(edits), batch):
        some = edits[start : start + batch]
        questions = [question_of(model.store, edit) for edit in some]
        asked = [place for place, (about, _) in enumerate(questions) if about != "nothing"]
        found: dict[int, Answer] = {}
        if asked:
            pairs = [(questions[place][1], some[place].prompt) for place in asked]
            new_tokens = max(model.answer_tokens(some[place].answer) for place in asked)
            found = dict(zip(asked, model.ask_batch(pairs, new_tokens), strict=True))
        for place, edit in enumerate(some):
            answer = found.get(place)
            said = (None, ()) if answer is None else (answer.text, answer.fired)
            yield CheckedEdit(edit.id, edit.prompt, edit.answer, said[0], questions[place][0], said[1])


def question_of(store: EditStore, edit: StoredEdit) -> tuple[AskedAbout, Image.Image | None]:
    """What is left of an edit's picture to ask about. Raises `StoreError` where it is damaged."""
    if edit.image_sha256 is None:
        return "text", None
    if (picture := store.picture(edit.id)) is not None:
        return "picture", open_image(picture)
    if (thumbnail := store.thumbnail(edit.id)) is None:
        return "nothing", None
    small = open_image(thumbnail)
    return ("picture" if image_digest(small) == edit.image_sha256 else "thumbnail"), small
