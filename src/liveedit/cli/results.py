"""`liveedit results`: verifying measured results, and having their answers judged."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from .arguments import command_line
from .console import ProgressDisplay, console, load_quietly, print_json, resumable
from .options import Json

results = typer.Typer(no_args_is_help=True, help="Verify measured results, or have their answers judged.")


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

    with ProgressDisplay() as progress:
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


@results.command("judge")
def judge_results(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder (--out) of a bench.")],
    endpoint: Annotated[str, typer.Option(help="An OpenAI-compatible service, as http://localhost:8000/v1.")],
    model: Annotated[str, typer.Option(help="The judge's name there.")],
    key_variable: Annotated[
        str | None, typer.Option(help="The environment variable with the API key, if the service asks for one.")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Requests at once.")] = 4,
    json: Json = False,
) -> None:
    """Let another model judge the answers of a bench, beside exact match, and compare the two.

    Its replies are kept beside the raw answers, and are not asked for again.
    """
    load_quietly()
    from ..evaluation.judged_report import judged_table, write_judged_report
    from ..evaluation.judging import Judge, judge_folder

    key = None if key_variable is None else os.environ.get(key_variable)
    if key_variable is not None and not key:
        raise typer.BadParameter(f"--key-variable {key_variable!r}: the environment has no such variable. Set it.")
    judge = Judge(endpoint, model, key)
    with resumable("the judging"), ProgressDisplay() as progress:
        rows = judge_folder(folder, judge, workers, progress.of("judging answers"))
    report = write_judged_report(rows, judge, folder, command_line())
    if json:
        print_json({"rows": rows, "report": str(report)})
        return
    console().print(judged_table(rows, model))
    console().print(Text(f"Report: {report}"))
