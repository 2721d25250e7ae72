"""`liveedit`: the commands. Results go to standard output, progress and errors to standard error.

Command modules import the library inside their commands, so that `liveedit edits` starts without torch.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated, Any, Final

import typer

from .. import __version__
from ..errors import LiveEditError
from . import (
    calibrating,
    conversion,
    data,
    doctor,
    editing,
    edits,
    gallery,
    general_ability,
    measuring,
    paper,
    pretraining,
    results,
    serving,
    sharing,
    smol_llava,
    training,
)
from .arguments import check_given_once, spread_values, typed
from .console import InterruptedRunError, complain, quiet
from .several import each_command

_INTERRUPTED: Final = 130
"""The exit code of a command that Ctrl-C ended, as in shells."""

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Correct a frozen vision-language model, and undo any correction exactly.",
)
editing.register(app)
edits.register(app)
data.register(app)
doctor.register(app)
pretraining.register(app)
smol_llava.register(app)
calibrating.register(app)
training.register(app)
sharing.register(app)
measuring.register(app)
gallery.register(app)
general_ability.register(app)
conversion.register(app)
paper.register(app)
results.register(app)
serving.register(app)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"liveedit {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    pass


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code: 0, 1 for an error (printed in one line), 130 for Ctrl-C."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    token = typed.set(tuple(given))
    command = typer.main.get_command(app)
    given = spread_values([argument for argument in given if argument != "--debug"])
    commands: list[list[str]] = []
    try:
        code = _exit_code(lambda: commands.extend(_commands(command, given)), debug)
        for one in commands:
            if code != _INTERRUPTED:
                run = partial(command, args=one, prog_name="liveedit", standalone_mode=False)
                code = max(code, _exit_code(run, debug))
        return code
    finally:
        typed.reset(token)


def _commands(command: Any, given: list[str]) -> list[list[str]]:
    """What is run, one after the other: usually one command."""
    check_given_once(command, given)
    return each_command(command, given)


def _exit_code(run: Callable[[], object], debug: bool) -> int:
    """Run it, and print its error if it has one."""
    try:
        with quiet(debug):
            code = run()
        return code if isinstance(code, int) else 0
    except (KeyboardInterrupt, typer.Abort):
        complain("Interrupted.")
        return _INTERRUPTED
    except InterruptedRunError as interruption:
        complain(str(interruption))
        return _INTERRUPTED
    except Exception as error:
        if debug:
            traceback.print_exc()
        complain(_sentence(error))
        return 1


def _sentence(error: Exception) -> str:
    """The message for an error."""
    describe_usage = getattr(error, "format_message", None)  # Errors of the option parser have this.
    if describe_usage is not None:
        context = getattr(error, "ctx", None)
        command = context.command_path if context is not None else "liveedit"
        described = describe_usage().rstrip(". ")
        return f"{described}{'' if described.endswith('?') else '.'} See `{command} --help`."
    if isinstance(error, LiveEditError):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename or 'The system'}: {error.strerror}."
    return f"{type(error).__name__}: {error} (unexpected; --debug shows the traceback)."
