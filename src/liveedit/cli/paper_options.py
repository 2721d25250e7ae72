"""Options that the commands of `liveedit paper` share, and how an experiment is run with its progress shown."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from .arguments import loading
from .console import Progress, console, note, print_json, resumable

if TYPE_CHECKING:
    from ..experiments.cells import Measuring
    from ..experiments.experiment import Conclusion, Experiment
    from ..experiments.jobs import Outcome, Workers

Out = Annotated[Path, typer.Option(help="Folder for rows, raw answers and the report.")]
Edits = Annotated[list[int] | None, typer.Option("--edits", min=1, help="Numbers of edits, several in a row.")]
Seeds = Annotated[list[int] | None, typer.Option("--seeds", min=0, help="Seeds, several in a row (0 1 2).")]
Data = Annotated[
    list[str] | None,
    typer.Option(
        "--data", help="world, world:SEED, a folder with eval.json, or FORMAT:FILE[:IMAGES]; several in a row."
    ),
]
Jobs = Annotated[
    int | None,
    typer.Option(
        "--jobs", min=1, help="Cells at once, each with one thread (one; on a cluster as many as it has CPUs)."
    ),
]
Cluster = Annotated[
    str | None,
    typer.Option(help="Run cells on a Ray cluster: local (this machine), auto, or its address."),
]
FewEditsCases = Annotated[
    int, typer.Option(min=1, help="For few edits: repeat on fresh models until so many cases are measured.")
]
Batch = Annotated[int, typer.Option("--batch", min=1, help="Questions per forward pass.")]
NewTokens = Annotated[int, typer.Option("--max-new-tokens", min=1, help="Longest free answer, in tokens.")]
MixedPrecision = Annotated[bool, typer.Option("--mixed-precision", help="Ask with bfloat16 products and float32 sums.")]


def measuring_of(
    cases: int, few_edits_cases: int, batch: int, max_new_tokens: int, mixed_precision: bool, load: list[str] | None
) -> Measuring:
    """The options as experiments want them."""
    from ..experiments.cells import Measuring

    return Measuring(
        cases=cases,
        few_edits_cases=few_edits_cases,
        batch=batch,
        max_new_tokens=max_new_tokens,
        mixed_precision=mixed_precision,
        load=tuple(sorted(loading(load).items())),
    )


def run_paper(
    experiment: Experiment, out: Path, workers: Workers, json: bool, data: list[str], cases: int
) -> int | None:
    """Run an experiment with its progress on the screen; the exit code is 1 where a cell failed."""
    from ..datasets.sources import open_data
    from ..experiments.experiment import run_experiment

    with resumable(f"liveedit paper {experiment.name}"), Progress() as progress:
        for source in data:  # Drawn here, once, and not by several processes at the same time.
            open_data(source, cases, progress.of("drawing"))

        def ended(outcome: Outcome, done: int, total: int) -> None:
            progress.note(f"[{done}/{total}] {_ending(outcome)}")
            if not workers.in_process:
                progress.report("cells", done, total)

        conclusion = run_experiment(experiment, out, workers, ended, progress.report)
    _show(conclusion, json)
    return 1 if conclusion.failed else None


def _ending(outcome: Outcome) -> str:
    if outcome.done is None:
        return f"{outcome.job.title}: FAILED ({' '.join(outcome.error.split())})"
    if outcome.done.kept:
        return f"{outcome.job.title}: there already"
    return f"{outcome.job.title}: {outcome.seconds:,.0f} s"


def _show(conclusion: Conclusion, json: bool) -> None:
    findings = conclusion.findings
    for outcome in conclusion.failed:
        note(f"Failed: {outcome.job.title}: {outcome.error}")
    if json:
        found: dict[str, Any] = {"rows": list(findings.rows), **(findings.extra or {})}
        failed = [{"job": job, "error": error} for job, error in findings.failed]
        print_json({**found, "failed": failed, "report": str(conclusion.report)})
        return
    screen = console()
    for table in findings.tables:
        screen.print(table.rich())
    for paragraph in findings.summary:
        screen.print(Text(paragraph))
    screen.print(Text(f"Report: {conclusion.report}"))
