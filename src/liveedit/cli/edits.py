"""`liveedit edits`: list, show, undo, redo, move, verify and purge stored edits. Needs neither torch nor a model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.table import Table
from rich.text import Text

from .arguments import Author, EditsLocation, Json, Note
from .console import console, print_fields, print_json
from .editing import described_evidence, edit

if TYPE_CHECKING:
    from ..store.store import EditStore, Imported, StoredEdit

EditId = Annotated[str, typer.Argument(metavar="ID", help="The edit's id, or its first characters.")]

edits = typer.Typer(no_args_is_help=True, help="Make, list, show, undo, redo, move and verify the edits of a file.")


def register(app: typer.Typer) -> None:
    """Add these commands."""
    edits.command("add")(edit)
    app.add_typer(edits, name="edits")


@edits.command("list")
def list_edits(
    edits: EditsLocation,
    all: Annotated[bool, typer.Option("--all", help="Include undone and purged edits.")] = False,
    at: Annotated[int | None, typer.Option("--at", help="A revision: the edits that were active after it.")] = None,
    json: Json = False,
) -> None:
    """List the active edits, oldest first."""
    with _opened(edits) as store:
        revision = store.latest_revision() if at is None else at
        found = store.list(include_undone=all, at=at)
    if json:
        print_json({"revision": revision, "edits": [_as_dict(stored) for stored in found]})
        return
    active = sum(stored.is_active for stored in found) if at is None else len(found)
    table = Table(caption=f"Active edits: {active:,}" + (f" after revision {at}" if at is not None else ""))
    for name in ("Edit", "Made (UTC)", "Author", "Image", "Question", "Before", "Wanted", "After", "Undone"):
        table.add_column(name, overflow="fold")
    for stored in found:
        answers = (stored.answer_before, stored.answer, stored.answer_after)
        made, undone = _minute(stored.created_at), _minute(stored.undone_at)
        cells = (stored.id, made, stored.author, stored.image_name, stored.prompt, *answers, undone)
        table.add_row(*(Text(cell or "") for cell in cells))
    console().print(table)


@edits.command("show")
def show_edit(edit_id: EditId, edits: EditsLocation, json: Json = False) -> None:
    """Show everything that is stored about one edit."""
    from ..store.validation import expert_store_bytes

    with _opened(edits) as store:
        stored = store.get(edit_id)
        history = [asdict(event) for event in store.history(stored.id)]
        size = expert_store_bytes(stored.expert) if stored.purged_at is None else 0
    described = {**_as_dict(stored), "store_bytes": size}
    if json:
        print_json({**described, "history": history})
        return
    del described["evidence"]
    if stored.evidence is not None:
        described |= described_evidence(stored.evidence, stored.answer)
    lines = (f"{event['kind']} at {event['at']} (revision {event['revision']})" for event in history)
    print_fields({**described, "history": "; ".join(lines)})


@edits.command("undo")
def undo_edit(
    edit_id: EditId, edits: EditsLocation, author: Author = None, why: Note = None, json: Json = False
) -> None:
    """Undo an edit: the model answers as if it had never been made."""
    with _opened(edits) as store:
        undone = store.undo(edit_id, author=author, note=why)
        _print_change(undone, len(store), "is undone", json)


@edits.command("redo")
def redo_edit(
    edit_id: EditId, edits: EditsLocation, author: Author = None, why: Note = None, json: Json = False
) -> None:
    """Activate an undone edit again, as it was."""
    with _opened(edits) as store:
        redone = store.redo(edit_id, alone=True, author=author, note=why)
        _print_change(redone, len(store), "is active again", json)


@edits.command("history")
def show_history(
    edits: EditsLocation,
    edit_id: Annotated[str | None, typer.Argument(metavar="[ID]", help="Only the changes of this edit.")] = None,
    json: Json = False,
) -> None:
    """List every change that was ever made, oldest first, by revision."""
    with _opened(edits) as store:
        events = store.history(edit_id)
    if json:
        print_json({"history": [asdict(event) for event in events]})
        return
    table = Table(caption=_counted(len(events), "change"))
    for name in ("Revision", "When (UTC)", "What", "Edit", "Author", "Note"):
        table.add_column(name, overflow="fold")
    for event in events:
        when = _minute(event.at)
        cells = (str(event.revision), when, event.kind, event.edit_id, event.author, event.note)
        table.add_row(*(Text(cell or "") for cell in cells))
    console().print(table)


@edits.command("export")
def export_edits(
    bundle: Annotated[Path, typer.Argument(metavar="FILE", help="The bundle to write, such as edits.safetensors.")],
    edits: EditsLocation,
    active: Annotated[
        bool, typer.Option("--active", help="Only active edits, without undone edits and history.")
    ] = False,
    json: Json = False,
) -> None:
    """Write the edits, their experts and their history to one file."""
    with _opened(edits) as store:
        contents = store.export_bundle(bundle, whole=not active)
    done = {"bundle": str(bundle), "edits": len(contents.edits), "revision": contents.revision}
    if json:
        print_json(done)
        return
    written = _counted(len(contents.edits), "edit")
    console().print(Text(f"Wrote {written} at revision {contents.revision} to {bundle}."))


@edits.command("import")
def import_edits(
    bundle: Annotated[Path, typer.Argument(metavar="FILE", help="The bundle that `edits export` wrote.")],
    edits: EditsLocation,
    on_conflict: Annotated[
        Literal["refuse", "supersede", "keep"],
        typer.Option(
            help="If an edit has another answer than an active edit of the same question: refuse imports nothing and "
            "lists both; supersede replaces the active one until the imported one is undone; keep leaves both active.",
        ),
    ] = "refuse",
    json: Json = False,
) -> None:
    """Import the edits of a bundle: all of them or none. The edits file is created if it does not exist."""
    from ..store.store import EditStore

    with EditStore(edits) as store:
        done = store.import_bundle(bundle, on_conflict=on_conflict)
        left = len(store)
    if json:
        print_json({**asdict(done), "active_edits": left})
        return
    for line in _import_report(done, left, kept=on_conflict == "keep"):
        console().print(Text(line))


def _import_report(done: Imported, left: int, kept: bool) -> Iterator[str]:
    there, purged = len(done.already_there), len(done.purged_here)
    yield (
        f"Imported {_counted(len(done.added), 'edit')}; {there:,} {'was' if there == 1 else 'were'} there already, "
        f"{purged:,} {'was purged here and stays' if purged == 1 else 'were purged here and stay'} purged (active "
        f"edits: {left:,})."
    )
    if done.repeated:
        repeated = _counted(len(done.repeated), "imported edit")
        yield f"{repeated} superseded an active edit of the same question with the same answer."
    if done.contradictions:
        what = "all stay active" if kept else "the later edit superseded the earlier"
        yield f"{_counted(len(done.contradictions), 'contradiction')}; {what}:"
        yield from map(str, done.contradictions)


@edits.command("verify")
def verify_edits(edits: EditsLocation, json: Json = False) -> None:
    """Recompute every digest and compare edits with history; the exit code is 1 if a problem is found.

    Active edits that contradict one another are no problem. They are listed as notes if there is no problem.
    """
    with _opened(edits) as store:
        problems = store.verify()
        contradictions = () if problems else store.contradictions()
        checked = len(store.list(include_undone=True))
    if json:
        found = [asdict(contradiction) for contradiction in contradictions]
        print_json({"edits": checked, "problems": list(problems), "ok": not problems, "contradictions": found})
    else:
        for line in (*problems, *(f"Note: different answers to {note}" for note in contradictions)):
            console().print(Text(line))
        result = _counted(len(problems), "problem") if problems else "all is well"
        console().print(Text(f"{_counted(checked, 'edit')} checked: {result}."))
    if problems:
        raise typer.Exit(1)


@edits.command("purge")
def purge_edit(
    edit_id: EditId,
    edits: EditsLocation,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation.")] = False,
    author: Author = None,
    why: Note = None,
    json: Json = False,
) -> None:
    """Delete the content of an edit for good, also from the bytes of the file. This cannot be undone."""
    with _opened(edits) as store:
        stored = store.get(edit_id)
        if not yes:
            typer.confirm(f"Delete edit {stored.id} ({stored.prompt!r}) for good?", abort=True, err=True)
        purged = store.purge(stored.id, author=author, note=why)
        left = len(store)
    if json:
        print_json({**_as_dict(purged), "active_edits": left})
        return
    console().print(Text(f"Edit {purged.id} is purged (active edits: {left:,})."))


def _opened(edits: str) -> EditStore:
    from ..store.store import EditStore

    return EditStore(edits, create=False)


def _print_change(stored: StoredEdit, left: int, what: str, json: bool) -> None:
    if json:
        print_json({**_as_dict(stored), "active_edits": left})
        return
    console().print(Text(f"Edit {stored.id} {what}: {stored.prompt!r} (active edits: {left:,})."))


def _as_dict(stored: StoredEdit) -> dict[str, Any]:
    evidence = None if stored.evidence is None else stored.evidence.to_dict(stored.answer)
    return {**asdict(stored), "evidence": evidence, "active": stored.is_active}


def _counted(number: int, what: str) -> str:
    """The number and a noun, such as "1 edit" or "2 edits"."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _minute(moment: str | None) -> str | None:
    return moment and moment[:16].replace("T", " ")
