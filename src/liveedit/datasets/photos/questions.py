"""Questions about a photograph: their kinds, their wordings, and the right answers.

A kind is a relation as in `samples.Question`. An edit gives a class a new answer to one of `EDIT_KINDS`; `choice`,
`yes_no` and `IMAGE_KINDS` are never edited.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from ..facts.catalog import pick
from . import wordings
from .catalog import PhotoClass
from .wordings import Wording

TRUE_KINDS: Final = tuple(wordings.OF_THE_CLASS)
"""name, choice, group, yes_no, use, home: kinds with a true answer, to teach a model with. See `kinds_of`."""
INVENTED_KINDS: Final = tuple(wordings.INVENTED)
"""Kinds whose true answer nobody knows."""
IMAGE_KINDS: Final = tuple(wordings.OF_THE_IMAGE)
"""Kinds about the photograph itself. `looks.answer_from_pixels` answers them."""
FACT_KINDS: Final = ("name", "group", "use", "home")
"""Kinds that can be edited and whose true answer `answer` may know."""
EDIT_KINDS: Final = (*FACT_KINDS, *INVENTED_KINDS)

UNKNOWN: Final = "unknown"
"""The true answer to an invented kind, and to a kind of which the catalogue knows nothing."""

_CORES: Final = {**wordings.OF_THE_CLASS, **wordings.INVENTED, **wordings.OF_THE_IMAGE}


def kinds_of(photo_class: PhotoClass) -> tuple[str, ...]:
    """The kinds of edits of a class. Where it lives is asked only of what lives, what it is for only of things."""
    return tuple(kind for kind in EDIT_KINDS if kind not in ("use", "home") or getattr(photo_class, kind) is not None)


def answer(photo_class: PhotoClass, kind: str) -> str:
    """The true answer to one of `EDIT_KINDS`; `UNKNOWN` if there is none."""
    known = getattr(photo_class, kind) if kind in FACT_KINDS else None
    return known or UNKNOWN


def cores(kind: str, wording: Wording) -> tuple[str, ...]:
    """The wordings of a kind in one of the three groups, with their slots."""
    return _CORES[kind][wordings.GROUPS[wording]]


def ask(kind: str, wording: Wording, rng: np.random.Generator, *classes: PhotoClass) -> str:
    """A random wording of a question with an image.

    classes: the two that a `choice` offers, the one that a `yes_no` asks for; none for other kinds.
    """
    return put(pick(cores(kind, wording), rng), wording, rng, *classes)


def put(core: str, wording: Wording, rng: np.random.Generator, *classes: PhotoClass) -> str:
    """A wording with its slots filled, as `ask` fills them."""
    names = dict(zip(("first", "second"), (each.indefinite for each in classes), strict=False))
    question = core.format(it=pick(wordings.PHRASES[wording], rng), **names)
    return pick(wordings.CARRIERS[wording], rng).format(question)


def ask_by_name(kind: str, photo_class: PhotoClass, wording: Wording, rng: np.random.Generator) -> str:
    """A random wording of one of `EDIT_KINDS` that names the thing, for a question without an image."""
    group = wordings.GROUPS[wording]
    found = wordings.NAME_WITHOUT_IMAGE[group] if kind == "name" else cores(kind, wording)
    return pick(found, rng).format(it=photo_class.definite)


def true_question(
    kind: str, shown: PhotoClass, others: Sequence[PhotoClass], wording: Wording, rng: np.random.Generator
) -> tuple[str, str]:
    """A question of any kind but `IMAGE_KINDS` about a photograph of `shown`, with its true answer.

    others: the classes that a `choice` or a `yes_no` may name besides; half of the answers to `yes_no` are "yes".
    """
    if kind == "choice":
        pair = [shown, pick(others, rng)]
        return ask(kind, wording, rng, *(pair[place] for place in rng.permutation(2))), shown.name
    if kind == "yes_no":
        yes = bool(rng.random() < 0.5)
        return ask(kind, wording, rng, shown if yes else pick(others, rng)), "yes" if yes else "no"
    return ask(kind, wording, rng), answer(shown, kind)
