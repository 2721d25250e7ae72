"""`liveedit doctor`: whether a model can be edited, and what editing it needs."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import typer
from rich.table import Table
from rich.text import Text

from .arguments import loading
from .console import ProgressDisplay, byte_size, console, load_quietly, print_fields, print_json, wait_without_spinning
from .options import BackboneName, Json, LoadOptions

if TYPE_CHECKING:
    from ..doctor import Diagnosis


def register(app: typer.Typer) -> None:
    """Add this command."""
    app.command()(doctor)


def doctor(backbone: BackboneName = "tiny-llava", load: LoadOptions = None, json: Json = False) -> None:
    """Inspect a model: what it is, whether it can be edited, what that needs. The exit code is 1 if it cannot."""
    wait_without_spinning()
    load_quietly()
    from ..backbones import load_backbone
    from ..doctor import examine

    with ProgressDisplay() as progress:
        diagnosis = examine(load_backbone(backbone, **loading(load)), progress.steps("checking"))
    if json:
        print_json({**asdict(diagnosis), "healthy": diagnosis.healthy})
    else:
        _print(diagnosis)
    if not diagnosis.healthy:
        raise typer.Exit(1)


def _print(diagnosis: Diagnosis) -> None:
    print_fields(diagnosis.found, title="Found")
    checks = Table(box=None, title="Checked on the model itself", title_justify="left", show_header=False)
    checks.add_column()
    checks.add_column()
    checks.add_column(overflow="fold")
    for check in diagnosis.checks:
        mark = Text("holds", style="green") if check.holds else Text("FAILS", style="bold red")
        checks.add_row(mark, check.name, Text(check.detail))
    console().print(checks)
    plan = diagnosis.plan
    print_fields(
        {
            "edit layer": f"{plan['edit_layer']} of {plan['layers']}, counted from 0 (two thirds of the depth)",
            "model": byte_size(plan["model_bytes"]),
            "trained editor": f"{plan['editor_parameters'] / 1e6:.1f} million parameters, "
            f"{byte_size(plan['editor_bytes'])}; {byte_size(plan['editor_training_bytes'])} while it is trained",
            "its edits": f"{plan['edits']:,} take {byte_size(plan['edits_bytes'])}, {plan['bytes_per_edit']:,} bytes "
            f"each (d_m {plan['module_width']}, rank {plan['rank']})",
            "without training": _without_training(plan["untrained"], plan["edits"]),
        },
        title="Plan",
    )
    console().print(Text("To know"))
    for warning in diagnosis.warnings:
        console().print(Text(f"- {warning}"))
    verdict = "This model can be edited." if diagnosis.healthy else "This model cannot be edited: a check fails."
    console().print(Text(verdict, style="bold"))


def _without_training(plan: dict[str, Any] | None, edits: int) -> str | None:
    """What edits cost with the editor that needs no training; None if that is not known."""
    if plan is None:
        return None
    memory, stored = plan["memory_bytes_per_edit"], plan["store_bytes_per_edit"]
    further = plan["bytes_per_answer_token"]
    return (
        f"{plan['editor']}: {edits:,} edits take {byte_size(edits * memory)}; an edit to {plan['answer']!r} takes "
        f"{memory:,} bytes in memory and {stored:,} in the edits file (rank {plan['rank']})"
        + ("" if further is None else f", each further token of an answer {further:,}")
    )
