"""`liveedit train`: an editor for a backbone."""

from __future__ import annotations

import json as json_format
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from .arguments import BackboneName, Json, LoadOptions, loading, named_values, setting_value
from .console import Progress, load_quietly, print_fields, print_json, resumable
from .training_data import TrainingData
from .training_editors import Training, drawn_cases, train_other, trained_class
from .training_estimate import print_estimate, with_disk

if TYPE_CHECKING:
    from ..backbones import Backbone
    from ..editors.liveedit.recipe import TrainingRecipe
    from ..editors.trained import Report, TrainingResult
    from ..samples import EditCase
    from ..training.distributed import Processes
    from ..training.trainer import StageConfig


def register(app: typer.Typer) -> None:
    """Add these commands."""
    app.command()(train)


def train(
    out: Annotated[Path, typer.Option(help="Folder for checkpoints; the trained editor lies in OUT/editor.")],
    data: Annotated[
        str,
        typer.Option(
            help="world, facts (for language models), either with :SEED, a folder with train.json, or a format for "
            "--annotations."
        ),
    ] = "world",
    annotations: Annotated[Path | None, typer.Option(help="The annotation file, where --data is a format.")] = None,
    images: Annotated[Path | None, typer.Option(help="The image folder of the annotation file.")] = None,
    cases: Annotated[
        int | None,
        typer.Option(
            min=2, help="Cases to train on (made here: 16,000 for liveedit and serac, else 3,000; files: all)."
        ),
    ] = None,
    editor: Annotated[str, typer.Option(help="The editor to train; `liveedit editors` lists them.")] = "liveedit",
    backbone: BackboneName = "tiny-llava",
    load: LoadOptions = None,
    form: Annotated[
        Literal["improved", "paper"], typer.Option(help="The improved form, or the paper's own.")
    ] = "improved",
    layer: Annotated[int | None, typer.Option(min=0, help="Edit layer, from 0 (two thirds of the depth).")] = None,
    module_width: Annotated[int | None, typer.Option(min=1, help="Module width d_m.")] = None,
    rank: Annotated[int | None, typer.Option(min=1, help="Rank of an expert.")] = None,
    heads: Annotated[int | None, typer.Option(min=1, help="Attention heads.")] = None,
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", help="NAME=VALUE for any other setting of editor, losses or training; several in a row."),
    ] = None,
    stage: Annotated[
        list[str] | None,
        typer.Option(help="NAME:STEPS:BATCH:RATE, several in a row; for liveedit: routing, generator, joint."),
    ] = None,
    validation: Annotated[
        int | None, typer.Option(min=1, help="Cases kept for validation (256, or a quarter).")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of weights and batches.")] = 0,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only try a few cases and say what the training would take.")
    ] = False,
    json: Json = False,
) -> None:
    """Train an editor for a backbone, LiveEdit or another that has trained parts. Run again, it goes on.

    On several devices: torchrun --nproc_per_node N -m liveedit train ..., which takes the same steps as one.
    """
    load_quietly()
    from ..training.distributed import joined_processes

    kind = trained_class(editor)
    if not kind.has_forms and (form != "improved" or dry_run):
        raise typer.BadParameter(
            f"The editor {editor} has one form and no estimate: give neither --form nor --dry-run."
        )
    stages = _stages(stage, kind.paper_stages() if form == "paper" else kind.default_stages())
    settings = {
        **{"layer": layer, "module_width": module_width, "rank": rank, "heads": heads, "seed": seed},
        **{name: setting_value(text) for name, text in named_values(changes or [], "--set").items()},
    }

    def recipe(frozen: Backbone, count: int) -> TrainingRecipe:
        given = {"validation": validation or min(256, max(1, count // 4)), **settings}
        return _recipe(frozen, form, stages, {name: value for name, value in given.items() if value is not None})

    source, load_options = TrainingData(data, annotations, images, cases or drawn_cases(kind, data)), loading(load)
    with resumable("the training"), joined_processes() as processes, _reporting(processes) as report:

        def load_frozen() -> Backbone:
            return _load(backbone, load_options, processes)

        training = (
            partial(_train_by_recipe, recipe)
            if kind.has_forms
            else partial(train_other, kind, stages, settings, validation)
        )
        if dry_run:
            result = _estimate(source, load_frozen, recipe, out, processes, report)
        else:
            result = _train(source, load_frozen, training, out, processes, report)
    if not processes.is_first:
        return
    if json:
        print_json(result)
    elif dry_run:
        print_estimate(result)
    else:
        figures = {name: f"{value:.1f} %" for name, value in result["validation"].items()}
        print_fields({**{k: v for k, v in result.items() if k != "validation"}, **figures})


def _load(name: str, options: dict[str, Any], processes: Processes) -> Backbone:
    """The backbone, in every process a copy of its own on the process's device."""
    from ..backbones import load_backbone
    from ..errors import ConfigError

    placed = {"device", "device_map"} & options.keys()
    if placed and processes.count > 1:
        raise ConfigError(
            f"--load {placed.pop()} was given to {processes.count} processes, each of which has a device of its own. "
            "Leave it out, or start one process."
        )
    return load_backbone(name, **({} if placed else {"device": processes.device}), **options)


def _require_readable(frozen: Backbone, cases: Sequence[EditCase]) -> None:
    """Questions about images are for models that read them."""
    from ..errors import ConfigError

    if not frozen.reads_images and any(case.edit.question.image is not None for case in cases):
        raise ConfigError(
            f"{frozen.name} reads text alone, and these cases ask about images. Give --data facts, or an annotation "
            "file of questions without images, such as ZsRE's."
        )


def _estimate(
    source: TrainingData,
    load_frozen: Callable[[], Backbone],
    recipe: Callable[[Backbone, int], TrainingRecipe],
    out: Path,
    processes: Processes,
    report: Report,
) -> dict[str, Any]:
    from ..editors.training_estimate import estimate_training

    with source.sampled(report) as (found, planned):
        frozen = load_frozen()
        _require_readable(frozen, found)
        estimate = estimate_training(frozen, found, recipe(frozen, planned), processes, planned, report)
    return with_disk(estimate, out)


def _train(
    source: TrainingData,
    load_frozen: Callable[[], Backbone],
    training: Training,
    out: Path,
    processes: Processes,
    report: Report,
) -> dict[str, Any]:
    started = time.monotonic()
    with processes.first_goes_ahead():
        found: Sequence[EditCase] = source.read(out / "world", report)
    frozen = load_frozen()
    _require_readable(frozen, found)
    image: Path | None = None
    try:
        trained = training(frozen, found, out, report, processes)
    finally:
        if processes.is_first:
            image = _draw(out)
    return _summary(trained, out, image, time.monotonic() - started)


def _train_by_recipe(
    recipe: Callable[[Backbone, int], TrainingRecipe],
    frozen: Backbone,
    cases: Sequence[EditCase],
    out: Path,
    report: Report,
    processes: Processes,
) -> TrainingResult:
    from ..editors.liveedit.recipe import train_liveedit

    return train_liveedit(frozen, cases, recipe(frozen, len(cases)), out, report, processes)


def _summary(trained: TrainingResult, out: Path, image: Path | None, seconds: float) -> dict[str, Any]:
    return {
        "editor": str(trained.folder),
        "parameters": trained.parameters,
        "validation": trained.validation,
        "curves": str(out / "curves.json"),
        "image": image and str(image),
        "seconds": round(seconds, 1),
    }


def _stages(given: Sequence[str] | None, usual: tuple[StageConfig, ...]) -> tuple[StageConfig, ...]:
    """The stages that were given, each by a name of the usual ones; the usual ones where none was."""
    from pydantic import ValidationError

    from ..errors import ConfigError
    from ..training.trainer import StageConfig

    if not given:
        return usual
    stages = []
    for text in given:
        names = ("name", "steps", "batch", "rate")
        try:
            stage = StageConfig.model_validate(dict(zip(names, text.split(":"), strict=True)))
        except (ValidationError, ValueError) as error:
            raise ConfigError(
                f"The stage {text!r} cannot be used. Give NAME:STEPS:BATCH:RATE, as in joint:300:32:3e-4."
            ) from error
        known = [stage.name for stage in usual]
        if stage.name not in known:
            raise ConfigError(f"There is no stage {stage.name!r}. Give one of {', '.join(known)}.")
        stages.append(stage)
    return tuple(stages)


def _recipe(backbone: Backbone, form: str, stages: tuple[StageConfig, ...], given: dict[str, object]) -> TrainingRecipe:
    """Each given setting goes to the one of editor, losses and training that has it."""
    from pydantic import ValidationError

    from ..editors.liveedit import LiveEditConfig
    from ..editors.liveedit.recipe import TrainingRecipe, default_shape
    from ..editors.liveedit.task import LiveEditLosses
    from ..errors import ConfigError, issues_of
    from ..training.trainer import TrainingConfig

    kinds = (LiveEditConfig, LiveEditLosses, TrainingConfig)
    known = sorted({name for kind in kinds for name in kind.model_fields} - {"width", "image_tokens", "stages"})
    if unknown := sorted(given.keys() - set(known)):
        raise ConfigError(f"There is no setting {', '.join(unknown)}. Give one of {', '.join(known)}.")
    parts = [{name: value for name, value in given.items() if name in kind.model_fields} for kind in kinds]
    paper = form == "paper"
    shape = {**default_shape(backbone), **parts[0]}
    make: Callable[..., LiveEditConfig] = LiveEditConfig.paper if paper else LiveEditConfig.create
    losses = LiveEditLosses.paper() if paper else LiveEditLosses.model_validate({})
    try:
        return TrainingRecipe(
            make(**shape),
            LiveEditLosses.model_validate({**losses.model_dump(), **parts[1]}),
            TrainingConfig.model_validate({"stages": stages, **parts[2]}),
        )
    except ValidationError as error:
        raise ConfigError(f"The settings cannot be used: {issues_of(error)}.") from error


@contextmanager
def _reporting(processes: Processes) -> Iterator[Report]:
    """Progress on the screen; of the first process alone."""
    if not processes.is_first:
        yield lambda what, done, total, figures: None
        return
    with Progress() as progress:

        def report(what: str, done: int, total: int, figures: dict[str, float]) -> None:
            if what.endswith(" validation"):
                shown = ", ".join(f"{name.replace('_', ' ')} {value:.1f}" for name, value in figures.items())
                progress.note(f"{what}, step {done}: {shown}")
            else:
                progress.report(what, done, total, figures)

        yield report


def _draw(out: Path) -> Path | None:
    """The learning curves so far as an image; None where there are none, or no matplotlib."""
    from ..evaluation.learning_curves import draw_curves
    from ..evaluation.plotting import PlotsUnavailableError

    curves = out / "curves.json"
    if not curves.is_file():
        return None
    try:
        draw_curves(json_format.loads(curves.read_text(encoding="utf-8")), out / "curves.png")
    except PlotsUnavailableError:
        return None
    return out / "curves.png"
