"""Instance analysis, figures 6 and 7 of the LiveEdit paper: single questions, and what routing made of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from PIL import Image

from ..editors.liveedit import LiveEdit
from ..editors.liveedit.attribution import Attribution, Candidate, attribution, candidates
from ..errors import DatasetError
from ..images import image_digest, open_image
from ..samples import Edit, EditCase, ImageSource, ProbeName, Question
from .report.attribution import SHOWN

Report = Callable[[str, int, int], None]
"""Called with what is going on, how much of it is done, and how much there is."""

KINDS: Final[dict[ProbeName, str]] = {
    "reliability": "the edit itself",
    "text_generality": "asked in other words",
    "modal_generality": "another image of the same",
    "near_duplicate_locality": "a near-duplicate",
    "same_image_locality": "another question on the image",
    "same_question_locality": "this question on another image",
    "modal_locality": "another image, another question",
}
"""What stands in the figures for each probe with an image."""

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
class Gallery:
    """Entries of a figure as `evaluation.looked_at` takes them, and the images that they name."""

    entries: list[dict[str, Any]] = field(default_factory=list)
    images: dict[str, Image.Image] = field(default_factory=dict)

    def add(self, backbone: str, kind: str, question: Question, found: Attribution, edits: dict[str, Edit]) -> None:
        """Hang up one question."""
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
    gallery: Gallery,
    own: Question | None = None,
    report: Report = lambda what, done, total: None,
) -> None:
    """Make the cases' edits, and ask about the first of them: itself, redrawn, a near-duplicate, another question.

    With `own`, that question is asked instead. Raises `DatasetError` where no case has an image.
    """
    edits = _with_images(cases)
    _make(editor, edits, report)
    asked = [("own question", own)] if own is not None else _questions_of(cases)
    for done, (kind, question) in enumerate(asked, 1):
        gallery.add(editor.backbone.name, kind, question, attribution(editor, question, edits, SHOWN), edits)
        report(f"looking: {editor.backbone.name}", done, len(asked))


def figure_7(
    editor: LiveEdit,
    cases: Sequence[EditCase],
    gallery: Gallery,
    crowded: int = 12,
    shown: int = 2,
    report: Report = lambda what, done, total: None,
) -> str:
    """The hardest questions for the router, with edits in force that share much of what they see.

    To the cases' edits come, for the first `crowded` of them, edits of another question on the same image and of the
    same question on a near-duplicate (their answers are the data set's). Of the questions about these cases, those are
    shown that hard or soft routing alone would have sent to another edit, both before either; see `difficulty`.
    Returns one sentence that counts them.
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
    for place in _hardest(found, [own for own, _, _ in tried])[:shown]:
        _, kind, question = tried[place]
        gallery.add(editor.backbone.name, kind, question, attribution(editor, question, edits, SHOWN), edits)
    ranks = [rank for rank, _, _ in found]
    return (
        f"{editor.backbone.name}, {len(tried)} questions against {len(edits)} edits: without hard routing another edit "
        f"would have weighed most for {sum(rank in (2, 3) for rank in ranks)}; another edit's image was nearest, and "
        f"soft routing put that right, for {sum(rank in (1, 3) for rank in ranks)}; both for {ranks.count(3)}. "
        f"Both routers together did not send {ranks.count(-1)} to the right edit."
    )


def _hardest(found: Sequence[tuple[int, float, int]], cases: Sequence[str]) -> list[int]:
    """Places of the hardest questions, one for each case, the hardest first."""
    places: dict[str, int] = {}
    for _, _, place in sorted(found, key=lambda one: (-one[0], -one[1], one[2])):
        places.setdefault(cases[place], place)
    return list(places.values())


def difficulty(candidates: Sequence[Candidate], own: str) -> tuple[int, float]:
    """(what had to come together for the own edit to get most of the weight, most weight that another would have had).

    3: both routers; 2: hard routing, without which another edit would have got most; 1: soft routing, for another
    edit's image was nearer; 0: either would have done. -1: the own edit did not get most of the weight.
    """
    by_id = {one.edit_id: one for one in candidates}
    others = [one for one in candidates if one.edit_id != own]
    mine, weight = by_id[own], max((one.weight_of_all for one in others), default=0.0)
    if mine.weight <= max((one.weight for one in others), default=0.0):
        return -1, weight
    hard = 2 * (weight > mine.weight_of_all)
    soft = candidates[0].edit_id != own
    return hard + soft, weight


def _make(editor: LiveEdit, edits: dict[str, Edit], report: Report) -> None:
    editor.reset()
    name = editor.backbone.name
    editor.edit(list(edits.items()), lambda done, total: report(f"editing: {name}", done, total))


def _with_images(cases: Sequence[EditCase]) -> dict[str, Edit]:
    edits = {case.id: case.edit for case in cases if case.edit.question.image is not None}
    if not edits:
        raise DatasetError("None of the cases has an image: there is nothing to look at. Give data with images.")
    return edits


def _questions_of(cases: Sequence[EditCase]) -> list[tuple[str, Question]]:
    """The questions of figure 6 about the first case that has them all, or else about the one with most of them."""

    def of(case: EditCase) -> list[tuple[str, Question]]:
        probes = {probe.name: probe.question for probe in (*reversed(case.probes), case.reliability)}
        return [(KINDS[name], probes[name]) for name in _FIGURE_6 if name in probes and probes[name].image is not None]

    return max((of(case) for case in cases), key=len)


def _related(case: EditCase) -> Iterator[tuple[str, Edit]]:
    """Edits that see what this case's edit sees, or nearly."""
    for probe in case.named(*_RELATED):
        if probe.answer and probe.question.image is not None:
            yield probe.name, Edit(probe.question, probe.answer)
