"""An edit that is tried out before it is stored: the answers before and after it, and the edits that it meets."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from PIL import Image

from ..editors import SMALLEST_SHARE, Fired
from ..editors.liveedit import LiveEdit
from ..editors.liveedit.neighbours import estimated_shares, neighbours
from ..errors import EditDidNotTakeError
from ..experts import Expert
from ..images import image_digest
from ..store.evidence import Collision, EarlierEdit, Evidence, LocalityProbe, Rephrased, same_answer
from ..store.records import StoredEdit
from ..store.store import EditStore
from .recheck import question_of

if TYPE_CHECKING:
    from .model import Answer, EditedModel

TRIAL: Final = "trial"
"""What an edit is called while it is tried out: no id, which is hexadecimal."""

_MOST_COLLISIONS: Final = 100
_LOOKED_AT: Final = 4
"""So many times the edits that are to be asked again are looked at: not each has its picture still."""

_ASKED_AT_ONCE: Final = 16

AskedQuestion = tuple[Image.Image | None, str]


@dataclass(frozen=True)
class Trial:
    """An edit, and what it is tried on. `probe_edits`: how many of the edits in force are asked again."""

    image: Image.Image | None
    prompt: str
    answer: str
    rephrasings: tuple[str, ...] = ()
    locality: tuple[AskedQuestion, ...] = ()
    probe_edits: int = 0


@dataclass(frozen=True)
class Outcome:
    """What the model said to the edit's own question, and everything else that came out."""

    answer_before: str
    answer_after: str
    evidence: Evidence

    def check_took(self, trial: Trial) -> None:
        """Raise `EditDidNotTakeError` unless the edit's own question is now answered as was asked for."""
        if not same_answer(self.answer_after, trial.answer):
            raise EditDidNotTakeError(
                f"The edit does not take: with it the model answers {trial.prompt!r} with {self.answer_after!r}, and "
                f"{trial.answer!r} was asked for. Nothing was stored. Give another wording or another picture; without "
                "--must-take (must_take) it is stored all the same."
            )


def try_out(model: EditedModel, trial: Trial, expert: Expert, superseded: Sequence[StoredEdit]) -> Outcome:
    """Ask with the edits in force, and again with the expert among them in place of those superseded.

    Afterwards the edits in force are as they were, also where an error is raised.
    """
    editor, store, leaving = model.editor, model.store, {edit.id for edit in superseded}
    probed = _nearest(editor, store, trial, expert, leaving)
    questions: list[AskedQuestion] = [
        (trial.image, trial.prompt),
        *((trial.image, prompt) for prompt in trial.rephrasings),
        *trial.locality,
        *((image, edit.prompt) for edit, image in probed),
    ]
    new_tokens = max(model.answer_tokens(answer) for answer in (trial.answer, *(edit.answer for edit, _ in probed)))
    before = _asked(model, questions, new_tokens)
    with _in_force(editor, expert, leaving):
        after = _asked(model, questions, new_tokens)
    pairs = [(old.text, new.text) for old, new in zip(before, after, strict=True)]
    first = 1 + len(trial.rephrasings)
    last = first + len(trial.locality)
    firings = {edit.id: _share(answer.fired, TRIAL) for (edit, _), answer in zip(probed, after[last:], strict=True)}
    evidence = Evidence(
        supersedes=tuple(edit.id for edit in superseded),
        store_bytes=expert.store_bytes,
        rephrasings=tuple(
            Rephrased(prompt, *pair, same_answer(pair[1], trial.answer))
            for prompt, pair in zip(trial.rephrasings, pairs[1:first], strict=True)
        ),
        locality=tuple(
            LocalityProbe(prompt, image and image_digest(image), *pair, same_answer(*pair))
            for (image, prompt), pair in zip(trial.locality, pairs[first:last], strict=True)
        ),
        earlier_edits=tuple(
            EarlierEdit(edit.id, *pair, same_answer(*pair))
            for (edit, _), pair in zip(probed, pairs[last:], strict=True)
        ),
        collisions=_collisions(editor, store, trial, expert, after[0].fired, firings, leaving),
    )
    return Outcome(*pairs[0], evidence)


def _asked(model: EditedModel, questions: Sequence[AskedQuestion], new_tokens: int) -> list[Answer]:
    batches = [questions[start : start + _ASKED_AT_ONCE] for start in range(0, len(questions), _ASKED_AT_ONCE)]
    return [answer for batch in batches for answer in model.ask_batch(batch, new_tokens)]


@contextmanager
def _in_force(editor: LiveEdit, expert: Expert, leaving: set[str]) -> Iterator[None]:
    """The expert among the edits in force, in place of those that leave, as long as the context lasts."""
    repository = editor.repository
    away = {edit_id: repository.get(edit_id) for edit_id in leaving if edit_id in repository}
    try:
        for edit_id in away:
            editor.undo(edit_id)
        editor.add(TRIAL, expert)
        yield
    finally:
        if TRIAL in repository:
            editor.undo(TRIAL)
        for edit_id, kept in away.items():
            if edit_id not in repository:
                editor.add(edit_id, kept)


def _nearest(
    editor: LiveEdit, store: EditStore, trial: Trial, expert: Expert, leaving: set[str]
) -> list[tuple[StoredEdit, Image.Image | None]]:
    """Of the edits in force that can be asked again to the pixel those nearest by key, with their pictures."""
    found: list[tuple[StoredEdit, Image.Image | None]] = []
    most = _LOOKED_AT * trial.probe_edits + len(leaving) if trial.probe_edits else 0
    for near in neighbours(editor.modules, expert, editor.repository, most):
        if len(found) == trial.probe_edits:
            break
        if near.edit_id in leaving:
            continue
        edit = store.get(near.edit_id)
        about, image = question_of(store, edit)
        if edit.is_active and about in ("text", "picture"):
            found.append((edit, image))
    return found


def _collisions(
    editor: LiveEdit,
    store: EditStore,
    trial: Trial,
    expert: Expert,
    fired: Sequence[Fired],
    firings: dict[str, float],
    leaving: set[str],
) -> tuple[Collision, ...]:
    """Edits that fire where the new one does; those with the most weight, either way, first."""
    here = {other.edit_id: other.weight for other in fired if other.edit_id != TRIAL}
    margin = next((other.margin for other in fired if other.edit_id == TRIAL), None)
    guessed: dict[str, float] = {}
    if margin is not None:
        guessed = estimated_shares(editor.modules, expert, margin, editor.repository, SMALLEST_SHARE)
    shares = {
        edit_id: (here.get(edit_id, 0.0), firings.get(edit_id, guessed.get(edit_id, 0.0)))
        for edit_id in (here.keys() | firings.keys() | guessed.keys()) - leaving
    }
    met = [edit_id for edit_id in shares if max(shares[edit_id]) >= SMALLEST_SHARE]
    met.sort(key=lambda edit_id: (-max(shares[edit_id]), edit_id))
    return tuple(
        Collision(
            edit_id,
            *shares[edit_id],
            is_estimate=edit_id not in firings,
            answers_differ=not same_answer(store.get(edit_id).answer, trial.answer),
        )
        for edit_id in met[:_MOST_COLLISIONS]
    )


def _share(fired: Sequence[Fired], edit_id: str) -> float:
    return sum(other.weight for other in fired if other.edit_id == edit_id)
