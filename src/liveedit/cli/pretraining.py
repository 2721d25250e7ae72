"""`liveedit train-backbone`: pretrain a built-in backbone."""

from __future__ import annotations

import json as json_format
import time
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import InvalidInputError
from .console import ProgressDisplay, load_quietly, print_fields, print_json, resumable
from .options import Json

if TYPE_CHECKING:
    from ..backbones import Backbone
    from ..pretraining.cards import Accuracy


def register(app: typer.Typer) -> None:
    """Add this command."""
    app.command("train-backbone")(train_backbone)


def train_backbone(
    name: Annotated[
        str,
        typer.Argument(
            help="Which built-in backbone: tiny-llava, tiny-blip2, tiny-minigpt4, tiny-llama-lm or tiny-mistral-lm."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder for checkpoints; the finished model lies in OUT/model.")],
    seed: Annotated[int, typer.Option(min=0, help="Seed of weights, images and batches.")] = 0,
    images: Annotated[int | None, typer.Option(min=1, help="Images to generate (60,000).")] = None,
    vision_steps: Annotated[int | None, typer.Option(min=1, help="Steps of the vision stage (3,000).")] = None,
    language_steps: Annotated[
        int | None, typer.Option(min=1, help="Steps of the language stage (1,150; language models: LM_STEPS).")
    ] = None,
    vision_from: Annotated[
        Path | None, typer.Option(help="Folder of the checkpoint whose vision part tiny-minigpt4 uses (tiny-blip2's).")
    ] = None,
    save_every: Annotated[int, typer.Option(min=1, help="Steps between checkpoints.")] = 200,
    card: Annotated[bool, typer.Option("--card", help="Measure the model and write its model card.")] = False,
    card_images: Annotated[
        int | None, typer.Option(min=1, help="New images that the card is measured on (400).")
    ] = None,
    json: Json = False,
) -> None:
    """Pretrain a built-in backbone from scratch. Run the same command again to resume an interrupted one."""
    load_quietly()
    from ..pretraining.language_models import LANGUAGE_MODELS
    from ..pretraining.models import BUILT_INS

    steps = {"language_steps": language_steps}
    of_images = {"images": images, "vision_steps": vision_steps}
    if name in BUILT_INS:
        settings, train = {**steps, **of_images}, partial(_train_with_vision, vision_from, card_images)
    elif name in LANGUAGE_MODELS:
        _refuse_images(name, {**of_images, "vision_from": vision_from, "card_images": card_images})
        settings, train = steps, _train_language_model
    else:
        known = ", ".join([*BUILT_INS, *LANGUAGE_MODELS])
        raise InvalidInputError(f"There is no built-in backbone {name!r}. Give one of {known}.")
    given = {key: value for key, value in settings.items() if value is not None}
    started = time.monotonic()
    with resumable("the training"), ProgressDisplay() as progress:
        accuracy = train({"backbone": name, "seed": seed, "save_every": save_every, **given}, out, card, progress)
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


def _refuse_images(name: str, options: dict[str, object]) -> None:
    for option, value in options.items():
        if value is not None:
            raise InvalidInputError(
                f"--{option.replace('_', '-')} was given, but {name} reads no images. Leave it out."
            )


def _train_with_vision(
    vision_from: Path | None,
    card_images: int | None,
    settings: dict[str, Any],
    out: Path,
    card: bool,
    progress: ProgressDisplay,
) -> Accuracy | None:
    from ..backbones import load_backbone
    from ..pretraining.cards import CARD_SEED, measure_backbone, write_card
    from ..pretraining.models import BUILT_INS
    from ..pretraining.train import PretrainingConfig
    from ..pretraining.train import train_backbone as pretrain

    config = PretrainingConfig(**settings)
    pretrain(out, config, progress.report, vision_from)
    if not card:
        return None
    images = card_images or 400
    backbone = load_backbone(out / "model")
    accuracy = measure_backbone(backbone, images, progress=progress.of("model card"))
    facts = _facts(backbone, config, card_images=images, card_seed=CARD_SEED)
    write_card(BUILT_INS[config.backbone], accuracy, facts, out / "model")
    return accuracy


def _train_language_model(
    settings: dict[str, Any], out: Path, card: bool, progress: ProgressDisplay
) -> Accuracy | None:
    from ..backbones import load_backbone
    from ..pretraining.cards import LANGUAGE_CARD_SEED, measure_language_model, write_language_card
    from ..pretraining.language_models import LANGUAGE_MODELS, LanguageModelConfig, train_language_model

    config = LanguageModelConfig(**settings)
    train_language_model(out, config, progress.report)
    if not card:
        return None
    backbone = load_backbone(out / "model")
    accuracy = measure_language_model(backbone, progress=progress.of("model card"))
    facts = _facts(backbone, config, card_seed=LANGUAGE_CARD_SEED)
    write_language_card(LANGUAGE_MODELS[config.backbone], accuracy, facts, out / "model")
    return accuracy


def _facts(backbone: Backbone, config: Any, **measured: object) -> dict[str, object]:
    """The facts of a model card other than accuracies."""
    parameters = sum(parameter.numel() for parameter in backbone.model.parameters())
    return {"parameters": parameters, **measured, "pretraining": json_format.dumps(asdict(config))}
