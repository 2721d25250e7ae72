"""`liveedit calibrate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import ConfigError, InvalidInputError
from ..registry import DEFAULT_TRAINED_EDITOR, UNTRAINED_EDITOR
from .arguments import loading, named_values
from .console import ProgressDisplay, load_quietly, print_fields, print_json
from .options import BackboneName, Json, LoadOptions

if TYPE_CHECKING:
    from ..backbones import Backbone
    from ..progress import Progress

_MOST_CASES = 300

Out = Annotated[Path, typer.Option("--out", help="Folder for the result; give it as --editor-path.")]
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
TrainedEditorName = Annotated[
    str | None, typer.Option("--editor", help=f"The kind of the trained editor ({DEFAULT_TRAINED_EDITOR}).")
]
EditorPath = Annotated[
    str | None,
    typer.Option("--editor-path", help="A trained editor, whose thresholds are chosen on the cases of --data."),
]
Cases = Annotated[
    str | None,
    typer.Option("--data", help="Cases that the editor was not trained on, as in `liveedit bench`."),
]
MostCases = Annotated[
    int | None, typer.Option("--cases", min=1, help=f"Use this many of the cases at most ({_MOST_CASES}).")
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
    editor: TrainedEditorName = None,
    editor_path: EditorPath = None,
    data: Cases = None,
    cases: MostCases = None,
    set: Settings = None,
    json: Json = False,
) -> None:
    """Measure how similar a question must be to an edit.

    Without --editor-path, calibrate fitted-experts, which needs no training. If you never do, that editor calibrates
    itself with built-in questions and drawn images when it first meets a model. Images of your own make it distinguish
    images like yours better.

    With --editor-path and --data, choose the thresholds of a trained editor on cases, and save a copy in --out. In it
    as many questions as possible find their edit, and an edit fires for at most --set false_firing=0.05 of the others.
    """
    load_quietly()
    from ..backbones import load_backbone
    from ..editors import editor_class

    if (editor_path is None) != (data is None):
        raise InvalidInputError("--editor-path and --data belong together: a trained editor, and cases. Give both.")
    if data is None and (editor is not None or cases is not None):
        raise InvalidInputError("--editor and --cases are for a trained editor. Give --editor-path and --data too.")
    found = _chosen_images(images, image_list, most_images)
    if found is not None and data is not None:
        raise InvalidInputError("--images was given with --data, whose cases have images. Give one of them.")
    settings, frozen = named_values(set, "--set"), load_backbone(backbone, **loading(load))
    with ProgressDisplay() as progress:
        report = progress.of("questions")
        if data is not None:
            assert editor_path is not None
            chosen = editor or DEFAULT_TRAINED_EDITOR
            result = _on_cases(chosen, editor_path, frozen, data, cases or _MOST_CASES, settings, out, report)
        else:
            figures = editor_class(UNTRAINED_EDITOR).calibrate(frozen, out, settings, found, report)
            shown = len(found) if found is not None else "drawn" if frozen.reads_images else None
            result = {**figures, "images": shown}
    result["use"] = f"--editor-path {out}"
    print_json(result) if json else print_fields(result)


def _on_cases(
    name: str,
    path: str,
    backbone: Backbone,
    data: str,
    most: int,
    settings: dict[str, str],
    out: Path,
    report: Progress,
) -> dict[str, Any]:
    """Choose a trained editor's thresholds and save it. Raises `ConfigError` for settings it does not have."""
    from ..datasets.sources import open_data
    from ..editors import trained_editor_class

    if unknown := settings.keys() - {"false_firing"}:
        raise ConfigError(f"There is no setting {', '.join(sorted(unknown))} of a trained editor. Give false_firing.")
    rate = settings.get("false_firing", 0.05)
    try:
        allowed = float(rate)
    except ValueError:
        allowed = -1.0
    if not 0 <= allowed < 1:
        raise ConfigError(f"false_firing={rate} was given. Give a share of the questions from 0 up to 1.")
    with trained_editor_class(name).load(backbone, path) as editor:
        found = open_data(data, most)
        cases = found.cases[:most]
        chosen = editor.calibrate_on(cases, allowed, report)
        editor.origin |= {"calibrated_on": f"{len(cases):,} cases of {found.name}", "false_firing": allowed}
        editor.save_pretrained(out)
    return {**{name: round(value, 3) for name, value in chosen.items()}, "cases": len(cases)}


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
