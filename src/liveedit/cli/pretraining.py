"""`liveedit train-backbone`: making a built-in backbone."""

from __future__ import annotations

import json as json_format
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import InvalidInputError
from .arguments import Json
from .console import Progress, load_quietly, print_fields, print_json, resumable


def register(app: typer.Typer) -> None:
    """Add this command."""
    app.command("train-backbone")(train_backbone)


def train_backbone(
    name: Annotated[str, typer.Argument(help="Which built-in backbone: tiny-llava, tiny-blip2 or tiny-minigpt4.")],
    out: Annotated[Path, typer.Option(help="Folder for checkpoints; the finished model lies in OUT/model.")],
    seed: Annotated[int, typer.Option(min=0, help="Seed of weights, pictures and batches.")] = 0,
    pictures: Annotated[int, typer.Option(min=1, help="Pictures to draw.")] = 60_000,
    vision_steps: Annotated[int, typer.Option(min=1, help="Steps of the vision stage.")] = 3_000,
    language_steps: Annotated[int, typer.Option(min=1, help="Steps of the language stage.")] = 1_150,
    vision_from: Annotated[
        Path | None, typer.Option(help="Folder of the checkpoint whose vision tiny-minigpt4 takes (tiny-blip2's).")
    ] = None,
    save_every: Annotated[int, typer.Option(min=1, help="Steps between checkpoints.")] = 200,
    card: Annotated[bool, typer.Option("--card", help="Measure the model and write its model card.")] = False,
    card_pictures: Annotated[int, typer.Option(min=1, help="Fresh pictures that the card is measured on.")] = 400,
    json: Json = False,
) -> None:
    """Pretrain a built-in backbone from scratch. Run again, it goes on where it was cut off."""
    load_quietly()
    from ..backbones.built_in.models import BUILT_INS
    from ..backbones.built_in.train import PretrainingConfig
    from ..backbones.built_in.train import train_backbone as pretrain

    if name not in BUILT_INS:
        raise InvalidInputError(f"There is no built-in backbone {name!r}. Give one of {', '.join(BUILT_INS)}.")
    config = PretrainingConfig(
        backbone=name,
        seed=seed,
        pictures=pictures,
        vision_steps=vision_steps,
        language_steps=language_steps,
        save_every=save_every,
    )
    started = time.monotonic()
    with resumable("the training"), Progress() as progress:
        pretrain(out, config, progress.report, vision_from)
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
    from ..backbones.built_in.card import CARD_SEED, measure_backbone, write_card
    from ..backbones.built_in.models import BUILT_INS

    backbone = load_backbone(folder)
    accuracy = measure_backbone(backbone, pictures, progress=progress.of("model card"))
    parameters = sum(parameter.numel() for parameter in backbone.model.parameters())
    facts: dict[str, object] = {
        "parameters": parameters,
        "card_pictures": pictures,
        "card_seed": CARD_SEED,
        "pretraining": json_format.dumps(config),
    }
    write_card(BUILT_INS[str(config["backbone"])], accuracy, facts, folder)
    return accuracy
