"""An experiment: its jobs, and the report made of their rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..progress import TaskProgress, no_task_progress
from .jobs import Ended, Job, Outcome, Row, Workers, run_jobs
from .report.report import Findings, write_findings

Summarize = Callable[[Sequence[Row], Sequence[tuple[str, str]]], Findings]
"""Makes the findings from the rows and the (job, error) pairs of what failed."""


@dataclass(frozen=True)
class Experiment:
    """A table or figure of a paper: its jobs, and the function that makes its findings from their rows.

    about: what `summarize` depends on besides rows, as JSON, so that the report can be verified.
    """

    name: str
    jobs: tuple[Job, ...]
    summarize: Summarize
    about: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ExperimentResult:
    """The result of running an experiment."""

    findings: Findings
    report: Path
    failed: tuple[Outcome, ...]
    measured: int
    """Number of jobs that ran; the others were done before, or failed."""


def run_experiment(
    experiment: Experiment,
    out: Path,
    workers: Workers,
    ended: Ended = lambda *_: None,
    report: TaskProgress = no_task_progress,
) -> ExperimentResult:
    """Run all jobs and write the report into `out`; it names jobs that failed. Jobs done before are not run again."""
    out.mkdir(parents=True, exist_ok=True)
    outcomes = run_jobs(experiment.jobs, workers, ended, report)
    rows = [row for outcome in outcomes if outcome.done is not None for row in outcome.done.rows]
    failed = tuple(outcome for outcome in outcomes if outcome.done is None)
    findings = experiment.summarize(rows, [(outcome.job.title, outcome.error) for outcome in failed])
    measured = sum(outcome.done is not None and not outcome.done.kept for outcome in outcomes)
    report_file = write_findings(findings, out, {"of": experiment.name, **experiment.about})
    return ExperimentResult(findings, report_file, failed, measured)
