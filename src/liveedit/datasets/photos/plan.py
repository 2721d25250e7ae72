"""Which edits a file has. In evaluation no two edits contradict each other, and no probe contradicts an edit."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from ...errors import InvalidInputError
from ..facts.catalog import pick
from . import questions
from .catalog import PhotoClass
from .nearness import Nearness, unedited_classes

UNEDITED_SHARE: Final = 1 / 4
"""Share of classes that evaluation never edits: their photographs are what must stay."""
RENAMED_SHARE: Final = 2 / 3
"""Share of edited classes whose name may be edited. Of the other ones it stays known what is on their photographs."""
CLASS_NAME_SHARE: Final = 2 / 3
"""Share of edits of the name to the name of another class; the other ones give a made-up name."""


@dataclass(frozen=True, slots=True)
class PlannedEdit:
    """An edit without its answer.

    new_class: the class whose name an edit of the name gives; None: another kind, or a made-up name. hop: the kind of
    question whose answer follows from the new class, for portability.
    """

    shown: PhotoClass
    kind: str
    new_class: PhotoClass | None = None
    hop: str | None = None

    @property
    def scope(self) -> tuple[str, str]:
        """(class, kind)."""
        return self.shown.key, self.kind


@dataclass(frozen=True, slots=True)
class EvaluationPlan:
    """The edits of a file to measure on.

    unedited: the keys of the classes without an edit. nearest: the most similar of these for each edited class.
    """

    edits: tuple[PlannedEdit, ...]
    unedited: tuple[str, ...]
    nearest: dict[str, str]


def plan_evaluation(
    classes: Sequence[PhotoClass], nearness: Nearness, count: int, rng: np.random.Generator
) -> EvaluationPlan:
    """`count` edits with different scopes, in random order.

    Raises `InvalidInputError` if the classes do not allow as many.
    """
    unedited = unedited_classes(nearness, max(1, round(UNEDITED_SHARE * len(classes))))
    edited = [each for each in classes if each.key not in unedited]
    nearest = {each.key: nearness.nearest_classes(each.key, unedited)[0] for each in edited}
    renamed: dict[str, PlannedEdit] = {}
    for place in rng.permutation(len(edited))[: math.ceil(RENAMED_SHARE * len(edited))]:
        shown = edited[place]
        others = [other for other in classes if other.key not in (shown.key, nearest[shown.key])]
        renamed[shown.key] = _renamed(shown, others, rng)
    scopes = _scopes_to_edit(edited, renamed)
    if count > len(scopes):
        raise InvalidInputError(
            f"{count:,} cases of evaluation were asked for. The {len(classes)} classes allow {len(scopes):,} without "
            "contradiction. Ask for fewer, or give a folder with more classes."
        )
    chosen = [scopes[place] for place in rng.permutation(len(scopes))[:count]]
    edits = tuple(renamed[each.key] if kind == "name" else PlannedEdit(each, kind) for each, kind in chosen)
    return EvaluationPlan(edits, unedited, nearest)


def _scopes_to_edit(edited: Sequence[PhotoClass], renamed: Mapping[str, PlannedEdit]) -> list[tuple[PhotoClass, str]]:
    """Every (class, kind) that may be edited: without names that stay, and without what portability asks for.

    Portability asks for what is known of the new class. That must be edited neither of the new class nor of the shown
    one, whose photograph is asked about.
    """
    kept = {
        (key, edit.hop)
        for edit in renamed.values()
        if edit.new_class is not None
        for key in (edit.shown.key, edit.new_class.key)
    }
    return [
        (each, kind)
        for each in edited
        for kind in questions.kinds_of(each)
        if (each.key, kind) not in kept and (kind != "name" or each.key in renamed)
    ]


def draw_training_edit(classes: Sequence[PhotoClass], rng: np.random.Generator) -> PlannedEdit:
    """An edit for training, which does not depend on other ones. It has no hop: editors are not trained on these."""
    shown = pick(classes, rng)
    kind = pick(questions.kinds_of(shown), rng)
    if kind != "name":
        return PlannedEdit(shown, kind)
    return PlannedEdit(shown, kind, _renamed(shown, [other for other in classes if other != shown], rng).new_class)


def _renamed(shown: PhotoClass, others: Sequence[PhotoClass], rng: np.random.Generator) -> PlannedEdit:
    """An edit of the name, to that of one of the other classes or to a made-up one."""
    if not others or rng.random() >= CLASS_NAME_SHARE:
        return PlannedEdit(shown, "name")
    new_class = pick(others, rng)
    known = [kind for kind in ("use", "home", "group") if getattr(new_class, kind) is not None]
    hops = [kind for kind in known if questions.answer(new_class, kind) != questions.answer(shown, kind)]
    return PlannedEdit(shown, "name", new_class, pick(hops, rng) if hops else None)
