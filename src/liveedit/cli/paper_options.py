"""Options that the commands of `liveedit paper` share, and how an experiment is run with its progress shown."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_type_hints

import typer
from rich.text import Text

from .arguments import LoadOptions, MaxNewTokens, command_line, loading, named_values, setting_value
from .console import Progress, console, note, print_json, resumable

if TYPE_CHECKING:
    from ..experiments.experiment import Experiment, ExperimentResult
    from ..experiments.jobs import Outcome, Workers
    from ..experiments.liveedit.trained_runs import Training
    from ..experiments.runs import BenchOptions

Out = Annotated[Path, typer.Option(help="Folder for rows, raw answers and the report.")]
Edits = Annotated[list[int] | None, typer.Option("--edits", min=1, help="Numbers of edits, several in a row.")]
Seeds = Annotated[list[int] | None, typer.Option("--seeds", min=0, help="Seeds, several in a row (0 1 2).")]
DistinctSubjects = Annotated[
    bool,
    typer.Option(
        "--distinct-subjects", help="Only the first case of each subject: in ZsRE, later ones often contradict it."
    ),
]
DataSource = Annotated[str, typer.Option("--data", help="world, world:SEED, a folder, or FORMAT:FILE[:IMAGES].")]


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


@dataclass(frozen=True)
class RunOptions:
    """How the runs of an experiment are executed and printed."""

    jobs: Annotated[
        int | None,
        typer.Option(
            "--jobs", min=1, help="Runs at once, each with one thread (one; on a cluster as many as it has CPUs)."
        ),
    ] = None
    cluster: Annotated[
        str | None, typer.Option(help="Execute the runs on a Ray cluster: local (this machine), auto, or its address.")
    ] = None
    batch: Annotated[int, typer.Option("--batch", min=1, help="Questions per forward pass.")] = 128
    max_new_tokens: MaxNewTokens = None
    load: LoadOptions = None
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False

    @property
    def workers(self) -> Workers:
        """Where the runs are executed."""
        from ..experiments.jobs import Workers

        return Workers(self.jobs, self.cluster)

    def bench(self, cases: int, few_edits_cases: int = 1, mixed_precision: bool = False) -> BenchOptions:
        """The options of the bench; cases: the least number of cases to open."""
        from ..experiments.runs import BenchOptions

        return BenchOptions(
            cases=cases,
            few_edits_cases=few_edits_cases,
            batch=self.batch,
            max_new_tokens=self.max_new_tokens,
            mixed_precision=mixed_precision,
            load=tuple(sorted(loading(self.load).items())),
            command=command_line(),
        )


@dataclass(frozen=True)
class LifelongOptions(RunOptions):
    """Options of experiments on the lifelong bench."""

    few_edits_cases: Annotated[
        int, typer.Option(min=1, help="For few edits: repeat on fresh models until this many cases are measured.")
    ] = 100
    mixed_precision: Annotated[
        bool, typer.Option("--mixed-precision", help="Ask with bfloat16 products and float32 sums.")
    ] = False

    def bench_of(self, edits: Sequence[int]) -> BenchOptions:
        """The options of the bench for these numbers of edits."""
        return self.bench(max(edits), self.few_edits_cases, self.mixed_precision)


@dataclass(frozen=True)
class TrainingOptions:
    """How the editors of an experiment are trained."""

    train_data: Annotated[
        str, typer.Option(help="Trained on: world, world:SEED, a folder, or FORMAT:FILE[:IMAGES].")
    ] = "world"
    cases: Annotated[int | None, typer.Option(min=2, help="Cases to train on (world: 16,000; files: all).")] = None
    form: Annotated[
        Literal["improved", "paper"], typer.Option(help="The improved form of LiveEdit, or the paper's own.")
    ] = "improved"
    steps_share: Annotated[float, typer.Option(help="Share of the training steps, 0.1 for a quick trial.")] = 1.0
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", help="NAME=VALUE for a setting of editor or losses that all trainings share."),
    ] = None

    @property
    def training(self) -> Training:
        """The training configuration that all runs share."""
        from ..experiments.liveedit.trained_runs import Training

        settings = settings_of(self.changes)
        return Training(
            self.train_data, self.cases, self.form, self.steps_share, settings=tuple(sorted(settings.items()))
        )


def settings_of(changes: list[str] | None) -> dict[str, Any]:
    """NAME=VALUE pairs of `--set`."""
    return {name: setting_value(text) for name, text in named_values(changes or [], "--set").items()}


def run_paper(experiment: Experiment, out: Path, options: RunOptions, data: Sequence[str], cases: int) -> int | None:
    """Run an experiment with its progress on the screen; the exit code is 1 if a run failed."""
    from ..datasets.sources import open_data
    from ..experiments.experiment import run_experiment

    workers = options.workers
    with resumable(f"liveedit paper {experiment.name}"), Progress() as progress:
        for source in data:  # Drawn here, once, and not by several processes at the same time.
            open_data(source, cases, progress.of("drawing"))

        def ended(outcome: Outcome, done: int, total: int) -> None:
            progress.note(f"[{done}/{total}] {_ending(outcome)}")
            if not workers.in_process:
                progress.report("runs", done, total)

        result = run_experiment(experiment, out, workers, ended, progress.report)
    _show(result, options.json)
    return 1 if result.failed else None


def _ending(outcome: Outcome) -> str:
    if outcome.done is None:
        return f"{outcome.job.title}: FAILED ({' '.join(outcome.error.split())})"
    if outcome.done.kept:
        return f"{outcome.job.title}: done before"
    return f"{outcome.job.title}: {outcome.seconds:,.0f} s"


def _show(result: ExperimentResult, json: bool) -> None:
    findings = result.findings
    for outcome in result.failed:
        note(f"Failed: {outcome.job.title}: {outcome.error}")
    if json:
        found: dict[str, Any] = {"rows": list(findings.rows), **(findings.extra or {})}
        failed = [{"job": job, "error": error} for job, error in findings.failed]
        print_json({**found, "failed": failed, "report": str(result.report)})
        return
    screen = console()
    for table in findings.tables:
        screen.print(table)
    for paragraph in findings.summary:
        screen.print(Text(paragraph))
    screen.print(Text(f"Report: {result.report}"))
