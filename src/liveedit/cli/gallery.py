"""`liveedit gallery`: some edits before and after, with their images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from .arguments import loading, named_values
from .console import ProgressDisplay, console, load_quietly, print_json
from .measuring import Data, EditorPaths, editor_makers, opened_for
from .options import BackboneName, Batch, Json, LoadOptions


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(gallery)


def gallery(
    out: Annotated[Path, typer.Option("--out", help="Folder for the figure, its images, answers and report.")],
    editor: Annotated[str, typer.Option("--editor", help="The editor; LABEL=NAME shows it under another label.")],
    edits: Annotated[int, typer.Option("--edits", min=1, help="Edits, active together.")] = 10,
    data: Data = "world",
    backbone: BackboneName = "tiny-llava",
    load: LoadOptions = None,
    editor_path: EditorPaths = None,
    batch: Batch = 16,
    json: Json = False,
) -> None:
    """Show some edits before and after: what each changed, what it left as it was, and that undo brings all back."""
    load_quietly()
    from ..evaluation.bench import backbone_name
    from ..evaluation.gallery import make_gallery, write_gallery
    from ..evaluation.provenance import Stopwatch

    ((label, make),) = makers = editor_makers([editor], named_values(editor_path, "--editor-path"))
    watch = Stopwatch()
    with ProgressDisplay() as progress:
        frozen, found, provenance = opened_for(makers, data, backbone, loading(load), edits, progress)
        with make(frozen) as attached:
            shown = make_gallery(frozen, attached, found.cases[:edits], batch, progress.report)
            config = {"editor": attached.configuration(), "editor_digest": attached.digest(), "edits": len(shown.edits)}
            row = provenance.of_row(config, watch.started)
    title = f"{len(shown.edits):,} edits of {backbone_name(backbone)}, before and after: {label}"
    report = write_gallery(shown, out, title, row)
    if json:
        print_json({"summary": shown.summary, "report": str(report)})
    else:
        console().print(Text(f"{shown.summary}\nReport: {report}"))
