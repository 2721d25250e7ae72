"""The neighbourhood of an edit: the active edits nearest to it, and which of them fire where it fires."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from ..answering import Answering
from ..answers import FIRING_THRESHOLD, Answer, same_answer
from ..editors.base import ExpertEditor
from ..errors import EditPurgedError, InvalidInputError
from ..experts import Expert
from ..samples import Question
from ..store.records import StoredEdit
from ..store.store import EditStore
from .recheck import AskedAbout, question_of
from .trial import TRIAL


@dataclass(frozen=True)
class NearEdit:
    """An active edit near another one, which is called the edit here.

    similarity: as the editor's router compares edits, in its units. weight_here: its weight in the answer to the edit's
    question. weight_there: the edit's weight in the answer to its question. Both questions were asked for this, unless
    `is_estimate` says that weight_there is the editor's estimate, because the image of its question was not kept. None:
    the question could not be asked, and the editor makes no estimate. asked_about: what its question was asked about.
    """

    edit_id: str
    prompt: str
    answer: str
    image_name: str | None
    similarity: float
    weight_here: float | None
    weight_there: float | None
    is_estimate: bool
    asked_about: AskedAbout
    answers_differ: bool

    @property
    def collides(self) -> bool | None:
        """Whether one of the two fires for the other's question; None if that is not known."""
        known = [weight for weight in (self.weight_here, self.weight_there) if weight is not None]
        if any(weight >= FIRING_THRESHOLD for weight in known):
            return True
        return False if len(known) == 2 else None

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "collides": self.collides}


def check_finds_near(editor: ExpertEditor[Any], edit: StoredEdit) -> None:
    """Raise `InvalidInputError` if the editor compares no edits, `EditPurgedError` if the edit has no expert."""
    if not editor.finds_neighbours:
        raise InvalidInputError(
            f"The editor {editor.name!r} does not compare edits with each other, so it cannot say which are near."
        )
    if edit.purged_at is not None:
        raise EditPurgedError(f"The edit {edit.id!r} and its expert were purged at {edit.purged_at}.")


def near_edits(
    answering: Answering,
    editor: ExpertEditor[Any],
    store: EditStore,
    edit: StoredEdit,
    most: int,
    expert: Expert | None = None,
) -> list[NearEdit]:
    """Up to `most` active edits nearest to this one, most similar first.

    expert: the edit's, if it may be inactive; it is active meanwhile then. Only the first token of each answer is
    generated, because routing is decided before it.
    """
    with _active(editor, edit, expert) as active_id:
        return _near_active(answering, editor, store, edit, most, active_id)


@contextmanager
def _active(editor: ExpertEditor[Any], edit: StoredEdit, expert: Expert | None) -> Iterator[str]:
    """Inside, the edit's expert is active under this id."""
    if expert is None or edit.id in editor:
        yield edit.id
        return
    editor.add(TRIAL, expert)
    try:
        yield TRIAL
    finally:
        editor.undo(TRIAL)


def _near_active(
    answering: Answering, editor: ExpertEditor[Any], store: EditStore, edit: StoredEdit, most: int, active_id: str
) -> list[NearEdit]:
    expert = editor.get(active_id)
    found = [near for near in editor.neighbours(expert, most + 1) if near.edit_id != active_id][:most]
    others = [store.get(near.edit_id) for near in found]
    about = [question_of(store, one) for one in (edit, *others)]
    asked = [place for place, (kind, _) in enumerate(about) if kind != "nothing"]
    questions = [Question((edit, *others)[place].prompt, about[place][1]) for place in asked]
    answers = dict(zip(asked, answering.ask_all(questions, 1), strict=True)) if found else {}
    estimated: dict[str, float] | None = None
    if len(answers) < len(about) and (margin := _margin(answers.get(0), active_id)) is not None:
        estimated = editor.estimated_weights(expert, margin) if editor.estimates_weights else None

    def there(place: int, edit_id: str) -> tuple[float | None, bool]:
        if place in answers or estimated is None:
            return _weight(answers.get(place), active_id), False
        return estimated.get(edit_id, 0.0), True

    near: list[NearEdit] = []
    for place, (one, other) in enumerate(zip(found, others, strict=True), start=1):
        weight_there, is_estimate = there(place, other.id)
        near.append(
            NearEdit(
                edit_id=other.id,
                prompt=other.prompt,
                answer=other.answer,
                image_name=other.image_name,
                similarity=one.similarity,
                weight_here=_weight(answers.get(0), other.id),
                weight_there=weight_there,
                is_estimate=is_estimate,
                asked_about=about[place][0],
                answers_differ=not same_answer(other.answer, edit.answer),
            )
        )
    return near


def _weight(answer: Answer | None, edit_id: str) -> float | None:
    """The weight of an edit in an answer, also if the answer was withheld; None if that is not known."""
    if answer is None or answer.fired is None:
        return None
    return sum(one.weight for one in (*answer.fired, *answer.withheld) if one.edit_id == edit_id)


def _margin(answer: Answer | None, edit_id: str) -> float | None:
    fired = () if answer is None else (*(answer.fired or ()), *answer.withheld)
    return next((one.margin for one in fired if one.edit_id == edit_id), None)
