"""`liveedit data`: looking annotation files through, drawing worlds, and making benchmarks of photographs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.text import Text

from .console import ProgressDisplay, console, print_fields, print_json
from .options import Json, with_options

if TYPE_CHECKING:
    from ..datasets import DataReport
    from ..datasets.photos import Features

data = typer.Typer(
    no_args_is_help=True, help="Check annotation files, draw synthetic worlds, make benchmarks of photographs."
)

SHOWN_PROBLEMS = 10


def register(app: typer.Typer) -> None:
    """Add these commands."""
    app.add_typer(data, name="data")


@data.command()
def check(
    format: Annotated[
        str,
        typer.Argument(
            help="edits, easyedit, mmedit (also e-vqa, e-ic), vlkeb, zsre, selfcheckgpt, or another installed format."
        ),
    ],
    file: Annotated[Path, typer.Argument(help="The annotation file.")],
    images: Annotated[Path | None, typer.Option(help="The image folder; without it images are not checked.")] = None,
    json: Json = False,
) -> None:
    """Count rows, images and empty fields, and list problems; the exit code is 1 if there are any."""
    from ..datasets import check
    from ..errors import DatasetError

    with ProgressDisplay() as progress:
        report = check(format, file, images, progress=progress.of("images"))
    if json:
        print_json(report.to_dict())
    else:
        _print_report(report)
    if not report.ok:
        raise DatasetError(f"{file} has {report.problem_count} problems, the first being: {report.problems[0]}")


def _print_report(report: DataReport) -> None:
    listed = {
        name: ", ".join(f"{key} {count:,}" for key, count in getattr(report, name).items()) or "none"
        for name in ("empty_fields", "unused_keys", "probes", "answer_types")
    }
    numbers = ("rows", "rows_read", "unique_images", "shared_images", "missing_images", "unreadable_images")
    counted = {name: getattr(report, name) for name in numbers}
    shown = {name: "not checked" if count is None else f"{count:,}" for name, count in counted.items()}
    print_fields({**shown, **listed, "problems": f"{report.problem_count:,}"}, f"{report.format}: {report.file}")
    for problem in report.problems[:SHOWN_PROBLEMS]:
        console().print(Text(f"- {problem}"))
    if report.problem_count > SHOWN_PROBLEMS:
        console().print(Text(f"- and {report.problem_count - SHOWN_PROBLEMS:,} more"))


@dataclass(frozen=True)
class HarderOptions:
    """Shares of harder cases in a drawn world, from 0 to 1."""

    captions: Annotated[float, typer.Option(help="Share of cases with a caption of 15 to 18 words as answer.")] = 0.0
    long_names: Annotated[float, typer.Option(help="Share with a name of four and more tokens as answer.")] = 0.0
    conflicts: Annotated[float, typer.Option(help="Share that edits the fact of an earlier case again.")] = 0.0
    combined: Annotated[float, typer.Option(help="Share in pairs that edit two facts of one image.")] = 0.0
    things: Annotated[float, typer.Option(help="Share about one of two to four things in the image.")] = 0.0


@data.command("draw")
@with_options(HarderOptions)
def draw_world(
    out: Annotated[Path, typer.Option(help="Folder for images, train.json and eval.json.")],
    seed: Annotated[int, typer.Option(min=0, help="The same seed draws the same bytes.")] = 0,
    train: Annotated[int, typer.Option(min=0, help="Cases to train on.")] = 8000,
    eval: Annotated[int, typer.Option(min=0, help="Cases to measure on.")] = 1200,
    json: Json = False,
    *,
    shares: HarderOptions,
) -> None:
    """Draw a synthetic world: images of creatures, with edits and the questions that measure them.

    Shares of harder cases are from 0 to 1 and add up to 1 at most; the rest are the usual cases.
    """
    from ..datasets.world import HarderShares, write_world

    harder = HarderShares(**vars(shares))
    with ProgressDisplay() as progress:
        files = write_world(out, seed, train, eval, progress.of("drawing"), harder)
    if json:
        written = {k: str(v) for k, v in files.items()}
        print_json({"seed": seed, "train": train, "eval": eval, "harder": harder.to_dict(), "files": written})
        return
    print_fields({part: f"{path} ({train if part == 'train' else eval:,} cases)" for part, path in files.items()})


@data.command("photos")
def make_photos(
    images: Annotated[Path, typer.Option(help="A folder of class folders with photographs (jpg, jpeg, png).")],
    out: Annotated[Path, typer.Option(help="Folder for train.json, validation.json, eval.json and about.json.")],
    seed: Annotated[int, typer.Option(min=0, help="The same seed and photographs give the same bytes.")] = 0,
    train: Annotated[int, typer.Option(min=0, help="Cases to train on.")] = 4000,
    validation: Annotated[
        int, typer.Option(min=0, help="Cases to choose thresholds on, with `liveedit calibrate`.")
    ] = 0,
    eval: Annotated[
        int, typer.Option(min=0, help="Cases to measure on; how many the classes allow is limited.")
    ] = 1000,
    classes: Annotated[
        Path | None, typer.Option(help='What is known of the classes: {"FOLDER": {"name", "group", "use", "home"}}.')
    ] = None,
    features: Annotated[
        Literal["tower", "pixels"],
        typer.Option(help="What finds near duplicates: a vision tower, or colors and layout without any weights."),
    ] = "tower",
    json: Json = False,
) -> None:
    """Make a benchmark of photographs: edits of what they show, with the questions that measure them."""
    from ..datasets.photos import read_classes, write_photos

    known = None if classes is None else read_classes(classes)
    with ProgressDisplay() as progress:
        report = progress.of("features")
        written = write_photos(
            images, out, seed, train, eval, _features(features), known, report, validation=validation
        )
    files = {part: str(path) for part, path in written.files.items()}
    about = written.about
    if json:
        print_json({**about, "files": files})
        return
    print_fields(
        {
            **{part: f"{path} ({about[part]:,} cases)" for part, path in files.items()},
            "classes": f"{about['classes']:,}",
            "too few photographs": ", ".join(about["left_out"]) or "none",
            "equal photographs": f"{len(about['copies']):,} left out",
            "never edited": ", ".join(about["unedited"]) or "none",
        }
    )


def _features(name: Literal["tower", "pixels"]) -> Features:
    from ..datasets.photos import pixel_features

    if name == "pixels":
        return pixel_features
    from ..backbones.efficientnet_lite import photo_features, pretrained_tower
    from ..errors import NotFoundError

    try:
        pretrained_tower()  # Before any photograph is read.
    except NotFoundError as missing:
        raise NotFoundError(f"{missing} Or give --features pixels.") from missing
    return photo_features
