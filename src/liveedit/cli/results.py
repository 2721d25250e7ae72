"""`liveedit results`: verifying measured results."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from .arguments import Json
from .console import Progress, console, load_quietly, print_json

results = typer.Typer(no_args_is_help=True, help="Verify measured results.")


def register(app: typer.Typer) -> None:
    """Add these commands."""
    app.add_typer(results, name="results")


@results.command("verify")
def verify_results(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder (--out) of a bench, robustness or paper.")],
    json: Json = False,
) -> None:
    """Compare a report with its rows, and rows with their raw answers; the exit code is 1 if something disagrees.

    Every metric is computed again from the raw answers. What cannot be checked is listed as notes, with the reason.
    """
    load_quietly()
    from ..experiments.verification import verify_folder

    with Progress() as progress:
        found = verify_folder(folder, progress.of("scoring answers again"))
    if json:
        print_json(found.to_dict())
    else:
        for remark in found.disagreements:
            console().print(Text(f"{remark.file}: {remark.text}"))
        for remark in found.unchecked:
            console().print(Text(f"Not checked: {remark.file}: {remark.text}"))
        disagreements = len(found.disagreements)
        result = f"disagreements: {disagreements:,}" if disagreements else "all that was checked agrees"
        console().print(Text(f"{found.rows:,} rows and {found.answers:,} answers checked: {result}."))
    if found.disagreements:
        raise typer.Exit(1)
