"""An experiment: its jobs, and the report made of their rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..progress import TaskProgress, no_task_progress
from .jobs import Ended, Job, Outcome, Row, Workers, run_jobs
from .report.report import Findings, write_findings

Summarize = Callable[[Sequence[Row], Sequence[tuple[str, str]]], Findings]
"""Makes the findings from the rows and the (job, error) pairs of what failed."""


@dataclass(frozen=True)
class Experiment:
    """A table or figure of a paper: its jobs, and the function that makes its findings from their rows."""

    name: str
    jobs: tuple[Job, ...]
    summarize: Summarize


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
    return ExperimentResult(findings, write_findings(findings, out), failed, measured)
