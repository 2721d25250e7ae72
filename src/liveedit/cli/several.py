"""Several tables and figures of the papers in one command: `liveedit paper table1 figure6 --out DIR`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice, takewhile
from pathlib import Path
from typing import Any

from ..errors import InvalidInputError


def each_command(command: Any, arguments: Sequence[str]) -> list[list[str]]:
    """The commands that arguments stand for, usually one.

    command: all commands, as the parser has them. With several names after `paper`, each is a command of its own: its
    folder is that of `--out` and its name, and it has the options that it knows. All are parsed here, so that nothing
    is run if one is wrong. Raises `InvalidInputError` for an option that none knows, and for `--json`.
    """
    known = command.commands["paper"].commands
    if not arguments or arguments[0] != "paper":
        return [list(arguments)]
    named = list(takewhile(known.__contains__, arguments[1:]))
    names = list(dict.fromkeys(named))
    if len(names) < 2:
        return [list(arguments)]
    given = list(_options(arguments[1 + len(named) :], [known[name] for name in names]))
    found = [[*_of(known[name], given), *_folder(given, name)] for name in names]
    for name, options in zip(names, found, strict=True):
        known[name].make_context(f"liveedit paper {name}", list(options))
    return [["paper", name, *options] for name, options in zip(names, found, strict=True)]


def _options(arguments: Sequence[str], commands: Sequence[Any]) -> Iterator[tuple[str, list[str]]]:
    """Each option with its name and its arguments, as they were given."""
    rest = iter(arguments)
    for argument in rest:
        name, has_value, _ = argument.partition("=")
        option = next((found for one in commands if (found := _option(one, name))), None)
        if option is None:
            raise InvalidInputError(
                f"{argument!r} is neither a table or figure nor an option of one of them. Give all names before the "
                "options; `liveedit paper --help` lists them."
            )
        if name == "--json":
            raise InvalidInputError("--json prints one JSON object. Give one table or figure, or leave --json out.")
        is_whole = has_value or getattr(option, "is_flag", False)
        yield name, [argument] if is_whole else [argument, *islice(rest, 1)]


def _of(command: Any, given: Sequence[tuple[str, list[str]]]) -> list[str]:
    """The options that a command knows, without its folder."""
    return [part for name, parts in given if name != "--out" and _option(command, name) for part in parts]


def _folder(given: Sequence[tuple[str, list[str]]], name: str) -> list[str]:
    folders = [parts[-1].removeprefix("--out=") for option, parts in given if option == "--out"]
    return ["--out", str(Path(folders[0]) / name)] if folders else []


def _option(command: Any, name: str) -> Any:
    return next((one for one in command.params if name in (*one.opts, *one.secondary_opts)), None)
