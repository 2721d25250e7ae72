"""`liveedit`: the commands. Results go to standard output, progress and errors to standard error.

Command modules import the library inside their commands, so that `liveedit edits` starts without torch.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence
from typing import Annotated

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
    given = spread_values([argument for argument in given if argument != "--debug"])
    try:
        command = typer.main.get_command(app)
        check_given_once(command, given)
        with quiet(debug):
            code = command(args=given, prog_name="liveedit", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except (KeyboardInterrupt, typer.Abort):
        complain("Interrupted.")
        return 130
    except InterruptedRunError as interruption:
        complain(str(interruption))
        return 130
    except Exception as error:
        if debug:
            traceback.print_exc()
        complain(_sentence(error))
        return 1
    finally:
        typed.reset(token)


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
