"""`liveedit check`: do the edits in force still hold?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from .arguments import BackboneName, EditorName, EditorPath, EditsLocation, ExpertsOn, Json, LoadOptions, loading
from .console import InterruptedRunError, Progress, console, load_quietly, print_json

if TYPE_CHECKING:
    from ..edited.recheck import CheckedEdit


def register(app: typer.Typer) -> None:
    """Add these commands."""
    app.command()(check)


def check(
    edits: EditsLocation,
    ids: Annotated[list[str] | None, typer.Argument(metavar="[ID]...", help="Only these edits.")] = None,
    backbone: BackboneName = "tiny-llava",
    load: LoadOptions = None,
    editor: EditorName = "liveedit-refine",
    editor_path: EditorPath = None,
    experts_on: ExpertsOn = "device",
    batch: Annotated[int, typer.Option(min=1, help="How many questions are asked at once.")] = 16,
    json: Json = False,
) -> None:
    """Ask all edits in force again and name those that no longer hold; the exit code is 1 where there are any."""
    load_quietly()
    from ..edited.model import EditedModel
    from ..store.locations import is_absent
    from ..store.store import EditStore

    if is_absent(edits):
        EditStore(edits, create=False).close()  # Says that there is none, before anything is loaded.
    options = {"edits": edits, "editor": editor, "editor_path": editor_path, "experts_on": experts_on, **loading(load)}
    found: list[CheckedEdit] = []
    with EditedModel.load(backbone, **options) as model:
        chosen = [model.store.get(edit_id) for edit_id in ids] if ids else list(model.edits())
        try:
            with Progress() as progress:
                for checked in model.check(chosen, batch=batch):
                    found.append(checked)
                    progress.report("edits", len(found), len(chosen))
        except KeyboardInterrupt as interruption:
            _show(found, len(chosen), json)
            raise InterruptedRunError(f"Interrupted after {len(found)} of {len(chosen)} edits.") from interruption
    _show(found, len(chosen), json)
    if any(checked.holds is False for checked in found):
        raise typer.Exit(1)


def _show(found: list[CheckedEdit], wanted: int, json: bool) -> None:
    counts = {
        "edits": wanted,
        "checked": len(found),
        "holding": sum(checked.holds is True for checked in found),
        "failing": sum(checked.holds is False for checked in found),
        "unknown": sum(checked.holds is None for checked in found),
    }
    if json:
        print_json({**counts, "results": [checked.to_dict() for checked in found]})
        return
    listed = [checked for checked in found if not checked.holds]
    if listed:
        from ..answers import above_threshold

        table = Table()
        for name in ("Edit", "Question", "Wanted", "Now", "Asked about", "Other edits that fired"):
            table.add_column(name, overflow="fold")
        for checked in listed:
            others = ", ".join(f"{other.edit_id} ({other.weight:.2f})" for other in above_threshold(checked.others))
            now = "not asked: its image was not kept" if checked.answer_now is None else checked.answer_now
            about = {"image": "its image", "thumbnail": "its thumbnail", "text": "text"}.get(checked.asked_about)
            cells = (checked.edit_id, checked.prompt, checked.answer, now, about or "", others)
            table.add_row(*(Text(cell) for cell in cells))
        console().print(table)
    console().print(
        Text(
            f"{counts['holding']:,} of {len(found):,} edits hold, {counts['failing']:,} do not, {counts['unknown']:,} "
            "could not be asked."
        )
    )
