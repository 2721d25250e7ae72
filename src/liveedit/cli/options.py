"""The options that several commands have, each declared once, and how a command takes a group of them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import typer

from ..registry import check_backbone_name

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]

# -- the model and its editor ----------------------------------------------------------------------------------


def _backbone_name(name: str) -> str:
    """The name as it is, checked before anything slow is imported."""
    check_backbone_name(name)
    return name


BackboneName = Annotated[
    str,
    typer.Option(
        "--backbone",
        help="Built-in name, folder of a transformers checkpoint, GGUF file, or hub name.",
        callback=_backbone_name,
    ),
]
LoadOptions = Annotated[
    list[str] | None,
    typer.Option(
        "--load",
        help="NAME=VALUE for how the backbone is loaded: dtype, device, device_map, quantization (8bit, 4bit), "
        "offload_folder; once for each.",
    ),
]
EditorName = Annotated[
    str | None,
    typer.Option(
        "--editor",
        help="An editor that makes one expert per edit. Default: the one that the edits were made with, or "
        "liveedit-refine where it is trained for the backbone, else fitted-experts, which needs no training.",
    ),
]
EditorPath = Annotated[
    Path | None,
    typer.Option(
        "--editor-path",
        help="Folder of a trained editor, or of a calibration (liveedit calibrate), or a repository of a hub with "
        "either: OWNER/NAME[@REVISION].",
    ),
]
ExpertsOn = Annotated[
    Literal["device", "host"],
    typer.Option("--experts-on", help="Where experts lie: in the device's memory, or in mapped files on the host."),
]

Stages = Annotated[
    list[str] | None,
    typer.Option("--stage", help="NAME:STEPS:BATCH:RATE, several in a row; for liveedit: routing, generator, joint."),
]

# -- edits and their store -------------------------------------------------------------------------------------

EditsLocation = Annotated[
    str, typer.Option("--edits", help="The edits file (SQLite), or the URL of a PostgreSQL database.")
]
EditId = Annotated[str, typer.Argument(metavar="ID", help="The edit's id, or its first characters.")]
AtRevision = Annotated[
    int | None, typer.Option("--at", help="A revision: ask with the edits that were active after it.")
]
Author = Annotated[str | None, typer.Option("--author", help="Who makes this change, for the history.")]
Note = Annotated[str | None, typer.Option("--note", help="Why this change is made, for the history.")]
KeepImage = Annotated[
    bool, typer.Option("--keep-image", help="Keep the whole image with the edit, not only a thumbnail.")
]
ProbeEdits = Annotated[
    int, typer.Option("--probe-edits", min=0, help="How many of the nearest active edits are asked again.")
]
MustTake = Annotated[
    bool,
    typer.Option(
        "--must-take/--no-must-take", help="Store nothing, and fail, if the model does not give the new answer then."
    ),
]
OnConflict = Annotated[
    Literal["refuse", "supersede", "keep"],
    typer.Option(
        "--on-conflict",
        help="If an edit has another answer than an active edit of the same question: refuse imports nothing and "
        "lists both; supersede replaces the active one until the imported one is undone; keep leaves both active.",
    ),
]

# -- measurements ----------------------------------------------------------------------------------------------

Out = Annotated[Path, typer.Option("--out", help="Folder for rows, raw answers and the report.")]
Batch = Annotated[int, typer.Option("--batch", min=1, help="Questions per forward pass.")]
MaxNewTokens = Annotated[
    int | None,
    typer.Option(
        "--max-new-tokens", min=1, help="Length limit of free answers, in tokens (as the data's longest answer needs)."
    ),
]
FewEditsCases = Annotated[
    int,
    typer.Option(
        "--few-edits-cases", min=1, help="For few edits: repeat on fresh models until this many cases are measured."
    ),
]
MixedPrecision = Annotated[bool, typer.Option("--mixed-precision", help="Ask with bfloat16 products and float32 sums.")]
DistinctSubjects = Annotated[
    bool,
    typer.Option(
        "--distinct-subjects", help="Only the first case of each subject: in ZsRE, later ones often contradict it."
    ),
]
OneSeed = Annotated[list[int] | None, typer.Option("--seeds", min=0, help="Seeds, several in a row (0).")]

# -- groups ----------------------------------------------------------------------------------------------------


def with_options(*groups: type[Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a command the fields of these dataclasses as options of their own.

    The last parameters of the command take an instance of each dataclass, in this order; typer sees its other
    parameters and then the fields, with their annotations and defaults.
    """

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        hints = get_type_hints(command, include_extras=True)
        given = list(inspect.signature(command).parameters.values())
        own = [one.replace(annotation=hints[one.name], kind=_KEYWORD) for one in given[: -len(groups)]]
        taking = [parameter.name for parameter in given[-len(groups) :]]
        shared = [_parameter(group, name) for group in groups for name in _names(group)]

        def run(**values: Any) -> Any:
            for parameter, group in zip(taking, groups, strict=True):
                values[parameter] = group(**{name: values.pop(name) for name in _names(group)})
            return command(**values)

        parameters = [*own, *shared]
        run.__name__, run.__doc__ = command.__name__, command.__doc__
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return run

    return decorate


_KEYWORD = inspect.Parameter.KEYWORD_ONLY


def _names(group: type[Any]) -> list[str]:
    return [field.name for field in fields(group)]


def _parameter(group: type[Any], name: str) -> inspect.Parameter:
    field = group.__dataclass_fields__[name]
    default = inspect.Parameter.empty if field.default is MISSING else field.default
    annotation = get_type_hints(group, include_extras=True)[name]
    return inspect.Parameter(name, _KEYWORD, default=default, annotation=annotation)
