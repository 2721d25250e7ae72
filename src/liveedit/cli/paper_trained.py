"""`liveedit paper table2`, `figure3`, `figure4`, `figure5`: editors that are trained to be compared."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from .arguments import Json, LoadOptions, named_values, setting_value
from .console import Progress, load_quietly
from .paper_options import (
    Batch,
    Cluster,
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
    from ..experiments.cells import Measuring
    from ..experiments.experiment import Experiment
    from ..experiments.sweeps import Sweep
    from ..experiments.trained_cells import Training

_Backbone = Annotated[str, typer.Option("--backbone", help="Built-in name, folder, or hub name.")]
_Edits = Annotated[list[int] | None, typer.Option("--edits", min=1, help="Numbers of edits (1000, as in the paper).")]
_Data = Annotated[
    str, typer.Option("--data", help="Measured on: world, world:SEED, a folder, or FORMAT:FILE[:IMAGES].")
]
_TrainData = Annotated[str, typer.Option(help="Trained on: world, world:SEED, a folder, or FORMAT:FILE[:IMAGES].")]
_Cases = Annotated[int | None, typer.Option(min=2, help="Cases to train on (world: 16,000; files: all).")]
_Form = Annotated[Literal["improved", "paper"], typer.Option(help="The improved form of LiveEdit, or the paper's own.")]
_Share = Annotated[float, typer.Option(help="Share of the training steps, 0.1 for a quick look.")]
_Changes = Annotated[
    list[str] | None,
    typer.Option("--set", help="NAME=VALUE for a setting of editor or losses that all trainings share."),
]
_Settings = Annotated[
    list[str] | None, typer.Option("--setting", help="Settings to compare, several in a row (all of the table).")
]
_Grid = Annotated[
    list[str] | None,
    typer.Option(
        "--grid", help="NAME=VALUE,VALUE,... for what the figure varies, or values alone where it is one thing."
    ),
]


def register(app: typer.Typer) -> None:
    """Add these commands."""
    app.command()(table2)
    for name, text in {
        "figure3": "Module width and rank: every combination is trained and measured (LiveEdit, figure 3).",
        "figure4": "The feature size k (LiveEdit, figure 4).",
        "figure5": "The edit layer (LiveEdit, figure 5).",
    }.items():
        _sweep_command(app, name, text)


def table2(
    out: Out,
    setting: _Settings = None,
    backbone: _Backbone = "tiny-blip2",
    edits: _Edits = None,
    seeds: Seeds = None,
    data: _Data = "world",
    train_data: _TrainData = "world",
    cases: _Cases = None,
    form: _Form = "improved",
    steps_share: _Share = 1.0,
    changes: _Changes = None,
    jobs: Jobs = None,
    cluster: Cluster = None,
    few_edits_cases: FewEditsCases = 100,
    batch: Batch = 128,
    max_new_tokens: NewTokens = 16,
    mixed_precision: MixedPrecision = False,
    load: LoadOptions = None,
    json: Json = False,
) -> int | None:
    """LiveEdit without one part at a time, each trained for itself (LiveEdit, table 2)."""
    load_quietly()
    from ..experiments.ablation import ablation

    numbers = edits or [1000]
    measuring = measuring_of(max(numbers), few_edits_cases, batch, max_new_tokens, mixed_precision, load)
    training = _training(train_data, cases, form, steps_share, changes)
    experiment = ablation(out, setting or (), backbone, data, numbers, seeds or (0, 1, 2), training, measuring)
    return _run(experiment, out, jobs, cluster, json, data, training, measuring)


def _sweep_command(app: typer.Typer, name: str, text: str) -> None:
    @app.command(name, help=text)
    def command(
        out: Out,
        grid: _Grid = None,
        backbone: _Backbone = "tiny-blip2",
        edits: _Edits = None,
        seeds: Seeds = None,
        data: _Data = "world",
        train_data: _TrainData = "world",
        cases: _Cases = None,
        form: _Form = "improved",
        steps_share: _Share = 1.0,
        changes: _Changes = None,
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
        from ..experiments.cells import loaded_backbone
        from ..experiments.sweeps import SWEEPS, sweep

        figure, numbers = SWEEPS[name], edits or [1000]
        measuring = measuring_of(max(numbers), few_edits_cases, batch, max_new_tokens, mixed_precision, load)
        training = _training(train_data, cases, form, steps_share, changes)
        frozen = loaded_backbone(backbone, measuring.load)
        given = _grid(figure, grid or [])
        experiment = sweep(figure, out, frozen, backbone, given, data, numbers, seeds or (0, 1, 2), training, measuring)
        return _run(experiment, out, jobs, cluster, json, data, training, measuring)


def _training(data: str, cases: int | None, form: Any, steps_share: float, changes: list[str] | None) -> Training:
    from ..experiments.trained_cells import Training

    settings = {name: setting_value(text) for name, text in named_values(changes or [], "--set").items()}
    return Training(data, cases, form, steps_share, settings=tuple(sorted(settings.items())))


def _grid(figure: Sweep, given: list[str]) -> dict[str, list[int]]:
    """`NAME=1,2` or, for a figure that varies one thing, `1 2`."""
    only = next(iter(figure.letters)) if len(figure.letters) == 1 else ""
    texts = [item if "=" in item or not only else f"{only}={item}" for item in given]
    found: dict[str, list[int]] = {}
    for text in texts:
        name, _, values = text.partition("=")
        try:
            found.setdefault(name, []).extend(int(value) for value in values.split(","))
        except ValueError as error:
            raise typer.BadParameter(
                f"--grid {text!r} is not of the form NAME=VALUE,VALUE with whole numbers."
            ) from error
    return found


def _run(
    experiment: Experiment,
    out: Path,
    jobs: int | None,
    cluster: str | None,
    json: bool,
    data: str,
    training: Training,
    measuring: Measuring,
) -> int | None:
    from ..experiments.jobs import Workers
    from ..experiments.trained_cells import training_cases

    workers = Workers(jobs, cluster)
    with Progress() as progress:  # Drawn once, before several processes want it.
        training_cases(training, progress.of("drawing the training cases"))
    return run_paper(experiment, out, workers, json, [data], measuring.cases)
