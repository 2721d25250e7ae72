"""`liveedit calibrate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..errors import InvalidInputError
from ..registry import UNTRAINED_EDITOR
from .arguments import loading, named_values
from .console import ProgressDisplay, load_quietly, print_fields, print_json
from .options import BackboneName, Json, LoadOptions

Out = Annotated[Path, typer.Option("--out", help="Folder for the calibration; give it as --editor-path.")]
Images = Annotated[
    Path | None,
    typer.Option("--images", help="Folder of images like those that edits will be about; no labels are needed."),
]
ImageList = Annotated[
    Path | None,
    typer.Option("--image-list", help="Use only the images that this text file lists: a path in --images per line."),
]
MostImages = Annotated[int, typer.Option("--most-images", min=16, help="Use this many of the images at most.")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", help="NAME=VALUE, a setting of the editor, such as false_firing=0.005; once for each."),
]

_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"}


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(calibrate)


def calibrate(
    out: Out,
    backbone: BackboneName = "tiny-llava",
    load: LoadOptions = None,
    images: Images = None,
    image_list: ImageList = None,
    most_images: MostImages = 96,
    set: Settings = None,
    json: Json = False,
) -> None:
    """Measure how a model's hidden states vary, for fitted-experts, the editor that needs no training.

    Without this command the editor does it with built-in questions and drawn images when it first meets a model. Images
    of your own make it distinguish images like yours better.
    """
    load_quietly()
    from ..backbones import load_backbone
    from ..editors import editor_class

    kind, found = editor_class(UNTRAINED_EDITOR), _chosen_images(images, image_list, most_images)
    frozen = load_backbone(backbone, **loading(load))
    with ProgressDisplay() as progress:
        figures = kind.calibrate(
            frozen,
            out,
            named_values(set, "--set"),
            found,
            lambda done, total: progress.report("questions", done, total),
        )
    shown = len(found) if found is not None else "drawn" if frozen.reads_images else None
    result = {**figures, "images": shown, "use": f"--editor-path {out}"}
    print_json(result) if json else print_fields(result)


def _chosen_images(folder: Path | None, listed: Path | None, most: int) -> list[Path] | None:
    if folder is not None:
        return images_in(folder, most, listed)
    if listed is not None:
        raise InvalidInputError("--image-list was given without --images, the folder that its paths lie in. Give both.")
    return None


def images_in(folder: Path, most: int, listed: Path | None = None) -> list[Path]:
    """Up to `most` image files of a folder and its subfolders, spread evenly over their sorted paths.

    listed: a text file with paths in the folder, one per line, if not all of its images are to be used.

    Raises `InvalidInputError` if there is no such folder or list, no image in it, or no such image.
    """
    if not folder.is_dir():
        raise InvalidInputError(f"There is no folder {str(folder)!r}. Give a folder of images with --images.")
    if listed is None:
        files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in _SUFFIXES)
    else:
        files = _images_of(listed, folder)
    if not files:
        raise InvalidInputError(
            f"{str(listed or folder)!r} holds no image ({', '.join(sorted(_SUFFIXES))}). Give another with "
            f"--{'images' if listed is None else 'image-list'}."
        )
    step = max(1.0, len(files) / most)
    return [files[int(place * step)] for place in range(min(most, len(files)))]


def _images_of(listed: Path, folder: Path) -> list[Path]:
    try:
        lines = listed.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInputError(f"{listed} cannot be read as a list of images: {error}. Give a text file.") from error
    files = sorted(folder / line.strip() for line in lines if line.strip())
    missing = [file for file in files if not file.is_file()]
    if missing:
        raise InvalidInputError(
            f"{len(missing)} of the {len(files)} images that {listed} lists are not there, the first of them "
            f"{missing[0]}. Its paths lie in --images {folder}."
        )
    return files
