"""`liveedit paper lemoe-figure2` and `lemoe-figure3`: LEMoE's own analyses."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from .arguments import Json, LoadOptions, named_values, setting_value
from .console import load_quietly
from .paper_options import Batch, Cluster, Jobs, NewTokens, Out, measuring_of, run_paper

_Backbones = Annotated[
    list[str] | None,
    typer.Option("--backbone", help="Backbones, several in a row (tiny-llama-lm tiny-mistral-lm)."),
]
_Data = Annotated[
    str, typer.Option("--data", help="facts, facts:SEED, world (with images), a folder, or FORMAT:FILE[:IMAGES].")
]
_Edits = Annotated[int, typer.Option("--edits", min=1, help="Edits.")]
_BatchEdits = Annotated[int, typer.Option(min=1, help="Edits per expert.")]
_Changes = Annotated[list[str] | None, typer.Option("--set", help="NAME=VALUE for any other setting of LEMoE.")]


def register(app: typer.Typer) -> None:
    """Add these commands."""
    app.command("lemoe-figure2")(lemoe_figure2)
    app.command("lemoe-figure3")(lemoe_figure3)


def lemoe_figure2(
    out: Out,
    backbone: _Backbones = None,
    data: _Data = "facts",
    edits: _Edits = 200,
    seeds: Annotated[list[int] | None, typer.Option(min=0, help="Seeds, several in a row (0).")] = None,
    batch_edits: _BatchEdits = 10,
    changes: _Changes = None,
    jobs: Jobs = None,
    cluster: Cluster = None,
    batch: Batch = 128,
    max_new_tokens: NewTokens = 16,
    load: LoadOptions = None,
    json: Json = False,
) -> int | None:
    """Immediate and final evaluation, and routing consistency, by key and by gate (LEMoE, figure 2)."""
    load_quietly()
    from ..experiments.jobs import Workers
    from ..experiments.lemoe import BACKBONES, figure_2

    measuring = measuring_of(edits, 1, batch, max_new_tokens, False, load)
    settings = _settings(batch_edits, changes)
    names = backbone or BACKBONES
    experiment = figure_2(out, names, data, edits, seeds or (0,), settings, measuring)
    return run_paper(experiment, out, Workers(jobs, cluster), json, [data], edits)


def lemoe_figure3(
    out: Out,
    backbone: _Backbones = None,
    data: _Data = "facts",
    edits: _Edits = 200,
    orders: Annotated[int, typer.Option(min=1, help="Random orders.")] = 6,
    seed: Annotated[int, typer.Option(min=0, help="Seed: which edits.")] = 0,
    batch_edits: _BatchEdits = 10,
    changes: _Changes = None,
    jobs: Jobs = None,
    cluster: Cluster = None,
    batch: Batch = 128,
    max_new_tokens: NewTokens = 16,
    load: LoadOptions = None,
    json: Json = False,
) -> int | None:
    """The spread over orders of edits, and likeness within and between batches (LEMoE, figure 3)."""
    load_quietly()
    from ..experiments.jobs import Workers
    from ..experiments.lemoe import BACKBONES, figure_3

    measuring = measuring_of(edits, 1, batch, max_new_tokens, False, load)
    settings = _settings(batch_edits, changes)
    names = backbone or BACKBONES
    experiment = figure_3(out, names, data, edits, orders, seed, settings, measuring)
    return run_paper(experiment, out, Workers(jobs, cluster), json, [data], edits)


def _settings(batch_edits: int, changes: list[str] | None) -> dict[str, Any]:
    given = {name: setting_value(text) for name, text in named_values(changes or [], "--set").items()}
    return {"batch_edits": batch_edits, **given}
