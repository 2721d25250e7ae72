"""`liveedit demo`: three edits of images, one of them undone, then many edits measured by the bench.

The three edits are the first of their kind in the held-out world, not chosen for success, and every answer is shown as
the model gave it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import torch
from PIL import Image, ImageOps
from rich.console import Console
from rich.text import Text

from .answers import same_answer
from .backbones import Backbone, load_backbone
from .datasets.sources import NamedData, open_data
from .edited.model import EditedModel
from .editors import editor_class
from .errors import DatasetError
from .evaluation.bench import Bench, BenchConfig
from .evaluation.provenance import Row, make_provenance
from .evaluation.report import render, write_report
from .evaluation.table import Table, markdown_text
from .files import write_text
from .images import open_image
from .progress import TaskProgress, no_task_progress, progress_of
from .registry import DEFAULT_TRAINED_EDITOR
from .samples import EditCase, Question

BACKBONE: Final = "tiny-llava"
BENCH_EDITOR: Final = DEFAULT_TRAINED_EDITOR
ENLARGED: Final = 4
DRAWN = 1_200
"""The least number of cases to draw: enough for 1,000 edits and for an example of each kind."""

_KINDS: Final[tuple[tuple[str, bool, str], ...]] = (
    ("name", False, "the name of a creature that the model has never seen"),
    ("home", True, "another home for a creature that the model knows"),
    ("hat_color", True, "another colour for the hat in one image"),
)
"""(answer type, whether the model had an answer, what is edited) of the three examples."""

_MUST_FOLLOW: Final = {
    "reliability": "the edit",
    "text_generality": "asked in other words",
    "modal_generality": "another image of the same thing",
}
_MUST_STAY: Final = {
    "same_image_locality": "another question on this image",
    "same_question_locality": "this question on another image",
    "near_duplicate_locality": "this question on a near-duplicate",
    "modal_locality": "another image, another question",
    "text_locality": "a question without an image",
}


@dataclass(frozen=True)
class AskedQuestion:
    """One question of an example, with the answers before and after the edit."""

    what: str
    prompt: str
    before: str
    after: str
    wanted: str
    """The edit's answer if the question is in its scope, else the answer before the edit."""
    undone: str | None = None
    """The answer after the edit was undone."""

    @property
    def right(self) -> bool:
        """Whether the answer after the edit is the expected one."""
        return same_answer(self.after, self.wanted)


@dataclass(frozen=True)
class Example:
    """One edit of the demo."""

    title: str
    case: EditCase
    asked: tuple[AskedQuestion, ...]
    milliseconds: float
    refine_steps: int
    restored: bool | None = None
    """Whether undoing it restored the logits bit for bit; None if it was not undone."""

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        asked = [{**asdict(item), "right": item.right} for item in self.asked]
        figures = {
            "milliseconds": self.milliseconds,
            "refine_steps": self.refine_steps,
            "restored": self.restored,
        }
        return {
            "title": self.title,
            "case": self.case.id,
            "answer": self.case.edit.answer,
            **figures,
            "asked": asked,
        }


def run_demo(
    folder: Path,
    edits: int,
    editor_path: Path | None,
    console: Console,
    report: TaskProgress = no_task_progress,
    command: str | None = None,
) -> dict[str, Any]:
    """Run the demo into a folder; returns examples, rows of the bench, the report's path and the seconds it took.

    command: the command line as it was typed, for the provenance of the rows.
    """
    started = time.monotonic()
    data = open_data("world", edits, progress_of(report, "drawing images"), DRAWN)
    backbone = load_backbone(BACKBONE)
    console.print(Text(f"{BACKBONE} is loaded; its weights are never changed.\n"))
    chosen = example_cases(data.cases)
    with EditedModel.load(backbone, editor_path=editor_path) as model:
        examples = edit_examples(model, chosen)
    for number, example in enumerate(examples, 1):
        console.print(_example_table(number, example))
    console.print(Text(f"{_undo_sentence(examples[-1])}\n"))
    rows = measure_edits(backbone, data, edits, editor_path, folder, report, command)
    file = write_demo_report(folder, examples, rows)
    console.print(render(rows, title=_bench_title(edits)))
    seconds = time.monotonic() - started
    console.print(Text(f"\nReport with images: {file} ({seconds:.0f} s in all)"))
    return {
        "examples": [example.to_dict() for example in examples],
        "rows": rows,
        "report": str(file),
        "seconds": round(seconds, 1),
    }


# -- three examples --------------------------------------------------------------------------------------


def example_cases(cases: Sequence[EditCase]) -> list[tuple[str, EditCase]]:
    """The first case of each kind in `_KINDS`, with what is edited. Raises `DatasetError` if a kind is missing."""
    found = []
    for answer_type, known, title in _KINDS:
        matching = (case for case in cases if case.answer_type == answer_type and bool(case.answer_before) == known)
        case = next(matching, None)
        if case is None:
            raise DatasetError(f"The world has no case of {title}. Draw more cases.")
        found.append((title, case))
    return found


def edit_examples(model: EditedModel, chosen: Sequence[tuple[str, EditCase]]) -> list[Example]:
    """Make these edits in turn, ask all questions, and undo the last edit."""
    before = [_ask(model, case) for _, case in chosen]
    receipts = []
    logits = torch.empty(0)
    for _, case in chosen:
        question = case.edit.question
        logits = _logits(model, question)
        assert question.image is not None
        receipts.append(model.edit(question.image, question.prompt, case.edit.answer, must_take=False))
    after = [_ask(model, case) for _, case in chosen]
    last = chosen[-1][1]
    model.undo(receipts[-1].id)
    undone = _ask(model, last)
    restored = torch.equal(_logits(model, last.edit.question), logits)
    examples = []
    for index, (title, case) in enumerate(chosen):
        is_last = index == len(chosen) - 1
        asked = _compare(case, before[index], after[index], undone if is_last else None)
        cost = receipts[index]
        examples.append(
            Example(title, case, asked, cost.milliseconds, cost.refine_steps, restored if is_last else None)
        )
    return examples


def _questions(case: EditCase) -> list[tuple[str, Question]]:
    """(probe name, question) of all questions about a case, the edit first."""
    named = {probe.name: probe.question for probe in (case.reliability, *case.probes)}
    return [(name, named[name]) for name in (*_MUST_FOLLOW, *_MUST_STAY) if name in named]


def _ask(model: EditedModel, case: EditCase) -> list[str]:
    asked = [(question.image, question.prompt) for _, question in _questions(case)]
    return [answer.text for answer in model.ask_batch(asked)]


def _compare(
    case: EditCase, before: Sequence[str], after: Sequence[str], undone: Sequence[str] | None
) -> tuple[AskedQuestion, ...]:
    names = {**_MUST_FOLLOW, **_MUST_STAY}
    back = undone or [None] * len(before)
    return tuple(
        AskedQuestion(names[name], question.prompt, was, now, case.edit.answer if name in _MUST_FOLLOW else was, again)
        for (name, question), was, now, again in zip(_questions(case), before, after, back, strict=True)
    )


def _logits(model: EditedModel, question: Question) -> torch.Tensor:
    with torch.inference_mode():
        return model.backbone.logits(model.backbone.encode([question]))


def _example_table(number: int, example: Example) -> Table:
    undone = example.restored is not None
    rows = tuple(
        (
            item.what,
            item.prompt,
            item.before,
            item.after,
            "yes" if item.right else f"no ({item.wanted})",
            *((item.undone or "",) if undone else ()),
        )
        for item in example.asked
    )
    header = (
        "Asked",
        "Question",
        "Before",
        "After the edit",
        "As expected",
        *(("After undo",) if undone else ()),
    )
    note = (
        f"Made in {example.milliseconds:.0f} ms"
        + (f" with {example.refine_steps} refine steps" if example.refine_steps else "")
        + ". The first three must follow the edit, the others must not change."
    )
    title = f"Edit {number}: {example.title}: {example.case.edit.answer!r}"
    return Table(title, header, rows, (note,), text_columns=len(header))


def _undo_sentence(example: Example) -> str:
    bits = "are bit for bit" if example.restored else "are NOT"
    same = sum(item.undone == item.before for item in example.asked)
    return (
        f"The last edit was undone: {same} of its {len(example.asked)} answers are those from before it, and "
        f"the logits of its question {bits} what they were."
    )


# -- many edits ---------------------------------------------------------------------------------


def measure_edits(
    backbone: Backbone,
    data: NamedData,
    edits: int,
    editor_path: Path | None,
    folder: Path,
    report: TaskProgress,
    command: str | None,
) -> list[Row]:
    """The bench of one editor at this number of edits, seed 0."""
    source = None if editor_path is None else str(editor_path)
    config = BenchConfig.model_validate(
        {"backbone": backbone.name, "data": data.name, "edits": (edits,), "few_edits_cases": 1}
    )
    provenance = make_provenance(backbone, data.files, data.selection, command)
    bench = Bench(backbone, data.cases, config, folder, provenance, report)
    return bench.run([(BENCH_EDITOR, lambda frozen: editor_class(BENCH_EDITOR).load(frozen, source))])


def _bench_title(edits: int) -> str:
    return f"{edits:,} edits, one after the other, all measured at the end"


# -- the report ------------------------------------------------------------------------------------------


def write_demo_report(folder: Path, examples: Sequence[Example], rows: Sequence[Row]) -> Path:
    """The bench's report with the examples and their images, enlarged, before it; returns report.md."""
    file = write_report(rows, folder, title=_bench_title(int(rows[0]["edits"])))
    parts = ["# LiveEdit: a demonstration"]
    for number, example in enumerate(examples, 1):
        image = folder / f"example-{number}.png"
        _strip(example.case).save(image)
        caption = "the edited image; the same thing again; a near-duplicate; another image"
        parts += [
            _example_table(number, example).markdown().rstrip(),
            f"![{caption}]({image.name})",
            f"*{caption}*",
        ]
    parts += [markdown_text(_undo_sentence(examples[-1])), file.read_text(encoding="utf-8").rstrip()]
    write_text(file, "\n\n".join(parts) + "\n")
    return file


def _strip(case: EditCase) -> Image.Image:
    """The images of a case side by side, enlarged without smoothing."""
    named = {probe.name: probe.question.image for probe in (case.reliability, *case.probes)}
    wanted = ("reliability", "modal_generality", "near_duplicate_locality", "same_question_locality")
    sources = [source for name in wanted if (source := named.get(name)) is not None]
    images = [ImageOps.scale(open_image(source), ENLARGED, Image.Resampling.NEAREST) for source in sources]
    gap = 2 * ENLARGED
    width = sum(image.width for image in images) + gap * (len(images) - 1)
    strip = Image.new("RGB", (width, max(image.height for image in images)), "white")
    left = 0
    for image in images:
        strip.paste(image, (left, 0))
        left += image.width + gap
    return strip
