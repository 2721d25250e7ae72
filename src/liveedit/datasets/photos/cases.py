"""The cases: edits of what is known of a class of photographs, with their probes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Final

import numpy as np

from ...samples import Edit, EditCase, Probe, ProbeName, Question
from ..facts.catalog import pick
from . import general, questions
from .catalog import PhotoClass
from .looks import answer_from_pixels
from .nearness import Nearness
from .new_answers import Part, draw_answer, in_a_sentence
from .plan import EvaluationPlan, PlannedEdit, draw_training_edit, plan_evaluation
from .wordings import Wording

_PART_SEEDS: Final[dict[Part, int]] = {"train": 31, "validation": 33, "eval": 32}

_REPHRASED: Final[dict[Part, Wording]] = {"train": "train", "validation": "unseen_by_editor", "eval": "unseen"}
"""Wordings of the text generality probe."""

SENTENCE_SHARE: Final = 1 / 8
"""Share of edits whose answer is a sentence."""
_NEAR_CLASSES: Final = 5
"""In training, a near duplicate is of one of this many nearest classes."""


@dataclass(frozen=True)
class Album:
    """Classes with their photographs of one part.

    root: the image folder. classes: by key. photos: the paths of each class relative to `root`, two or more.
    """

    root: Path
    classes: Mapping[str, PhotoClass]
    photos: Mapping[str, tuple[str, ...]]
    nearness: Nearness


@dataclass(frozen=True, slots=True)
class PhotoCase:
    """A case, and its portability question with the new class's name in place of the image; None without portability.

    The latter asks what a model knows of the new class before any edit.
    """

    case: EditCase
    hop_without_image: str | None


def training_cases(album: Album, seed: int, count: int) -> Iterator[PhotoCase]:
    """`count` cases to train editors on. They may contradict each other; each is consistent in itself."""
    maker = _CaseMaker("train", album, seed)
    classes = tuple(album.classes.values())
    for index in range(count):
        yield maker.case(index, draw_training_edit(classes, maker.rng))


def plan_of(part: Part, album: Album, seed: int, count: int) -> EvaluationPlan:
    """The plan of `evaluation_cases`. Raises `InvalidInputError` if the classes do not allow `count` edits."""
    rng = np.random.default_rng([seed, _PART_SEEDS[part], 1])
    return plan_evaluation(tuple(album.classes.values()), album.nearness, count, rng)


def evaluation_cases(part: Part, album: Album, seed: int, plan: EvaluationPlan) -> Iterator[PhotoCase]:
    """The cases of a plan: no two edits have the same class and kind, and what must stay is in no edit's scope.

        text_generality          a wording that no model was trained on; in validation one that no editor is trained on
        modal_generality         another photograph of the class
        text_locality            a question of general knowledge
        modal_locality           another question about a photograph of another class
        same_image_locality      another question about the photograph
        same_question_locality   the same question about a photograph of another class, which is never edited
        near_duplicate_locality  the same, with the most similar photograph of the most similar class that is never
                                 edited
        cross_modal              the question with the name of the thing in place of the photograph
        portability              what follows from the new class, if the edit gives the name of another class

    Reading a file of them adds joint_generality, and cross_modal with the edit's own wording.
    """
    maker = _CaseMaker(part, album, seed, plan)
    for index, edit in enumerate(plan.edits):
        yield maker.case(index, edit)


class _CaseMaker:
    def __init__(self, part: Part, album: Album, seed: int, plan: EvaluationPlan | None = None):
        self.part: Part = part
        self.album, self.seed, self.plan = album, seed, plan
        self.rng = np.random.default_rng([seed, _PART_SEEDS[part]])
        self.edited = frozenset(edit.scope for edit in plan.edits) if plan else frozenset()
        self.others = {
            key: tuple(other for other in album.classes.values() if other.key != key) for key in album.classes
        }
        self.pixels = cache(lambda kind, photo: answer_from_pixels(kind, album.root / photo))

    def case(self, index: int, edit: PlannedEdit) -> PhotoCase:
        named, answer, answer_type = self._new_answer(edit)
        photo, again = self._two_photos(edit.shown)
        wording = self._wording()
        core = pick(questions.cores(edit.kind, wording), self.rng)
        question = Question(questions.put(core, wording, self.rng), photo, *edit.scope)
        true = questions.answer(edit.shown, edit.kind)
        probes = (
            Probe("text_generality", replace(question, prompt=self._rephrased(edit, core)), answer),
            Probe("modal_generality", replace(question, image=again), answer),
            *self._must_stay(edit, question, named),
            Probe("cross_modal", self._without_image(edit, wording), answer),
            *self._portability(edit, photo),
        )
        case = EditCase(
            f"photos-{self.part}-{self.seed}-{index:06d}",
            Edit(question, answer),
            probes,
            answer_type,
            true,
            ("unknown" if true == questions.UNKNOWN else "known",),
        )
        return PhotoCase(case, self._hop_without_image(edit))

    # -- the edit ----------------------------------------------------------------------------------------

    def _new_answer(self, edit: PlannedEdit) -> tuple[str, str, str]:
        """The short new answer, the new answer, which may be a sentence around it, and its type."""
        made_up = draw_answer(edit.kind, self._right_answers(edit), self.rng)
        named = edit.new_class or PhotoClass("", made_up)
        if self.rng.random() < SENTENCE_SHARE:
            sentence = in_a_sentence(edit.kind, named.name, named.indefinite, self.part, self.rng)
            return named.name, sentence, "caption"
        return named.name, named.name, edit.kind

    def _right_answers(self, edit: PlannedEdit) -> frozenset[str]:
        """What the edit must not say: the true answer of its class, and in evaluation that of the near duplicate."""
        keys = [edit.shown.key, *([self.plan.nearest[edit.shown.key]] if self.plan else [])]
        return frozenset(questions.answer(self.album.classes[key], edit.kind) for key in keys)

    def _two_photos(self, shown: PhotoClass) -> tuple[str, str]:
        photos = self.album.photos[shown.key]
        first, second = self.rng.permutation(len(photos))[:2]
        return photos[first], photos[second]

    def _wording(self) -> Wording:
        return "train" if self.part == "train" or self.rng.random() < 0.5 else "unseen_by_editor"

    def _rephrased(self, edit: PlannedEdit, core: str) -> str:
        wording = _REPHRASED[self.part]
        others = [other for other in questions.cores(edit.kind, wording) if other != core]
        return questions.put(pick(others, self.rng), wording, self.rng)

    # -- what must stay ----------------------------------------------------------------------------------

    def _must_stay(self, edit: PlannedEdit, question: Question, named: str) -> Iterator[Probe]:
        prompt, answer = pick(general.HELD_OUT if self.part == "eval" else general.TRAINING, self.rng)
        yield Probe("text_locality", Question(prompt), answer)
        yield self._modal_locality(edit)
        offered = (*_asked_about(edit.shown), *questions.IMAGE_KINDS)
        kinds = [kind for kind in offered if self._stays(edit.shown, kind, edit)]
        yield self._asked("same_image_locality", edit.shown, pick(kinds, self.rng), str(question.image))
        elsewhere = self._elsewhere(edit, named)
        near = self._near_class(edit.shown, elsewhere)
        other = pick([other for other in elsewhere if other != near] or elsewhere, self.rng)
        photo = pick(self.album.photos[other.key], self.rng)
        yield self._same_question("same_question_locality", other, photo, question)
        photo = self.album.nearness.nearest_photo(str(question.image), near.key)
        yield self._same_question("near_duplicate_locality", near, photo, question)

    def _modal_locality(self, edit: PlannedEdit) -> Probe:
        """Another question about another class: half of the time about the photograph itself, and of any class then."""
        about_image = self.rng.random() < 0.5
        other = pick(self.others[edit.shown.key] if about_image else self._unedited(edit.shown), self.rng)
        offered = questions.IMAGE_KINDS if about_image else _asked_about(other)
        kinds = [kind for kind in offered if kind != edit.kind and self._stays(other, kind, edit)]
        photo = pick(self.album.photos[other.key], self.rng)
        return self._asked("modal_locality", other, pick(kinds, self.rng), photo)

    def _stays(self, shown: PhotoClass, kind: str, edit: PlannedEdit) -> bool:
        """Whether the true answer must stay: under every edit of the plan, or in training under this edit alone.

        All that the class decides is in doubt once its name is edited: a lobster that is now a piano may be used for
        playing music.
        """
        edited = self.edited or {edit.scope}
        return (shown.key, kind) not in edited and not (kind in questions.TRUE_KINDS and (shown.key, "name") in edited)

    def _unedited(self, shown: PhotoClass) -> tuple[PhotoClass, ...]:
        """The classes that are never edited; in training, all but the edited one."""
        if self.plan is None:
            return self.others[shown.key]
        return tuple(self.album.classes[key] for key in self.plan.unedited)

    def _elsewhere(self, edit: PlannedEdit, named: str) -> Sequence[PhotoClass]:
        """Classes to which the edit's question may be put: not edited, and with another answer than the edit's."""
        found = self._unedited(edit.shown)
        return [other for other in found if questions.answer(other, edit.kind) != named] or found

    def _near_class(self, shown: PhotoClass, elsewhere: Sequence[PhotoClass]) -> PhotoClass:
        if self.plan is not None:
            return self.album.classes[self.plan.nearest[shown.key]]
        nearest = self.album.nearness.nearest_classes(shown.key, [other.key for other in elsewhere])
        return self.album.classes[pick(nearest[:_NEAR_CLASSES], self.rng)]

    def _same_question(self, name: ProbeName, shown: PhotoClass, photo: str, question: Question) -> Probe:
        asked = Question(question.prompt, photo, shown.key, question.relation)
        return Probe(name, asked, questions.answer(shown, str(question.relation)))

    def _asked(self, name: ProbeName, shown: PhotoClass, kind: str, photo: str) -> Probe:
        if kind in questions.IMAGE_KINDS:
            prompt, answer = questions.ask(kind, self._wording(), self.rng), self.pixels(kind, photo)
        else:
            prompt, answer = questions.true_question(kind, shown, self.others[shown.key], self._wording(), self.rng)
        return Probe(name, Question(prompt, photo, shown.key, kind), answer)

    # -- without the image, and one hop further ----------------------------------------------------------

    def _without_image(self, edit: PlannedEdit, wording: Wording) -> Question:
        return Question(questions.ask_by_name(edit.kind, edit.shown, wording, self.rng), None, *edit.scope)

    def _portability(self, edit: PlannedEdit, photo: str) -> Iterator[Probe]:
        if edit.new_class is not None and edit.hop is not None:
            prompt = questions.ask(edit.hop, self._wording(), self.rng)
            answer = questions.answer(edit.new_class, edit.hop)
            yield Probe("portability", Question(prompt, photo, edit.shown.key, edit.hop), answer)

    def _hop_without_image(self, edit: PlannedEdit) -> str | None:
        if edit.new_class is None or edit.hop is None:
            return None
        return questions.ask_by_name(edit.hop, edit.new_class, self._wording(), self.rng)


def _asked_about(shown: PhotoClass) -> tuple[str, ...]:
    """Every kind of question about a class, apart from those about its photographs."""
    return (*questions.kinds_of(shown), "choice", "yes_no")
