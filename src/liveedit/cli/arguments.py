"""What the command line looks like before the commands see it, and the options that commands share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Final

import typer

SEVERAL_VALUES: Final[dict[str, tuple[str, ...]]] = {
    "bench": ("--edits", "--seeds", "--editor", "--editor-path"),
    "train": ("--stage", "--set"),
}
"""Options that take several values in a row, `--edits 1 10 100`, by command; no plain arguments there."""

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
BackboneName = Annotated[
    str, typer.Option("--backbone", help="Built-in name, folder of a transformers checkpoint, or hub name.")
]


def spread_values(arguments: Sequence[str]) -> list[str]:
    """`--edits 1 10` as `--edits 1 --edits 10`, which is how the parser wants it, where this is allowed."""
    command = next((argument for argument in arguments if not argument.startswith("-")), "")
    several = SEVERAL_VALUES.get(command, ())
    spread: list[str] = []
    option, values = "", 0
    for argument in arguments:
        if argument.startswith("-"):
            option, values = (argument if argument in several else ""), 0
        elif option:
            values += 1
            if values > 1:
                spread.append(option)
        spread.append(argument)
    return spread


def named_values(given: Sequence[str], option: str) -> dict[str, str]:
    """NAME=VALUE pairs as a mapping."""
    pairs = [item.partition("=") for item in given]
    for item, (name, _, value) in zip(given, pairs, strict=True):
        if not name or not value:
            raise typer.BadParameter(f"{option} {item!r} is not of the form NAME=VALUE.")
    return {name: value for name, _, value in pairs}
