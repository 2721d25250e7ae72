"""Options that the commands of `liveedit paper` share, and how an experiment is run with its progress shown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from .arguments import command_line, loading, settings_of, stages_of
from .console import ProgressDisplay, console, note, print_json, resumable
from .options import Batch, FewEditsCases, Json, LoadOptions, MaxNewTokens, MixedPrecision, Stages

if TYPE_CHECKING:
    from ..editors.trained import Form
    from ..experiments.experiment import Experiment, ExperimentResult
    from ..experiments.jobs import Outcome, Workers
    from ..experiments.liveedit.trained_runs import Training
    from ..experiments.runs import BenchOptions

Edits = Annotated[list[int] | None, typer.Option("--edits", min=1, help="Numbers of edits, several in a row.")]
Seeds = Annotated[list[int] | None, typer.Option("--seeds", min=0, help="Seeds, several in a row (0 1 2).")]
DataSource = Annotated[str, typer.Option("--data", help="world, world:SEED, a folder, or FORMAT:FILE[:IMAGES].")]


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
    batch: Batch = 128
    max_new_tokens: MaxNewTokens = None
    load: LoadOptions = None
    json: Json = False

    @property
    def workers(self) -> Workers:
        """Where the runs are executed."""
        from ..experiments.jobs import Workers

        return Workers(self.jobs, self.cluster)

    @property
    def loaded(self) -> tuple[tuple[str, Any], ...]:
        """How the backbones are loaded, in the order of names."""
        return tuple(sorted(loading(self.load).items()))

    def bench(self, cases: int, few_edits_cases: int = 1, mixed_precision: bool = False) -> BenchOptions:
        """The options of the bench; cases: the least number of cases to open."""
        from ..experiments.runs import BenchOptions

        return BenchOptions(
            cases=cases,
            few_edits_cases=few_edits_cases,
            batch=self.batch,
            max_new_tokens=self.max_new_tokens,
            mixed_precision=mixed_precision,
            load=self.loaded,
            command=command_line(),
        )


@dataclass(frozen=True)
class LifelongOptions(RunOptions):
    """Options of experiments on the lifelong bench."""

    few_edits_cases: FewEditsCases = 100
    mixed_precision: MixedPrecision = False

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
    steps_share: Annotated[float, typer.Option(help="Share of the training steps, 0.1 for a quick trial.")] = 1.0
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", help="NAME=VALUE for a setting of editor or losses that all trainings share."),
    ] = None

    stage: Stages = None

    def training_of(self, form: Form) -> Training:
        """The training configuration that all runs share. form: of LiveEdit."""
        from ..experiments.liveedit.trained_runs import Training, usual_stages

        settings = settings_of(self.changes)
        return Training(
            self.train_data,
            self.cases,
            form,
            self.steps_share,
            stages=stages_of(self.stage, usual_stages(form)) if self.stage else (),
            settings=tuple(sorted(settings.items())),
        )


def check_backbones(experiment: Experiment) -> None:
    """Raise `BackboneError` if a backbone of the runs is nowhere, before anything is drawn for them."""
    from ..backbones.loading import located
    from ..experiments.runs import Run

    for name in dict.fromkeys(job.backbone for job in experiment.jobs if isinstance(job, Run)):
        located(name)


def run_paper(experiment: Experiment, out: Path, options: RunOptions, data: Sequence[str], cases: int) -> int | None:
    """Run an experiment with its progress on the screen; the exit code is 1 if a run failed."""
    from ..datasets.sources import open_data
    from ..experiments.experiment import run_experiment

    check_backbones(experiment)
    workers = options.workers
    with resumable(f"liveedit paper {experiment.name}"), ProgressDisplay() as progress:
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
