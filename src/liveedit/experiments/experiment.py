"""What an experiment is: its jobs, and what is made of how they ended."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from .jobs import Ended, Job, Outcome, Report, Row, Workers, run_jobs
from .report.report import Findings, write_findings

Conclude = Callable[[Sequence[Row], Sequence[tuple[str, str]]], Findings]
"""What rows show, and (job, error) of what failed."""


@dataclass(frozen=True)
class Experiment:
    """A table or figure of a paper: the jobs that it takes, and how its report is made of their rows."""

    name: str
    jobs: tuple[Job, ...]
    conclude: Conclude


@dataclass(frozen=True)
class Conclusion:
    """What running an experiment gave."""

    findings: Findings
    report: Path
    failed: tuple[Outcome, ...]
    measured: int
    """Jobs that were worked on; the others were done before, or failed."""


def run_experiment(
    experiment: Experiment,
    out: Path,
    workers: Workers,
    ended: Ended = lambda *_: None,
    report: Report = lambda *_: None,
) -> Conclusion:
    """Run all jobs and write the report into `out`; jobs that fail are named in it. Done jobs are not run again."""
    out.mkdir(parents=True, exist_ok=True)
    outcomes = run_jobs(experiment.jobs, workers, ended, report)
    rows = [row for outcome in outcomes if outcome.done is not None for row in outcome.done.rows]
    failed = tuple(outcome for outcome in outcomes if outcome.done is None)
    findings = experiment.conclude(rows, [(outcome.job.title, outcome.error) for outcome in failed])
    measured = sum(outcome.done is not None and not outcome.done.kept for outcome in outcomes)
    return Conclusion(findings, write_findings(findings, out), failed, measured)
