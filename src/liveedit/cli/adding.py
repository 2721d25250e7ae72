"""`liveedit edits add`: make the edits of a file, one for each row, resumable."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from .console import ProgressDisplay, console, counted, load_quietly, note, print_json, resumable, wait_without_spinning
from .loading import ModelOptions
from .options import (
    Author,
    EditsLocation,
    Json,
    KeepImage,
    MustTake,
    Note,
    ProbeEdits,
    with_options,
)

if TYPE_CHECKING:
    from ..edited.rows import RowFile, RowResult

SHOWN_ROWS = 10
"""Number of rejected rows that are printed at the end; all are in the file of rejects."""


@with_options(ModelOptions)
def add_edits(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="JSON Lines (.jsonl), CSV (.csv) or a JSON list.")],
    edits: EditsLocation,
    format: Annotated[
        str, typer.Option(help="What the rows are: edits, easyedit, or another installed format of data.")
    ] = "edits",
    images: Annotated[Path | None, typer.Option(help="The image folder; by default that of the file.")] = None,
    rejects: Annotated[
        Path | None, typer.Option(help="Where rejected rows are listed; by default FILE.rejects.jsonl.")
    ] = None,
    author: Author = None,
    why: Note = None,
    keep_image: KeepImage = False,
    probe_edits: ProbeEdits = 8,
    must_take: MustTake = True,
    json: Json = False,
    *,
    options: ModelOptions,
) -> None:
    """Make an edit of each row of a file; the exit code is 1 if a row is rejected.

    Interrupted or killed, and run again, it goes on with the rows that have no edit yet. Rejected rows are listed with
    line and reason, and the others are done.
    """
    wait_without_spinning()
    load_quietly()
    from ..datasets import reader_named
    from ..edited.rows import make_edits, read_rows

    rejects = rejects or file.with_name(f"{file.name}.rejects.jsonl")
    if rejects.resolve() == file.resolve():
        raise typer.BadParameter(f"--rejects {str(rejects)!r} is the file itself. Give the name of another one.")
    found = read_rows(reader_named(format), file, images)
    rejects.unlink(missing_ok=True)
    given = {"probe_edits": probe_edits, "must_take": must_take, "author": author, "note": why}
    if len(found.rejected) == len(found.rows):  # Nothing to load a model for.
        results = _followed(found.rejected, found, rejects)
    else:
        with resumable("it"), options.edited_model(edits, json=json, keep_images=keep_image) as model:
            results = _followed(make_edits(model, found, **given), found, rejects)
    _print_results(results, found, rejects, json)
    if any(result.outcome == "rejected" for result in results):
        raise typer.Exit(1)


def _followed(results: Iterable[RowResult], file: RowFile, rejects: Path) -> list[RowResult]:
    """The results, with progress, and with the rejected rows in a file as soon as they are known."""
    done: list[RowResult] = []
    rejected = 0
    with ProgressDisplay() as progress:
        for result in results:
            done.append(result)
            if result.outcome == "rejected":
                rejected += 1
                with rejects.open("a", encoding="utf-8") as stream:
                    stream.write(dumps(_as_reject(result), ensure_ascii=False) + "\n")
            progress.report("rows", len(done), len(file.rows), {"rejected": rejected})
    return done


def _as_reject(result: RowResult) -> dict[str, object]:
    return {name: getattr(result, name) for name in ("place", "line", "id", "reason")}


def _print_results(results: list[RowResult], file: RowFile, rejects: Path, json: bool) -> None:
    counts = Counter(result.outcome for result in results)
    rejected = [result for result in results if result.outcome == "rejected"]
    if json:
        done = {outcome: counts[outcome] for outcome in ("made", "there", "inactive")}
        listed = {"rejected": list(map(_as_reject, rejected)), "rejects": str(rejects) if rejected else None}
        print_json({"rows": len(results), **done, **listed, "unused": file.unused})
        return
    if file.unused:
        listed = ", ".join(f"{what} ({count:,})" for what, count in file.unused.items())
        note(f"Edits do not hold these, which were not used (number of rows): {listed}.")
    inactive = f"{counts['inactive']:,} undone, superseded or purged since, " if counts["inactive"] else ""
    done = f"{counted(counts['made'], 'edit')} made, {counts['there']:,} there already, {inactive}"
    console().print(Text(f"{counted(len(results), 'row')}: {done}{counts['rejected']:,} rejected."))
    lines = [f"- {result.place}: {result.reason}" for result in rejected[:SHOWN_ROWS]]
    if len(rejected) > SHOWN_ROWS:
        lines.append(f"- and {len(rejected) - SHOWN_ROWS:,} more")
    if rejected:
        lines.append(f"All rejected rows are in {rejects}. Correct them, and run the same command again.")
    for line in lines:
        console().print(Text(line))
