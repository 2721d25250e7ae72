"""`liveedit eval`: the tasks of lm-eval or lmms-eval before and after edits; and tasks made of data that is here."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.text import Text

from .arguments import command_line, loading
from .console import ProgressDisplay, console, load_quietly, note, print_fields, print_json, resumable
from .data import data
from .loading import ModelOptions
from .options import (
    AtRevision,
    EditsLocation,
    Json,
    with_options,
)

HarnessName = Annotated[
    Literal["lm-eval", "lmms-eval"], typer.Option("--harness", help="lm-eval (text) or lmms-eval (images).")
]


def register(app: typer.Typer) -> None:
    """Add these commands."""
    app.command("eval")(evaluate)
    data.command("tasks")(make_tasks)


@dataclass(frozen=True)
class HarnessArguments:
    """What a harness measures."""

    limit: Annotated[int | None, typer.Option(min=1, help="Documents of each task; by default all.")] = None
    few_shot: Annotated[
        int | None, typer.Option(min=0, help="Examples before each question; by default the task's own.")
    ] = None
    chat_template: Annotated[
        bool, typer.Option("--chat-template", help="lm-eval only: put questions into the model's chat format.")
    ] = False
    batch: Annotated[int, typer.Option(min=1, help="Requests per forward pass.")] = 8


@with_options(HarnessArguments, ModelOptions)
def evaluate(
    edits: EditsLocation,
    tasks: Annotated[list[str], typer.Option("--tasks", help="Tasks and groups of the harness, several in a row.")],
    out: Annotated[Path, typer.Option(help="Folder for rows, samples and the report.")],
    harness: HarnessName = "lm-eval",
    include_path: Annotated[Path | None, typer.Option(help="A folder with tasks of your own (YAML).")] = None,
    at: AtRevision = None,
    json: Json = False,
    *,
    options: HarnessArguments,
    model_options: ModelOptions,
) -> None:
    """Measure what edits do to general ability: the same tasks on the unedited and on the edited model.

    Interrupted, and run again, it keeps the column that is done.
    """
    load_quietly()
    from ..evaluation.harnesses.measuring import tasks_digest
    from ..evaluation.harnesses.report import ability_tables, changed_documents, write_ability_report
    from ..evaluation.harnesses.running import EvalConfig, harness_version

    harness_version(harness)  # Before a model is loaded.
    if include_path is not None and not include_path.is_dir():
        raise typer.BadParameter(f"--include-path {str(include_path)!r} is no folder. Give the folder of the tasks.")
    config = EvalConfig(harness=harness, tasks=tuple(dict.fromkeys(tasks)), **vars(options))
    loaded = model_options.edited_model(edits, json=json, at=at)
    # Harnesses print what they do: standard output is for the result.
    with resumable("the evaluation"), redirect_stdout(sys.stderr), loaded as model:
        rows = _measure(model, config, out, model_options, include_path, tasks_digest(include_path))
    report = write_ability_report(rows, out)
    if json:
        print_json({"rows": rows, "report": str(report)})
        return
    for table in ability_tables(rows, changed_documents(out)):
        console().print(table)
    console().print(Text(f"Report: {report}"))


def _measure(
    model: Any, config: Any, out: Path, options: ModelOptions, include: Path | None, selection: str
) -> list[dict[str, Any]]:
    """The rows of both columns."""
    from ..evaluation.bench import backbone_name
    from ..evaluation.harnesses.measuring import GeneralAbility
    from ..evaluation.provenance import make_provenance

    provenance = make_provenance(model.backbone, [], selection, command_line(), loading(options.load))
    name = backbone_name(options.backbone)
    return GeneralAbility(model, config, out, provenance, name, include, note).run()


def make_tasks(
    out: Annotated[Path, typer.Option(help="Folder for the tasks.")],
    source: Annotated[
        str, typer.Option("--data", help="world, facts, either with :SEED, a folder, or FORMAT:FILE[:IMAGES].")
    ],
    harness: HarnessName = "lm-eval",
    name: Annotated[str | None, typer.Option(help="How task names begin; by default the name of the data.")] = None,
    count: Annotated[int, typer.Option(min=1, help="Questions of each task, at most.")] = 500,
    seed: Annotated[int, typer.Option(min=0, help="Which questions, and which wrong answers.")] = 0,
    json: Json = False,
) -> None:
    """Make tasks for lm-eval or lmms-eval of the questions of a data set that edits should leave alone."""
    from ..datasets.sources import open_data
    from ..evaluation.harnesses.local_tasks import write_tasks

    with ProgressDisplay() as progress:
        found = open_data(source, count, progress.of("drawing"))
    title = name or found.name.rpartition(":")[2].partition(".")[0] or found.name
    tasks = write_tasks(found.cases, harness, out, title, count, seed)
    if json:
        print_json({"tasks": list(tasks), "folder": str(out)})
        return
    print_fields({"folder": out, "tasks": ", ".join(tasks)})
