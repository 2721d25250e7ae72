"""The neighbourhood of an edit: the active edits nearest to it, and which of them fire where it fires."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
    nearest = [near for near in editor.neighbours(expert, most + 1) if near.edit_id != active_id][:most]
    if not nearest:
        return []
    others = [store.get(near.edit_id) for near in nearest]
    own, *replies = _ask_again(answering, store, (edit, *others))
    estimates: dict[str, float] | None = None
    if any(reply.answer is None for reply in (own, *replies)) and editor.estimates_weights:
        margin = own.margin_of(active_id)
        estimates = None if margin is None else editor.estimated_weights(expert, margin)
    found: list[NearEdit] = []
    for near, other, reply in zip(nearest, others, replies, strict=True):
        weight_there, is_estimate = reply.weight_of(active_id), False
        if reply.answer is None and estimates is not None:
            weight_there, is_estimate = estimates.get(other.id, 0.0), True
        found.append(
            NearEdit(
                edit_id=other.id,
                prompt=other.prompt,
                answer=other.answer,
                image_name=other.image_name,
                similarity=near.similarity,
                weight_here=own.weight_of(other.id),
                weight_there=weight_there,
                is_estimate=is_estimate,
                asked_about=reply.asked_about,
                answers_differ=not same_answer(other.answer, edit.answer),
            )
        )
    return found


@dataclass(frozen=True)
class _Reply:
    """The model's reply to the question of an edit. answer: None if the question could not be asked."""

    asked_about: AskedAbout
    answer: Answer | None

    def weight_of(self, edit_id: str) -> float | None:
        """See `Answer.weight_of`."""
        return None if self.answer is None else self.answer.weight_of(edit_id)

    def margin_of(self, edit_id: str) -> float | None:
        """See `Answer.margin_of`."""
        return None if self.answer is None else self.answer.margin_of(edit_id)


def _ask_again(answering: Answering, store: EditStore, edits: Sequence[StoredEdit]) -> list[_Reply]:
    """Ask the questions of these edits, as far as their images were kept. Of each answer the first token is enough."""
    about = [question_of(store, edit) for edit in edits]
    questions = [
        Question(edit.prompt, image) for edit, (kind, image) in zip(edits, about, strict=True) if kind != "nothing"
    ]
    answers = iter(answering.ask_all(questions, 1))
    return [_Reply(kind, None if kind == "nothing" else next(answers)) for kind, _ in about]
