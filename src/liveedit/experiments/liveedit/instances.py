"""Instance analysis, figures 6 and 7 of the LiveEdit paper: how single questions are routed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from PIL import Image

from ...editors import editor_class, editor_names
from ...editors.liveedit import LiveEdit
from ...editors.liveedit.attribution import Attribution, Candidate, attribution, candidates
from ...errors import DatasetError, InvalidInputError
from ...images import image_digest, open_image
from ...progress import TaskProgress, no_task_progress, progress_of
from ...samples import Edit, EditCase, ImageSource, ProbeName, Question
from .instance_report import SHOWN

KINDS: Final[dict[ProbeName, str]] = {
    "reliability": "the edit itself",
    "text_generality": "asked in other words",
    "modal_generality": "another image of the same",
    "near_duplicate_locality": "a near-duplicate",
    "same_image_locality": "another question on the image",
    "same_question_locality": "this question on another image",
    "modal_locality": "another image, another question",
}
"""The label in the figures of each probe with an image."""

_FIGURE_6: Final[tuple[ProbeName, ...]] = (
    "reliability",
    "modal_generality",
    "near_duplicate_locality",
    "same_image_locality",
)
_RELATED: Final[tuple[ProbeName, ...]] = ("same_image_locality", "near_duplicate_locality")
_TRIED: Final[tuple[ProbeName, ...]] = ("reliability", "text_generality", "modal_generality")
_LARGEST_SIDE: Final = 448
"""Images are kept no larger than this, in pixels."""


@dataclass
class Entries:
    """Entries of a figure as `instance_report` takes them, and the images that they name."""

    entries: list[dict[str, Any]] = field(default_factory=list)
    images: dict[str, Image.Image] = field(default_factory=dict)

    def add(self, backbone: str, kind: str, question: Question, found: Attribution, edits: dict[str, Edit]) -> None:
        """Add one question."""
        entry = {"backbone": backbone, "kind": kind, "image": self._keep(question.image), **found.to_dict()}
        for one in entry["candidates"][:SHOWN]:
            one["image"] = self._keep(edits[one["edit_id"]].question.image)
        self.entries.append(entry)

    def _keep(self, source: ImageSource | None) -> str:
        assert source is not None
        image = open_image(source)
        image.thumbnail((_LARGEST_SIDE, _LARGEST_SIDE))
        name = f"{image_digest(image)[:12]}.png"
        self.images[name] = image
        return name


def figure_6(
    editor: LiveEdit,
    cases: Sequence[EditCase],
    shown: Entries,
    own: Question | None = None,
    report: TaskProgress = no_task_progress,
) -> None:
    """Make the cases' edits, and ask about the first of them: itself, redrawn, a near-duplicate, another question.

    With `own`, that question is asked instead. Raises `DatasetError` if no case has an image.
    """
    edits = _with_images(cases)
    _make(editor, edits, report)
    asked = [("own question", own)] if own is not None else _questions_of(cases)
    for done, (kind, question) in enumerate(asked, 1):
        shown.add(editor.backbone.name, kind, question, attribution(editor, question, edits, SHOWN), edits)
        report(f"attribution: {editor.backbone.name}", done, len(asked))


def figure_7(
    editor: LiveEdit,
    cases: Sequence[EditCase],
    shown: Entries,
    crowded: int = 12,
    most: int = 2,
    report: TaskProgress = no_task_progress,
) -> str:
    """The hardest questions for the router, with active edits on the same or nearly the same images.

    For the first `crowded` cases, edits of another question on the same image and of the same question on a
    near-duplicate are made as well (with the data set's answers). Of the questions about these cases, at most `most`
    are shown: first those that need both hard and soft routing to reach their own edit, then those that need one; see
    `difficulty`. Returns one sentence with the counts.
    """
    edits = _with_images(cases)
    for case in cases[:crowded]:
        edits |= {f"{case.id}/{name}": edit for name, edit in _related(case)}
    _make(editor, edits, report)
    tried = [
        (case.id, KINDS[probe.name], probe.question)
        for case in cases[:crowded]
        for probe in (case.reliability, *case.named(*_TRIED))
        if probe.question.image is not None
    ]
    found: list[tuple[int, float, int]] = []
    for place, (own, _, question) in enumerate(tried):
        _, ranked = candidates(editor, question, edits)
        found.append((*difficulty(ranked, own), place))
        report(f"searching: {editor.backbone.name}", place + 1, len(tried))
    for place in _hardest(found, [own for own, _, _ in tried])[:most]:
        _, kind, question = tried[place]
        shown.add(editor.backbone.name, kind, question, attribution(editor, question, edits, SHOWN), edits)
    ranks = [rank for rank, _, _ in found]
    return (
        f"{editor.backbone.name}, {len(tried)} questions against {len(edits)} edits: without hard routing another edit "
        f"would have the largest weight for {sum(rank in (2, 3) for rank in ranks)}; another edit's image was nearest, "
        f"and soft routing corrected this, for {sum(rank in (1, 3) for rank in ranks)}; both for {ranks.count(3)}. "
        f"For {ranks.count(-1)} the right edit did not get the largest weight."
    )


def _hardest(found: Sequence[tuple[int, float, int]], cases: Sequence[str]) -> list[int]:
    """Places of the hardest questions, one for each case, the hardest first."""
    places: dict[str, int] = {}
    for _, _, place in sorted(found, key=lambda one: (-one[0], -one[1], one[2])):
        places.setdefault(cases[place], place)
    return list(places.values())


def difficulty(candidates: Sequence[Candidate], own: str) -> tuple[int, float]:
    """(what was needed for the question's own edit to get the largest weight, largest weight of another without it).

    3: both routers; 2: hard routing, without which another edit would have the largest weight; 1: soft routing, since
    another edit's image was nearer; 0: either would suffice. -1: the own edit did not get the largest weight.
    """
    by_id = {one.edit_id: one for one in candidates}
    others = [one for one in candidates if one.edit_id != own]
    mine, weight = by_id[own], max((one.weight_of_all for one in others), default=0.0)
    if mine.weight <= max((one.weight for one in others), default=0.0):
        return -1, weight
    hard = 2 * (weight > mine.weight_of_all)
    soft = candidates[0].edit_id != own
    return hard + soft, weight


def attributable_editor(name: str) -> type[LiveEdit]:
    """The editor of this name. Raises `InvalidInputError` if it does not route by images."""
    kind = editor_class(name)
    if not issubclass(kind, LiveEdit):
        allowed = [other for other in editor_names() if issubclass(editor_class(other), LiveEdit)]
        raise InvalidInputError(f"The editor {name!r} does not route by images. Give one of {', '.join(allowed)}.")
    return kind


def _make(editor: LiveEdit, edits: dict[str, Edit], report: TaskProgress) -> None:
    editor.reset()
    name = editor.backbone.name
    editor.edit(list(edits.items()), progress_of(report, f"editing: {name}"))


def _with_images(cases: Sequence[EditCase]) -> dict[str, Edit]:
    edits = {case.id: case.edit for case in cases if case.edit.question.image is not None}
    if not edits:
        raise DatasetError("None of the cases has an image: there is nothing to attribute. Give data with images.")
    return edits


def _questions_of(cases: Sequence[EditCase]) -> list[tuple[str, Question]]:
    """The questions of figure 6 about the first case that has them all, or else about the case with most of them."""

    def of(case: EditCase) -> list[tuple[str, Question]]:
        probes = {probe.name: probe.question for probe in (*reversed(case.probes), case.reliability)}
        return [(KINDS[name], probes[name]) for name in _FIGURE_6 if name in probes and probes[name].image is not None]

    return max((of(case) for case in cases), key=len)


def _related(case: EditCase) -> Iterator[tuple[str, Edit]]:
    """Edits on this case's image, and on its near-duplicates."""
    for probe in case.named(*_RELATED):
        if probe.answer and probe.question.image is not None:
            yield probe.name, Edit(probe.question, probe.answer)
