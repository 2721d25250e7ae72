"""`liveedit convert-minigpt4`: a transformers checkpoint from the published parts of MiniGPT-4."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer

from .console import ProgressDisplay, load_quietly, print_fields, print_json
from .options import Json


def register(app: typer.Typer) -> None:
    """Add these commands."""
    app.command("convert-minigpt4")(convert_minigpt4)


def convert_minigpt4(
    projection: Annotated[Path, typer.Option(help="MiniGPT-4's projection, such as pretrained_minigpt4_7b.pth.")],
    blip2: Annotated[Path, typer.Option(help="A BLIP-2 folder of transformers, or LAVIS's blip2_pretrained_*.pth.")],
    language_model: Annotated[Path, typer.Option(help="The folder of the Vicuna that the projection was made for.")],
    out: Annotated[Path, typer.Option(help="Folder for the model; must be new or empty.")],
    vision_tower: Annotated[Path | None, typer.Option(help="LAVIS's eva_vit_g.pth, if --blip2 is a .pth file.")] = None,
    dtype: Annotated[
        Literal["float16", "bfloat16", "float32"], typer.Option(help="Precision of the file.")
    ] = "float16",
    json: Json = False,
) -> None:
    """Build MiniGPT-4 as a folder for --backbone from its projection, BLIP-2 and Vicuna."""
    load_quietly()
    from ..backbones.conversion.minigpt4 import convert_minigpt4 as convert

    with ProgressDisplay() as progress:
        result = convert(
            projection, blip2, language_model, out, vision_tower, dtype, progress=progress.of("writing weights")
        )
    if json:
        print_json({**asdict(result), "folder": str(result.folder)})
        return
    print_fields(
        {
            "model": result.folder,
            "parameters": f"{result.parameters:,}",
            "weights": f"{result.weight_bytes / 1e9:.1f} GB in {len(result.files)} file(s), {result.dtype}",
            "image tokens": result.image_tokens,
        }
    )
