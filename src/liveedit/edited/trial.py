"""The trial of an edit before it is stored: answers without and with it, and the edits it interferes with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from PIL import Image

from ..answering import Answering
from ..answers import FIRING_THRESHOLD, Answer, same_answer
from ..editors.base import ExpertEditor
from ..errors import EditDidNotTakeError
from ..experts import Expert
from ..images import image_digest
from ..samples import Question
from ..store.evidence import Collision, EarlierEdit, Evidence, LocalityProbe, Rephrased
from ..store.records import StoredEdit
from ..store.store import EditStore
from .recheck import question_of

TRIAL: Final = "trial"
"""The id of an edit during its trial. Stored ids are hexadecimal, so it cannot clash."""

_MOST_COLLISIONS: Final = 100
_CANDIDATES_PER_PROBE: Final = 4
"""Neighbours considered for each earlier edit to ask: not every edit still has its image."""


@dataclass(frozen=True)
class Trial:
    """An edit and its probes. probe_edits: how many of the active edits are asked again."""

    image: Image.Image | None
    prompt: str
    answer: str
    rephrasings: tuple[str, ...] = ()
    locality: tuple[Question, ...] = ()
    probe_edits: int = 0


@dataclass(frozen=True)
class TrialResult:
    """The answers to the edit's own question, and everything else that was found."""

    answer_before: str
    answer_after: str
    evidence: Evidence

    def check_took(self, trial: Trial) -> None:
        """Raise `EditDidNotTakeError` unless the edit's own question is answered as wanted."""
        if not same_answer(self.answer_after, trial.answer):
            raise EditDidNotTakeError(
                f"The edit does not take: with it the model answers {trial.prompt!r} with {self.answer_after!r}; "
                f"{trial.answer!r} was wanted. Nothing was stored. Try another wording, a shorter answer or another "
                "image, or keep the edit anyway (must_take=False, --no-must-take)."
            )


class TrialRun:
    """Tries out one expert on the model, in place of the edits that it supersedes."""

    def __init__(
        self,
        answering: Answering,
        editor: ExpertEditor[Any],
        store: EditStore,
        trial: Trial,
        expert: Expert,
        superseded: Sequence[StoredEdit],
    ):
        self.answering, self.editor, self.store = answering, editor, store
        self.trial, self.expert, self.superseded = trial, expert, superseded
        self._leaving = {edit.id for edit in superseded}

    def run(self) -> TrialResult:
        """Ask with the active edits, then with the expert among them. Afterwards the active edits are as before,
        also after an exception."""
        trial, probed = self.trial, self._nearest()
        questions = [
            Question(trial.prompt, trial.image),
            *(Question(prompt, trial.image) for prompt in trial.rephrasings),
            *trial.locality,
            *(Question(edit.prompt, image) for edit, image in probed),
        ]
        expected = (trial.answer, *(edit.answer for edit, _ in probed))
        new_tokens = max(self.answering.tokens_for(answer) for answer in expected)
        before = list(self.answering.ask_all(questions, new_tokens))
        with self._expert_active():
            after = list(self.answering.ask_all(questions, new_tokens))
        return TrialResult(before[0].text, after[0].text, self._evidence(before, after, probed))

    def _evidence(
        self, before: list[Answer], after: list[Answer], probed: list[tuple[StoredEdit, Image.Image | None]]
    ) -> Evidence:
        trial = self.trial
        pairs = [(old.text, new.text) for old, new in zip(before, after, strict=True)]
        first = 1 + len(trial.rephrasings)
        last = first + len(trial.locality)
        weights_there = {
            edit.id: answer.weight_of(TRIAL) or 0.0 for (edit, _), answer in zip(probed, after[last:], strict=True)
        }
        return Evidence(
            supersedes=tuple(edit.id for edit in self.superseded),
            store_bytes=self.expert.store_bytes,
            rank=self.expert.rank,
            rephrasings=tuple(
                Rephrased(prompt, *pair, same_answer(pair[1], trial.answer))
                for prompt, pair in zip(trial.rephrasings, pairs[1:first], strict=True)
            ),
            locality=tuple(
                LocalityProbe(question.prompt, _digest(question), *pair, same_answer(*pair))
                for question, pair in zip(trial.locality, pairs[first:last], strict=True)
            ),
            earlier_edits=tuple(
                EarlierEdit(edit.id, *pair, same_answer(*pair))
                for (edit, _), pair in zip(probed, pairs[last:], strict=True)
            ),
            collisions=self._collisions(after[0], weights_there),
        )

    @contextmanager
    def _expert_active(self) -> Iterator[None]:
        editor = self.editor
        away = {edit.id: editor.get(edit.id) for edit in self.superseded if edit.id in editor}
        try:
            for edit_id in away:
                editor.undo(edit_id)
            editor.add(TRIAL, self.expert)
            yield
        finally:
            if TRIAL in editor:
                editor.undo(TRIAL)
            for edit_id, kept in away.items():
                if edit_id not in editor:
                    editor.add(edit_id, kept)
            editor.number({edit.id: edit.number for edit in self.superseded if edit.id in away})

    def _nearest(self) -> list[tuple[StoredEdit, Image.Image | None]]:
        """The active edits most similar to the new one that can be asked again about their exact image."""
        probe_edits = self.trial.probe_edits
        found: list[tuple[StoredEdit, Image.Image | None]] = []
        most = _CANDIDATES_PER_PROBE * probe_edits + len(self._leaving) if probe_edits else 0
        for near in self.editor.neighbours(self.expert, most):
            if len(found) == probe_edits:
                break
            if near.edit_id in self._leaving:
                continue
            edit = self.store.get(near.edit_id)
            about, image = question_of(self.store, edit)
            if edit.is_active and about in ("text", "image"):
                found.append((edit, image))
        return found

    def _collisions(self, own: Answer, weights_there: dict[str, float]) -> tuple[Collision, ...]:
        """Edits that fire where the new one does, or where it fires, by weight. own: the answer to its question."""
        here = {other.edit_id: other.weight for other in own.found or () if other.edit_id != TRIAL}
        margin = own.margin_of(TRIAL)
        estimated = {} if margin is None else self.editor.estimated_weights(self.expert, margin)
        weights = {
            edit_id: (here.get(edit_id, 0.0), weights_there.get(edit_id, estimated.get(edit_id, 0.0)))
            for edit_id in (here.keys() | weights_there.keys() | estimated.keys()) - self._leaving
        }
        met = [edit_id for edit_id in weights if max(weights[edit_id]) >= FIRING_THRESHOLD]
        met.sort(key=lambda edit_id: (-max(weights[edit_id]), edit_id))
        return tuple(
            Collision(
                edit_id,
                *weights[edit_id],
                is_estimate=edit_id not in weights_there,
                answers_differ=not same_answer(self.store.get(edit_id).answer, self.trial.answer),
            )
            for edit_id in met[:_MOST_COLLISIONS]
        )


def _digest(question: Question) -> str | None:
    return None if question.image is None else image_digest(question.image)  # type: ignore[arg-type]
