"""`liveedit edits`: list, show, undo, redo, move, compare, verify and purge stored edits, without torch or a model.

`add` and `near` alone need a model: they are in `adding.py` and `near.py`. `push` and `pull` need a hub: they are in
`sharing.py`.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.table import Table
from rich.text import Text

from .adding import add_edits
from .console import console, counted, note, print_fields, print_json
from .editing import described_evidence
from .near import near_edits
from .options import Author, EditId, EditsLocation, Json, Note, OnConflict
from .sharing import import_bundle, pull_edits, push_edits

if TYPE_CHECKING:
    from ..store.store import EditStore, StoredEdit

Compared = Annotated[
    str,
    typer.Argument(metavar="EDITS[@REVISION]", help="An edits file or the URL of a database, now or at a revision."),
]

edits = typer.Typer(
    no_args_is_help=True, help="Make, list, show, undo, redo, move, compare and verify the edits of a file."
)


def register(app: typer.Typer) -> None:
    """Add these commands."""
    edits.command("add")(add_edits)
    edits.command("near")(near_edits)
    edits.command("push")(push_edits)
    edits.command("pull")(pull_edits)
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
        hidden = 0 if found or all or at is not None else len(store.list(include_undone=True))
    if json:
        print_json({"revision": revision, "edits": [_as_dict(stored) for stored in found]})
        return
    if not found:
        console().print(Text(_nothing_listed(all, at, hidden)))
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


def _nothing_listed(all: bool, at: int | None, hidden: int) -> str:
    """The sentence in place of an empty list. hidden: the number of edits that --all would list."""
    if at is not None:
        return f"No edit was active after revision {at}."
    if all:
        return "There are no edits yet."
    if not hidden:
        return "There are no edits yet. `liveedit edit` makes one."
    return f"No edit is active. --all lists {counted(hidden, 'edit')} undone or purged."


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
    if not events:
        console().print("There are no changes yet.")
        return
    table = Table(caption=counted(len(events), "change"))
    for name in ("Revision", "When (UTC)", "What", "Edit", "Author", "Note"):
        table.add_column(name, overflow="fold")
    for event in events:
        when = _minute(event.at)
        cells = (str(event.revision), when, event.kind, event.edit_id, event.author, event.note)
        table.add_row(*(Text(cell or "") for cell in cells))
    console().print(table)


@edits.command("export")
def export_edits(
    file: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="The file to write, such as edits.safetensors, edits.jsonl, edits.csv."),
    ],
    edits: EditsLocation,
    format: Annotated[
        Literal["bundle", "edits", "easyedit"] | None,
        typer.Option(
            help="bundle: edits with experts and history; edits: the active edits as rows; easyedit: as EasyEdit's "
            "requests. By default edits for .jsonl, .csv and .json, and bundle for .safetensors or no ending.",
        ),
    ] = None,
    active: Annotated[
        bool, typer.Option("--active", help="Of a bundle: only active edits, without undone edits and history.")
    ] = False,
    at: Annotated[
        int | None, typer.Option("--at", help="Of rows: the edits that were active after this revision.")
    ] = None,
    json: Json = False,
) -> None:
    """Write the edits to a bundle that another edits file can import, or as rows with their images beside them."""
    kind = format or _kind_by_name(file)
    if kind != "bundle":
        _export_rows(file, edits, kind, at, json)
        return
    if at is not None:
        raise typer.BadParameter("--at is for rows: a bundle has the history. Give --format edits, or leave it out.")
    with _opened(edits) as store:
        contents = store.export_bundle(file, whole=not active)
    done = {"bundle": str(file), "edits": len(contents.edits), "revision": contents.revision}
    if json:
        print_json(done)
        return
    written = counted(len(contents.edits), "edit")
    console().print(Text(f"Wrote {written} at revision {contents.revision} to {file}."))


def _kind_by_name(file: Path) -> Literal["bundle", "edits"]:
    from ..datasets.row_files import ROW_SUFFIXES

    suffix = file.suffix.lower()
    if suffix in ROW_SUFFIXES:
        return "edits"
    if suffix in ("", ".safetensors"):
        return "bundle"
    raise typer.BadParameter(
        f"{file.name!r} ends in {file.suffix!r}, which says nothing about its format. Give {', '.join(ROW_SUFFIXES)} "
        "for rows, .safetensors or no ending for a bundle, or --format."
    )


def _export_rows(file: Path, edits: str, kind: Literal["edits", "easyedit"], at: int | None, json: bool) -> None:
    from ..datasets import reader_named
    from ..store.row_export import export_rows

    with _opened(edits) as store:
        done = export_rows(store, file, reader_named(kind), at=at)
    if json:
        print_json({"file": str(file), **asdict(done), "images_folder": str(done.images_folder)})
        return
    images = f", and {counted(done.images, 'image')} to {done.images_folder}" if done.images else ""
    console().print(Text(f"Wrote {counted(done.edits, 'edit')} to {file}{images}."))
    if done.without_image:
        without = counted(len(done.without_image), "edit")
        note(f"Of {without} the whole image was not kept: the row names the file that the edit was made with.")
    if done.left_out:
        left_out = counted(done.left_out, "locality question")
        note(f"Left out: {left_out} about images of no exported edit, of which only the digest is stored.")


@edits.command("import")
def import_edits(
    bundle: Annotated[Path, typer.Argument(metavar="FILE", help="The bundle that `edits export` wrote.")],
    edits: EditsLocation,
    on_conflict: OnConflict = "refuse",
    json: Json = False,
) -> None:
    """Import the edits of a bundle: all of them or none. The edits file is created if it does not exist."""
    import_bundle(bundle, edits, on_conflict, json)


@edits.command("diff")
def compare_edits(before: Compared, after: Compared, json: Json = False) -> None:
    """Compare the active edits of two edits files, or of one at two revisions, question by question."""
    from ..store.difference import difference

    first, second = map(_active_edits, (before, after))
    found = difference(first, second)
    if json:
        print_json(asdict(found))
        return
    if not (found.added or found.removed or found.changed):
        console().print("Both have the same active edits.")
        return
    table = Table(
        caption=", ".join(f"{len(getattr(found, kind)):,} {kind}" for kind in ("added", "removed", "changed"))
    )
    for name in ("", "Image", "Question", "Before", "After"):
        table.add_column(name, overflow="fold")
    for kind in ("added", "removed", "changed"):
        for question in getattr(found, kind):
            answers = (" | ".join(question.before), " | ".join(question.after))
            cells = (kind, question.image_name or "", question.prompt, *answers)
            table.add_row(*map(Text, cells))
    console().print(table)


def _active_edits(place: str) -> tuple[StoredEdit, ...]:
    """The active edits of LOCATION or LOCATION@REVISION."""
    location, _, revision = place.rpartition("@")
    if not (location and revision.isdecimal()) or Path(place).exists():
        location, revision = place, ""
    with _opened(location) as store:
        return store.list(at=int(revision) if revision else None)


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
        result = counted(len(problems), "problem") if problems else "all is well"
        console().print(Text(f"{counted(checked, 'edit')} checked: {result}."))
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


def _minute(moment: str | None) -> str | None:
    return moment and moment[:16].replace("T", " ")
