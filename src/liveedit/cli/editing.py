"""`liveedit edit`, `ask` and `edits`: correcting a model, asking it, and taking corrections back."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from .arguments import BackboneName, Json, LoadOptions, loading
from .console import console, load_quietly, note, print_fields, print_json

if TYPE_CHECKING:
    from ..experts.store import StoredEdit

EditsFile = Annotated[Path, typer.Option("--edits", help="The edits file (SQLite).")]
EditorName = Annotated[str, typer.Option("--editor", help="liveedit-refine, or liveedit without refinement.")]
EditorPath = Annotated[
    Path | None,
    typer.Option("--editor-path", help="Folder of a trained editor, where the backbone brings none."),
]
Prompt = Annotated[str, typer.Option("--prompt", help="The question.")]
EditId = Annotated[str, typer.Argument(metavar="ID", help="The edit's id, or its first characters.")]

edits = typer.Typer(no_args_is_help=True, help="List, show and undo the edits of a file.")


def register(app: typer.Typer) -> None:
    """Add these commands."""
    app.command()(edit)
    app.command()(ask)
    app.add_typer(edits, name="edits")


def edit(
    edits: EditsFile,
    prompt: Prompt,
    answer: Annotated[str, typer.Option(help="What the model is to answer from now on.")],
    image: Annotated[Path | None, typer.Option(help="The picture; none for a text-only question.")] = None,
    backbone: BackboneName = "tiny-llava",
    load: LoadOptions = None,
    editor: EditorName = "liveedit-refine",
    editor_path: EditorPath = None,
    json: Json = False,
) -> None:
    """Correct the model: from now on it gives this answer to this question about this picture."""
    load_quietly()
    from ..model import EditedModel

    with EditedModel.load(backbone, edits=edits, editor=editor, editor_path=editor_path, **loading(load)) as model:
        receipt = model.edit(image, prompt, answer)
    if json:
        print_json(receipt.to_dict())
        return
    print_fields(
        {
            "edit": receipt.id,
            "before": receipt.answer_before,
            "after": receipt.answer_after,
            "took": "yes" if receipt.took else f"no: {receipt.answer!r} was asked for",
            "time": f"{receipt.milliseconds:.0f} ms, {receipt.refine_steps} refine steps",
            "size": f"{receipt.store_bytes:,} bytes",
            "undo": f"liveedit edits undo --edits {edits} {receipt.id}",
        }
    )


def ask(
    prompt: Prompt,
    edits: Annotated[Path | None, typer.Option("--edits", help="The edits file; without one, no edits.")] = None,
    image: Annotated[Path | None, typer.Option(help="The picture; without one, a text-only question.")] = None,
    backbone: BackboneName = "tiny-llava",
    load: LoadOptions = None,
    editor: EditorName = "liveedit-refine",
    editor_path: EditorPath = None,
    json: Json = False,
) -> None:
    """Ask the model, with the edits of a file in force."""
    load_quietly()
    from ..backbones import load_backbone
    from ..editors import editor_class
    from ..model import Answer, EditedModel
    from ..samples import Question

    kept = edits if edits is not None and edits.exists() else None  # Asking makes no file.
    if edits is not None and kept is None:
        note(f"There is no edits file {str(edits)!r} yet: no edits are in force.")
    editor_class(editor)
    frozen = load_backbone(backbone, **loading(load))
    if kept is None and editor_path is None:  # Without edits no editor is needed.
        answer = Answer(frozen.generate(frozen.encode([Question(prompt, image)], padding="left"))[0], ())
    else:
        with EditedModel.load(frozen, edits=kept, editor=editor, editor_path=editor_path) as model:
            answer = model.ask(image, prompt)
    if json:
        print_json(answer.to_dict())
        return
    out = console()
    out.print(Text(answer.text or "(the model says nothing)"))
    for fired in answer.fired:
        out.print(Text(f"edit {fired.edit_id}, weight {fired.weight:.2f}", style="dim"))


@edits.command("list")
def list_edits(
    edits: EditsFile,
    all: Annotated[bool, typer.Option("--all", help="Those undone as well.")] = False,
    json: Json = False,
) -> None:
    """The edits in force, oldest first."""
    from ..experts.store import EditStore

    with EditStore(edits, create=False) as store:
        found = store.list(include_undone=all)
    if json:
        print_json({"edits": [_as_dict(stored) for stored in found]})
        return
    table = Table(caption=f"{sum(stored.is_active for stored in found):,} edits in force")
    for name in ("Edit", "Made (UTC)", "Picture", "Question", "Before", "Wanted", "After", "Undone"):
        table.add_column(name, overflow="fold")
    for stored in found:
        answers = (stored.answer_before, stored.answer, stored.answer_after)
        made, undone = _minute(stored.created_at), _minute(stored.undone_at)
        cells = (stored.id, made, stored.image_name, stored.prompt, *answers, undone)
        table.add_row(*(Text(cell or "") for cell in cells))
    console().print(table)


@edits.command("show")
def show_edit(edit_id: EditId, edits: EditsFile, json: Json = False) -> None:
    """Everything the file says of one edit."""
    from ..experts.store import EditStore

    with EditStore(edits, create=False) as store:
        stored = store.get(edit_id)
        history = [asdict(event) for event in store.history() if event.edit_id == stored.id]
        described = {**_as_dict(stored), "store_bytes": stored.expert.store_bytes}
    if json:
        print_json({**described, "history": history})
        return
    print_fields({**described, "history": "; ".join(f"{event['kind']} at {event['at']}" for event in history)})


@edits.command("undo")
def undo_edit(edit_id: EditId, edits: EditsFile, json: Json = False) -> None:
    """Take an edit back: the model is as if it had never been made."""
    from ..experts.store import EditStore

    with EditStore(edits, create=False) as store:
        undone = store.undo(edit_id)
        left = len(store)
    if json:
        print_json({**_as_dict(undone), "edits_in_force": left})
        return
    console().print(Text(f"Edit {undone.id} is undone: {undone.prompt!r} ({left:,} edits in force)."))


def _as_dict(stored: StoredEdit) -> dict[str, Any]:
    return {**asdict(stored), "in_force": stored.is_active}


def _minute(moment: str | None) -> str | None:
    return moment and moment[:16].replace("T", " ")
