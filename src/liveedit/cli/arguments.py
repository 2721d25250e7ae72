"""What the command line looks like before the commands see it, and how values of options are read."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final

import typer

from ..errors import InvalidInputError

if TYPE_CHECKING:
    from ..training.trainer import StageConfig

SEVERAL_VALUES: Final[dict[str, tuple[str, ...]]] = {
    "bench": ("--set", "--edits", "--seeds", "--editor", "--editor-path"),
    "robustness": ("--set", "--seeds", "--editor", "--editor-path", "--lengths", "--factors"),
    "eval": ("--tasks",),
    "train": ("--stage", "--set"),
    "paper": (
        "--edits",
        "--seeds",
        "--editor",
        "--editor-path",
        "--backbone",
        "--data",
        "--setting",
        "--grid",
        "--set",
        "--stage",
    ),
}
"""Options that take several values in a row, `--edits 1 10 100`, by command; no plain arguments there."""

typed: Final[ContextVar[tuple[str, ...] | None]] = ContextVar("typed", default=None)
"""The arguments of the command that runs, as they were typed."""


def command_line() -> str | None:
    """The command that runs, as it can be typed again; None outside of one."""
    given = typed.get()
    return None if given is None else shlex.join(["liveedit", *given])


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


def check_given_once(command: Any, arguments: Sequence[str]) -> None:
    """Raise `InvalidInputError` if an option that takes one value is given twice: the parser would take the last.

    command: all commands, as the parser has them.
    """
    rest = iter(arguments)
    given: set[str] = set()
    for argument in rest:
        if argument == "--":
            return
        if not argument.startswith("-"):
            command = getattr(command, "commands", {}).get(argument, command)
            continue
        name, has_value, _ = argument.partition("=")
        option = next((one for one in command.params if name in (*one.opts, *one.secondary_opts)), None)
        if option is None or getattr(option, "is_flag", True):
            continue
        if not has_value:
            next(rest, None)
        if option.name in given and not option.multiple:
            raise InvalidInputError(f"{name} was given more than once, and takes one value. Give it once.")
        given.add(option.name)


def named_values(given: Sequence[str] | None, option: str) -> dict[str, str]:
    """NAME=VALUE pairs as a mapping; empty if the option was not given."""
    given = given or ()
    pairs = [item.partition("=") for item in given]
    for item, (name, _, value) in zip(given, pairs, strict=True):
        if not name or not value:
            raise typer.BadParameter(f"{option} {item!r} is not of the form NAME=VALUE.")
    return {name: value for name, _, value in pairs}


def setting_value(text: str) -> object:
    """A setting's value: JSON where it is JSON (4, 0.5, true, null), text otherwise."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def settings_of(given: Sequence[str] | None) -> dict[str, Any]:
    """`--set NAME=VALUE` as values by name."""
    return {name: setting_value(text) for name, text in named_values(given, "--set").items()}


def loading(given: Sequence[str] | None) -> dict[str, Any]:
    """`--load` as arguments of `load_backbone`."""
    import torch

    values: dict[str, Any] = dict(named_values(given, "--load"))
    known = ("dtype", "device", "device_map", "quantization", "offload_folder")
    if unknown := sorted(values.keys() - set(known)):
        raise typer.BadParameter(f"--load knows no {', '.join(unknown)}. Give one of {', '.join(known)}.")
    if "dtype" in values:
        dtype = getattr(torch, values["dtype"], None)
        if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
            raise typer.BadParameter(f"--load dtype={values['dtype']!r}: give float32, float16 or bfloat16.")
        values["dtype"] = dtype
    if values.get("quantization", "8bit") not in ("8bit", "4bit"):
        raise typer.BadParameter(f"--load quantization={values['quantization']!r}: give 8bit or 4bit.")
    return values


def stages_of(given: Sequence[str] | None, usual: tuple[StageConfig, ...]) -> tuple[StageConfig, ...]:
    """Parse the stages of `--stage`, which have names of the usual ones; if none were given, the usual ones."""
    from pydantic import ValidationError

    from ..errors import ConfigError
    from ..training.trainer import StageConfig

    if not given:
        return usual
    stages = []
    for text in given:
        names = ("name", "steps", "batch", "learning_rate")
        try:
            stage = StageConfig.model_validate(dict(zip(names, text.split(":"), strict=True)))
        except (ValidationError, ValueError) as error:
            raise ConfigError(
                f"The stage {text!r} cannot be used. Give NAME:STEPS:BATCH:RATE, as in joint:300:32:3e-4."
            ) from error
        known = [stage.name for stage in usual]
        if stage.name not in known:
            raise ConfigError(f"There is no stage {stage.name!r}. Give one of {', '.join(known)}.")
        stages.append(stage)
    return tuple(stages)
