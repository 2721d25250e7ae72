"""`liveedit paper`: the tables and figures of the papers, measured here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from . import paper_figure6, paper_lemoe, paper_trained
from .arguments import Json, LoadOptions, named_values
from .console import load_quietly
from .paper_options import (
    Batch,
    Cluster,
    Data,
    Edits,
    FewEditsCases,
    Jobs,
    MixedPrecision,
    NewTokens,
    Out,
    Seeds,
    measuring_of,
    run_paper,
)

if TYPE_CHECKING:
    from ..experiments.comparison import PaperTable

app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="The papers' tables and figures, measured here; resumable."
)

Editors = Annotated[
    list[str] | None, typer.Option("--editor", help="Editors, several in a row, or LABEL=NAME (all that there are).")
]
Backbones = Annotated[
    list[str] | None, typer.Option("--backbone", help="Backbones, several in a row (those of the table).")
]
EditorPaths = Annotated[
    list[str] | None,
    typer.Option(
        "--editor-path", help="[BACKBONE/]EDITOR=DIR: the trained parts of an editor, for one backbone or for all."
    ),
]


def register(root: typer.Typer) -> None:
    """Add these commands."""
    root.add_typer(app, name="paper")


def _comparison_command(name: str, text: str) -> None:
    @app.command(name, help=text)
    def command(
        out: Out,
        editor: Editors = None,
        backbone: Backbones = None,
        edits: Edits = None,
        seeds: Seeds = None,
        data: Data = None,
        editor_path: EditorPaths = None,
        jobs: Jobs = None,
        cluster: Cluster = None,
        few_edits_cases: FewEditsCases = 100,
        batch: Batch = 128,
        max_new_tokens: NewTokens = 16,
        mixed_precision: MixedPrecision = False,
        load: LoadOptions = None,
        json: Json = False,
    ) -> int | None:
        load_quietly()
        from ..experiments.comparison import TABLES, comparison
        from ..experiments.jobs import Workers

        table: PaperTable = TABLES[name]
        numbers = edits or list(table.edits)
        measuring = measuring_of(max(numbers), few_edits_cases, batch, max_new_tokens, mixed_precision, load)
        experiment = comparison(
            table,
            out,
            editors=editor or (),
            backbones=backbone or (),
            data=data or ("world",),
            edits=numbers,
            seeds=seeds or (),
            sources=named_values(editor_path or [], "--editor-path"),
            measuring=measuring,
        )
        return run_paper(experiment, out, Workers(jobs, cluster), json, data or ["world"], measuring.cases)


_comparison_command("table1", "All editors over a lifetime of edits, with a verdict (LiveEdit, table 1).")
_comparison_command("table5", "The same in full on BLIP-2 and LLaVA, on all --data (LiveEdit, table 5).")
_comparison_command("table6", "The same in full on MiniGPT-4, on all --data (LiveEdit, table 6).")
paper_trained.register(app)
paper_lemoe.register(app)
app.command()(paper_figure6.figure6)
app.command()(paper_figure6.figure7)
