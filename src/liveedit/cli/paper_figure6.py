"""`liveedit paper figure6` and `figure7`: what LiveEdit looked at."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from .arguments import Json, LoadOptions, loading, named_values
from .console import Progress, console, load_quietly, print_json

if TYPE_CHECKING:
    from ..editors.liveedit import LiveEdit
    from ..experiments.instances import Gallery, Report
    from ..samples import EditCase, Question

_Out = Annotated[Path, typer.Option(help="Folder for the figure, its images, numbers and report.")]
_Data = Annotated[str, typer.Option(help="world, world:SEED, a folder with eval.json, or FORMAT:FILE[:IMAGES].")]
_Editor = Annotated[str, typer.Option(help="liveedit or liveedit-refine.")]
_EditorPaths = Annotated[
    list[str] | None, typer.Option("--editor-path", help="BACKBONE=DIR: a trained editor for a backbone.")
]
_Edits = Annotated[int, typer.Option(min=1, help="Edits in force.")]

_Hang = Callable[["LiveEdit", "Sequence[EditCase]", "Gallery", "Report"], str | None]
"""Makes edits and hangs questions up for one backbone; returns a remark."""


def figure6(
    out: _Out,
    backbone: Annotated[list[str] | None, typer.Option(help="Backbones, several in a row (tiny-llava).")] = None,
    edits: _Edits = 10,
    image: Annotated[Path | None, typer.Option(help="Ask about this image instead.")] = None,
    prompt: Annotated[str | None, typer.Option(help="What to ask about it.")] = None,
    data: _Data = "world",
    editor: _Editor = "liveedit",
    editor_path: _EditorPaths = None,
    load: LoadOptions = None,
    json: Json = False,
) -> None:
    """What a question looked at, which edits passed hard routing, and their soft weights (LiveEdit, figure 6)."""
    load_quietly()
    from ..experiments.instances import figure_6

    own = _own_question(image, prompt)

    def hang(found: LiveEdit, cases: Sequence[EditCase], gallery: Gallery, report: Report) -> None:
        figure_6(found, cases, gallery, own, report)

    names = backbone or ["tiny-llava"]
    title = f"What questions looked at, {edits:,} edits in force (LiveEdit paper, figure 6)"
    _figure(out, title, names, edits, data, editor, editor_path, load, json, hang)


def figure7(
    out: _Out,
    backbone: Annotated[list[str] | None, typer.Option(help="Backbones, several in a row (those of table 1).")] = None,
    edits: _Edits = 100,
    questions: Annotated[int, typer.Option(min=1, help="Questions to show for each backbone.")] = 2,
    data: _Data = "world",
    editor: _Editor = "liveedit",
    editor_path: _EditorPaths = None,
    load: LoadOptions = None,
    json: Json = False,
) -> None:
    """The hardest questions for the router among edits that see nearly the same (LiveEdit, figure 7)."""
    load_quietly()
    from ..experiments.comparison import TABLE_1
    from ..experiments.instances import figure_7

    def hang(found: LiveEdit, cases: Sequence[EditCase], gallery: Gallery, report: Report) -> str:
        return figure_7(found, cases, gallery, shown=questions, report=report)

    names = backbone or list(TABLE_1.backbones)
    title = f"Difficult questions, {edits:,} edits and related ones in force (LiveEdit paper, figure 7)"
    _figure(out, title, names, edits, data, editor, editor_path, load, json, hang)


def _own_question(image: Path | None, prompt: str | None) -> Question | None:
    from ..samples import Question

    if (image is None) != (prompt is None):
        raise typer.BadParameter("--image and --prompt belong together: give both, or neither.")
    return None if image is None or prompt is None else Question(prompt, image)


def _figure(
    out: Path,
    title: str,
    backbones: Sequence[str],
    edits: int,
    data: str,
    editor: str,
    editor_path: list[str] | None,
    load: list[str] | None,
    json: bool,
    hang: _Hang,
) -> None:
    from ..backbones import load_backbone
    from ..datasets.sources import open_data
    from ..errors import InvalidInputError
    from ..experiments.instances import Gallery
    from ..experiments.report.attribution import write_looked_at

    kind, folders = _liveedit_class(editor), named_values(editor_path or [], "--editor-path")
    if stray := sorted(folders.keys() - set(backbones)):
        raise InvalidInputError(f"--editor-path names {', '.join(stray)}; the backbones are {', '.join(backbones)}.")
    gallery, remarks = Gallery(), []
    with Progress() as progress:
        cases = open_data(data, edits, progress.of("drawing")).cases[:edits]
        for name in backbones:
            frozen = load_backbone(name, **loading(load))
            with kind.load(frozen, folders.get(name)) as attached:
                remarks.append(hang(attached, cases, gallery, progress.report))
    told = [remark for remark in remarks if remark]
    report = write_looked_at(gallery.entries, gallery.images, out, title, told)
    if json:
        print_json({"title": title, "remarks": told, "questions": gallery.entries, "report": str(report)})
        return
    screen = console()
    for remark in told:
        screen.print(Text(remark))
    screen.print(Text(f"Report: {report}"))


def _liveedit_class(name: str) -> type[LiveEdit]:
    from ..editors import editor_class
    from ..editors.liveedit import LiveEdit
    from ..errors import InvalidInputError

    kind = editor_class(name)
    if not issubclass(kind, LiveEdit):
        raise InvalidInputError(f"The editor {name!r} routes nothing by images. Give liveedit or liveedit-refine.")
    return kind
