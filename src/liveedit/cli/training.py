"""`liveedit train-backbone` and `liveedit train`: making a backbone, and an editor for one."""

from __future__ import annotations

import json as json_format
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from .arguments import BackboneName, Json, named_values
from .console import Progress, load_quietly, print_fields, print_json, resumable

if TYPE_CHECKING:
    from ..backbones import Backbone
    from ..editors.liveedit.recipe import TrainingRecipe
    from ..samples import EditCase
    from ..training import StageConfig


def register(app: typer.Typer) -> None:
    """Add these commands."""
    app.command("train-backbone")(train_backbone)
    app.command()(train)


def train_backbone(
    out: Annotated[Path, typer.Option(help="Folder for checkpoints; the finished model lies in OUT/model.")],
    seed: Annotated[int, typer.Option(min=0, help="Seed of weights, pictures and batches.")] = 0,
    pictures: Annotated[int, typer.Option(min=1, help="Pictures to draw.")] = 60_000,
    vision_steps: Annotated[int, typer.Option(min=1, help="Steps of the vision stage.")] = 3_000,
    language_steps: Annotated[int, typer.Option(min=1, help="Steps of the language stage.")] = 1_150,
    save_every: Annotated[int, typer.Option(min=1, help="Steps between checkpoints.")] = 200,
    card: Annotated[bool, typer.Option("--card", help="Measure the model and write its model card.")] = False,
    card_pictures: Annotated[int, typer.Option(min=1, help="Fresh pictures that the card is measured on.")] = 400,
    json: Json = False,
) -> None:
    """Pretrain the built-in backbone from scratch. Run again, it goes on where it was cut off."""
    load_quietly()
    from ..backbones.tiny_llava.train import PretrainingConfig
    from ..backbones.tiny_llava.train import train_backbone as pretrain

    config = PretrainingConfig(
        seed=seed,
        pictures=pictures,
        vision_steps=vision_steps,
        language_steps=language_steps,
        save_every=save_every,
    )
    started = time.monotonic()
    with resumable("the training"), Progress() as progress:
        pretrain(out, config, progress.report)
        accuracy = _write_card(out / "model", asdict(config), card_pictures, progress) if card else None
    result = {
        "model": str(out / "model"),
        "accuracy": accuracy,
        "seconds": round(time.monotonic() - started, 1),
    }
    if json:
        print_json(result)
    else:
        accuracies = {f"{kind} %": values for kind, values in (accuracy or {}).items()}
        print_fields({"model": result["model"], "seconds": result["seconds"], **accuracies})


def _write_card(folder: Path, config: dict[str, Any], pictures: int, progress: Progress) -> dict[str, dict[str, float]]:
    from ..backbones import load_backbone
    from ..backbones.tiny_llava.card import CARD_SEED, measure_backbone, write_card

    backbone = load_backbone(folder)
    accuracy = measure_backbone(backbone, pictures, progress=progress.of("model card"))
    parameters = sum(parameter.numel() for parameter in backbone.model.parameters())
    facts: dict[str, object] = {
        "parameters": parameters,
        "card_pictures": pictures,
        "card_seed": CARD_SEED,
        "pretraining": json_format.dumps(config),
    }
    write_card(accuracy, facts, folder)
    return accuracy


def train(
    out: Annotated[Path, typer.Option(help="Folder for checkpoints; the trained editor lies in OUT/editor.")],
    data: Annotated[
        str, typer.Option(help="world, world:SEED, a folder with train.json, or a format for --annotations.")
    ] = "world",
    annotations: Annotated[Path | None, typer.Option(help="The annotation file, where --data is a format.")] = None,
    images: Annotated[Path | None, typer.Option(help="The picture folder of the annotation file.")] = None,
    cases: Annotated[int | None, typer.Option(min=2, help="Cases to train on (world: 8,000; files: all).")] = None,
    backbone: BackboneName = "tiny-llava",
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
        typer.Option(help="NAME:STEPS:BATCH:RATE, several in a row; routing, generator, joint."),
    ] = None,
    validation: Annotated[
        int | None, typer.Option(min=1, help="Cases kept for validation (256, or a quarter).")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of weights and batches.")] = 0,
    json: Json = False,
) -> None:
    """Train a LiveEdit editor for a backbone. Run again, it goes on where it was cut off."""
    load_quietly()
    from ..backbones import load_backbone
    from ..editors.liveedit.recipe import train_liveedit

    started = time.monotonic()
    stages = _stages(stage)
    with resumable("the training"), Progress() as progress:
        found = _training_cases(data, annotations, images, cases, out, progress.of("drawing"))
        frozen = load_backbone(backbone)
        given = {
            **{"layer": layer, "module_width": module_width, "rank": rank, "heads": heads},
            **{"seed": seed, "validation": validation or min(256, max(1, len(found) // 4))},
            **{name: _value(text) for name, text in named_values(changes or [], "--set").items()},
        }
        recipe = _recipe(frozen, form, stages, {name: value for name, value in given.items() if value is not None})
        try:
            trained = train_liveedit(frozen, found, recipe, out, _reporting(progress))
        finally:
            picture = _draw(out)
    result = {
        "editor": str(trained.folder),
        "parameters": trained.parameters,
        "validation": trained.validation,
        "curves": str(out / "curves.json"),
        "picture": picture and str(picture),
        "seconds": round(time.monotonic() - started, 1),
    }
    if json:
        print_json(result)
        return
    figures = {name: f"{value:.1f} %" for name, value in trained.validation.items()}
    print_fields({**{k: v for k, v in result.items() if k != "validation"}, **figures})


def _training_cases(
    data: str,
    annotations: Path | None,
    images: Path | None,
    count: int | None,
    out: Path,
    progress: Callable[[int, int], None],
) -> Sequence[EditCase]:
    from ..datasets import read
    from ..datasets.sources import world_seed
    from ..datasets.world.kept import kept_world
    from ..editors.liveedit.recipe import TRAINING_CASES
    from ..errors import DatasetError, InvalidInputError

    seed = world_seed(data)
    if seed is not None:
        return read("mmedit", kept_world(out / "world", seed, count or TRAINING_CASES, 0, progress)["train"])
    if Path(data).is_dir():
        if not (Path(data) / "train.json").is_file():
            raise DatasetError(f"The folder {data!r} has no train.json. Draw one with `liveedit data draw`.")
        found = read("mmedit", Path(data) / "train.json", images)
    elif annotations is None:
        raise InvalidInputError(
            f"--data {data!r} was given without --annotations. Give the annotation file, or --data world."
        )
    else:
        found = read(data, annotations, images)
    if count is not None and count > len(found):
        raise InvalidInputError(f"{count} cases were asked for and the data holds {len(found)}. Ask for fewer.")
    return found[:count]


def _stages(given: Sequence[str] | None) -> tuple[StageConfig, ...]:
    from pydantic import ValidationError

    from ..editors.liveedit.recipe import default_stages
    from ..errors import ConfigError
    from ..training import StageConfig

    if not given:
        return default_stages()
    stages = []
    for text in given:
        names = ("name", "steps", "batch", "rate")
        try:
            stage = StageConfig.model_validate(dict(zip(names, text.split(":"), strict=True)))
        except (ValidationError, ValueError) as error:
            raise ConfigError(
                f"The stage {text!r} cannot be used. Give NAME:STEPS:BATCH:RATE, as in joint:300:32:3e-4."
            ) from error
        known = [stage.name for stage in default_stages()]
        if stage.name not in known:
            raise ConfigError(f"There is no stage {stage.name!r}. Give one of {', '.join(known)}.")
        stages.append(stage)
    return tuple(stages)


def _recipe(backbone: Backbone, form: str, stages: tuple[StageConfig, ...], given: dict[str, object]) -> TrainingRecipe:
    """Each given setting goes to the one of editor, losses and training that has it."""
    from pydantic import ValidationError

    from ..editors.liveedit import LiveEditConfig
    from ..editors.liveedit.recipe import TrainingRecipe
    from ..editors.liveedit.task import LiveEditLosses
    from ..errors import ConfigError
    from ..training import TrainingConfig

    kinds = (LiveEditConfig, LiveEditLosses, TrainingConfig)
    known = sorted({name for kind in kinds for name in kind.model_fields} - {"width", "image_tokens", "stages"})
    if unknown := sorted(given.keys() - set(known)):
        raise ConfigError(f"There is no setting {', '.join(unknown)}. Give one of {', '.join(known)}.")
    parts = [{name: value for name, value in given.items() if name in kind.model_fields} for kind in kinds]
    paper = form == "paper"
    shape = {
        "width": backbone.width,
        "layer": backbone.default_edit_layer(),
        "image_tokens": backbone.image_tokens,
        **parts[0],
    }
    make: Callable[..., LiveEditConfig] = LiveEditConfig.paper if paper else LiveEditConfig.create
    losses = LiveEditLosses.paper() if paper else LiveEditLosses.model_validate({})
    try:
        return TrainingRecipe(
            make(**shape),
            LiveEditLosses.model_validate({**losses.model_dump(), **parts[1]}),
            TrainingConfig.model_validate({"stages": stages, **parts[2]}),
        )
    except ValidationError as error:
        issues = "; ".join(f"{'.'.join(map(str, issue['loc']))}: {issue['msg']}" for issue in error.errors())
        raise ConfigError(f"The settings cannot be used: {issues}.") from error


def _value(text: str) -> object:
    """A setting's value: JSON where it is JSON (4, 0.5, true, null), text otherwise."""
    try:
        return json_format.loads(text)
    except ValueError:
        return text


def _reporting(progress: Progress) -> Callable[[str, int, int, dict[str, float]], None]:
    def report(what: str, done: int, total: int, figures: dict[str, float]) -> None:
        if what.endswith(" validation"):
            shown = ", ".join(f"{name.replace('_', ' ')} {value:.1f}" for name, value in figures.items())
            progress.note(f"{what}, step {done}: {shown}")
        else:
            progress.report(what, done, total, figures)

    return report


def _draw(out: Path) -> Path | None:
    """The learning curves so far as a picture; None where there are none, or no matplotlib."""
    from ..evaluation.learning_curves import draw_curves
    from ..evaluation.plots import PlotsUnavailableError

    curves = out / "curves.json"
    if not curves.is_file():
        return None
    try:
        draw_curves(json_format.loads(curves.read_text(encoding="utf-8")), out / "curves.png")
    except PlotsUnavailableError:
        return None
    return out / "curves.png"
