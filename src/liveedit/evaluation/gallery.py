"""A gallery: some edits before and after, each with its image, what else it changed, and what it left as it was.

report.md     to read: the figure, and a table of questions for each edit
gallery.json  all questions and answers
gallery.png   the figure, if matplotlib is installed; images/ has the images that it shows
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from PIL import Image

from ..answering import Answering
from ..answers import same_answer
from ..backbones import Backbone
from ..editors.base import Editor
from ..errors import InvalidInputError
from ..files import write_json
from ..images import image_digest, open_image
from ..progress import TaskProgress, no_task_progress, progress_of
from ..samples import LOCALITY, EditCase, ImageSource, ProbeName
from .plotting import COLORS, PlotsUnavailableError, new_figure, plain, save, set_title
from .probing import ask_freely
from .protocol import AskedProbe, answer_limit, probes_of
from .provenance import Row
from .report import origin, ways_of
from .table import Table, markdown_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes

REPORT: Final = "report.md"
NUMBERS: Final = "gallery.json"
FIGURE: Final = "gallery.png"

KINDS: Final[Mapping[ProbeName, str]] = {
    "reliability": "the edit",
    "text_generality": "in other words",
    "modal_generality": "another image of the same",
    "near_duplicate_locality": "a near-duplicate",
    "same_image_locality": "another question about the image",
    "text_locality": "a question without an image",
}
"""The probes that are shown, and what they are called."""

_PICTURED: Final[tuple[ProbeName, ...]] = (
    "reliability",
    "modal_generality",
    "near_duplicate_locality",
    "same_image_locality",
)
_LARGEST_SIDE: Final = 224
_RIGHT, _WRONG = COLORS[2], COLORS[1]


@dataclass(frozen=True)
class ShownQuestion:
    """A question before and after the edits.

    image: its file in images/, None without one. as_wanted: whether the answer is that of the edit, or, where nothing
    may change, the one before. after_undo: the answer once all edits are undone.
    """

    probe: ProbeName
    prompt: str
    image: str | None
    before: str
    after: str
    after_undo: str
    as_wanted: bool


@dataclass(frozen=True)
class ShownEdit:
    """An edit and the questions about it, the edit itself first."""

    edit_id: str
    answer: str
    questions: tuple[ShownQuestion, ...]


@dataclass(frozen=True)
class Gallery:
    """Edits that were active together, and the images of their questions."""

    edits: tuple[ShownEdit, ...]
    images: Mapping[str, Image.Image]

    @property
    def questions(self) -> list[ShownQuestion]:
        """Those of all edits."""
        return [question for edit in self.edits for question in edit.questions]

    @property
    def summary(self) -> str:
        """How many answers are as wanted, in and out of scope, and whether undo brought all of them back."""
        inside = [one for one in self.questions if one.probe not in LOCALITY]
        outside = [one for one in self.questions if one.probe in LOCALITY]
        back = sum(one.after_undo == one.before for one in self.questions)
        return (
            f"{sum(one.as_wanted for one in inside)} of {len(inside)} questions in the scope of an edit get its "
            f"answer; {sum(one.as_wanted for one in outside)} of {len(outside)} others keep theirs. Once all edits are "
            f"undone, {back} of {len(self.questions)} answers are those before."
        )


def make_gallery(
    backbone: Backbone,
    editor: Editor,
    cases: Sequence[EditCase],
    batch: int = 16,
    report: TaskProgress = no_task_progress,
) -> Gallery:
    """Make the edits of the cases, ask before and after, undo all of them, and ask again.

    The first probe of each kind in `KINDS` is asked, except where another of these edits may change its answer. Raises
    `InvalidInputError` without a case.
    """
    if not cases:
        raise InvalidInputError("No case was given, so there is nothing to show. Give at least one.")
    asked = list({(item.case.id, item.probe.name): item for item in reversed(probes_of(cases, KINDS)[0])}.values())
    asked.sort(key=lambda item: list(KINDS).index(item.probe.name))
    probes, limit = [item.probe for item in asked], answer_limit(backbone, cases)

    def answers(task: str, answering: Answering) -> list[str]:
        done = 0

        def count(more: int) -> None:
            nonlocal done
            done += more
            report(task, done, len(probes))

        return [answer.text for answer in ask_freely(answering, probes, limit, batch, count)]

    editor.reset()
    before = answers("asking the unedited model", Answering(backbone))
    editor.edit([(case.id, case.edit) for case in cases], progress_of(report, "editing"))
    after = answers("asking", Answering(backbone, editor))
    editor.reset()
    undone = answers("asking once all edits are undone", Answering(backbone, editor))
    images: dict[str, Image.Image] = {}
    found: dict[str, list[ShownQuestion]] = {case.id: [] for case in cases}
    for item, *texts in zip(asked, before, after, undone, strict=True):
        found[item.case.id].append(_shown(item, images, *texts))
    edits = (ShownEdit(case.id, case.edit.answer, tuple(found[case.id])) for case in cases)
    return Gallery(tuple(edits), images)


def _shown(item: AskedProbe, images: dict[str, Image.Image], before: str, after: str, undone: str) -> ShownQuestion:
    name, question = item.probe.name, item.probe.question
    kept = name in LOCALITY
    wanted = before if kept else str(item.probe.answer)
    image = None if question.image is None else _kept(question.image, images)
    return ShownQuestion(name, question.prompt, image, before, after, undone, same_answer(after, wanted))


def _kept(source: ImageSource, images: dict[str, Image.Image]) -> str:
    image = open_image(source)
    image.thumbnail((_LARGEST_SIDE, _LARGEST_SIDE))
    name = f"{image_digest(image)[:12]}.png"
    images[name] = image
    return name


def write_gallery(gallery: Gallery, folder: Path, title: str, provenance: Row) -> Path:
    """Write figure, images, answers and report into `folder`; returns the path of its report.md.

    provenance: as `Provenance.of_row` gives it. Without matplotlib, or without an image, there is no figure; the report
    then says so.
    """
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for name, image in gallery.images.items():
        image.save(folder / "images" / name)
    edits = [asdict(edit) for edit in gallery.edits]
    write_json(folder / NUMBERS, {"title": title, "edits": edits, "provenance": provenance})
    tables = [_table(number, edit).markdown().rstrip() for number, edit in enumerate(gallery.edits, 1)]
    origins = [f"- {origin(provenance)}", *(f"- {how}" for how in ways_of(provenance))]
    parts = [f"# {markdown_text(title)}", markdown_text(gallery.summary), _figure(gallery, folder, title), *tables]
    report = folder / REPORT
    text = "\n\n".join([*parts, "## Provenance", "\n".join(origins)]) + "\n"
    report.write_text(text, encoding="utf-8", newline="\n")
    return report


def _table(number: int, edit: ShownEdit) -> Table:
    rows = [
        (KINDS[one.probe], one.prompt, one.before or "(nothing)", one.after or "(nothing)", _verdict(one))
        for one in edit.questions
    ]
    header = ("Asked", "Question", "Before", "After", "")
    return Table(f"{number}. {edit.answer}", header, tuple(rows), text_columns=len(header))


def _verdict(one: ShownQuestion) -> str:
    if one.probe in LOCALITY:
        return "as before" if one.as_wanted else "changed"
    return "the edit's answer" if one.as_wanted else "not the edit's answer"


# -- the figure ------------------------------------------------------------------------------------------


def _figure(gallery: Gallery, folder: Path, title: str) -> str:
    """The figure as Markdown, drawn; or why there is none."""
    if not gallery.images:
        return "No figure: no question has an image."
    caption = (
        "Each row is an edit: its image, another image of the same, a near-duplicate, and another question about its "
        "image, with the answers before and after. A green frame is an answer as it should be."
    )
    try:
        draw_gallery(gallery, folder / FIGURE, title)
    except PlotsUnavailableError as error:
        return f"No figure: {error}"
    return f"![{caption}]({FIGURE})\n\n*{caption}*"


def draw_gallery(gallery: Gallery, file: Path, title: str) -> None:
    """A row per edit. Raises `PlotsUnavailableError` without matplotlib."""
    figure = new_figure(0.6 + 2.9 * len(gallery.edits))
    grid = figure.subplots(len(gallery.edits), len(_PICTURED), squeeze=False)
    for edit, panels in zip(gallery.edits, grid, strict=True):
        shown = {one.probe: one for one in edit.questions if one.image is not None}
        for name, panel in zip(_PICTURED, panels, strict=True):
            if name in shown:
                _draw(panel, shown[name], gallery.images)
            else:
                panel.set_axis_off()
    set_title(figure, title)
    save(figure, file, title)


def _draw(panel: Axes, one: ShownQuestion, images: Mapping[str, Image.Image]) -> None:
    color = _RIGHT if one.as_wanted else _WRONG
    panel.imshow(images[str(one.image)], interpolation="nearest")
    panel.set_xticks([])
    panel.set_yticks([])
    panel.spines[:].set(color=color, linewidth=3, visible=True)
    panel.set_title(KINDS[one.probe], fontsize=8)
    answers = f"{one.before or '(nothing)'} → {one.after or '(nothing)'}"
    panel.set_xlabel(plain(f"{textwrap.fill(one.prompt, 34)}\n{textwrap.fill(answers, 34)}"), fontsize=8)
