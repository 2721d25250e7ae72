"""Jobs: their order, those that fail, those whose process is killed, and the same jobs in processes and on Ray."""

from __future__ import annotations

import importlib.util
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from liveedit.errors import ConfigError, NotFoundError
from liveedit.experiments import jobs
from liveedit.experiments.jobs import Done, Outcome, Workers, run_jobs
from liveedit.progress import TaskProgress


def job_class() -> Any:
    """A class that is pickled whole: processes elsewhere cannot import this file."""

    @dataclass(frozen=True)
    class Task:
        title: str
        does: str = "works"
        stage: int = 0
        kind: str = "task"
        size: float = 1.0

        def run(self, report: TaskProgress) -> Done:
            if self.does == "fails":
                raise NotFoundError("There is no such thing.")
            if self.does == "breaks":
                raise ZeroDivisionError("by zero")
            if self.does == "is killed":
                os.kill(os.getpid(), signal.SIGKILL)
            report(self.title, 1, 1)
            return Done(
                ({"title": self.title, "process": os.getpid(), "folder": str(Path.cwd())},), self.does == "is kept"
            )

    Task.__module__ = "__main__"
    return Task


Task = job_class()


def titles(outcomes: list[Outcome]) -> list[str]:
    return [outcome.job.title for outcome in outcomes]


def test_outcomes_come_in_the_order_given_and_errors_do_not_stop_others() -> None:
    ended: list[tuple[str, int, int]] = []
    reported: list[str] = []
    outcomes = run_jobs(
        [Task("a"), Task("b", "fails"), Task("c", "breaks"), Task("d", "is kept")],
        Workers(),
        lambda outcome, done, total: ended.append((outcome.job.title, done, total)),
        lambda what, done, total: reported.append(what),
    )
    assert titles(outcomes) == ["a", "b", "c", "d"]
    assert ended == [("a", 1, 4), ("b", 2, 4), ("c", 3, 4), ("d", 4, 4)]
    assert reported == ["a", "d"]
    assert [outcome.done and outcome.done.kept for outcome in outcomes] == [False, None, None, True]
    assert outcomes[1].error == "There is no such thing."
    assert outcomes[2].error == "ZeroDivisionError: by zero"
    assert "in run" in outcomes[2].trace


def test_stages_come_first_and_within_a_stage_what_takes_longest(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = {"slow": 8.0, "quick": 1.0}
    order: list[str] = []

    def timed(place: int, job: Any, report: TaskProgress) -> tuple[int, Outcome]:
        order.append(job.title)
        return place, Outcome(job, seconds[job.kind] * job.size, Done((), kept=job.does == "is kept"))

    monkeypatch.setattr(jobs, "_run_here", timed)
    given = [
        Task("late and quick", stage=1, kind="quick", size=10),
        Task("late and slow", stage=1, kind="slow", size=10),
        Task("late and slow and small", stage=1, kind="slow"),
        Task("quick", kind="quick"),
        Task("slow", kind="slow"),
    ]
    run_jobs(given, Workers())
    assert order == ["quick", "slow", "late and slow", "late and quick", "late and slow and small"]
    order.clear()
    # What was kept tells nothing of times: its kind is still unknown, and goes first.
    run_jobs([Task("kept", "is kept", kind="quick"), Task("slow", kind="slow"), *given[:2]], Workers())
    assert order == ["kept", "slow", "late and quick", "late and slow"]


def test_an_interruption_is_passed_on_and_nothing_more_begins() -> None:
    begun: list[str] = []

    class Interrupted:
        title, stage, kind, size = "interrupted", 0, "task", 1.0

        def run(self, report: TaskProgress) -> Done:
            begun.append(self.title)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_jobs([Task("a"), Interrupted(), Interrupted()], Workers())
    assert begun == ["interrupted"]


def test_impossible_numbers_of_jobs_are_refused() -> None:
    with pytest.raises(ConfigError, match="0 jobs at once"):
        Workers(0)
    with pytest.raises(ConfigError, match=r"on a cluster\. Give 2 or more"):
        Workers(1, "auto")
    assert (Workers().count, Workers(3).count, Workers(cluster="auto").count) == (1, 3, -1)
    assert Workers(1).in_process and not Workers(2).in_process and not Workers(cluster="auto").in_process


def test_without_ray_a_cluster_is_refused_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(jobs.ClusterUnavailableError, match=r"liveedit\[cluster\]"):
        run_jobs([Task("a")], Workers(cluster="auto"))


@pytest.mark.slow
def test_processes_outlive_a_killed_one() -> None:
    given = [Task("a"), Task("b", "fails"), Task("c", "is killed"), *(Task(title) for title in "defg")]
    outcomes = run_jobs(given, Workers(2))
    assert titles(outcomes) == list("abcdefg")
    assert [outcome.done is not None for outcome in outcomes] == [True, False, False, True, True, True, True]
    assert "killed" in outcomes[2].error
    rows = [row for outcome in outcomes if outcome.done for row in outcome.done.rows]
    assert os.getpid() not in {row["process"] for row in rows}
    assert {row["folder"] for row in rows} == {str(Path.cwd())}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed (the extra `cluster`).")
def test_the_same_jobs_on_a_local_ray_cluster(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    order: list[str] = []
    ended: Callable[..., None] = lambda outcome, done, total: order.append(outcome.job.title)  # noqa: E731
    outcomes = run_jobs([Task("a"), Task("b", "fails"), Task("c"), Task("d")], Workers(2, "local"), ended)
    assert titles(outcomes) == list("abcd")
    assert sorted(order) == list("abcd")
    assert [outcome.done is not None for outcome in outcomes] == [True, False, True, True]
    rows = [row for outcome in outcomes if outcome.done for row in outcome.done.rows]
    assert os.getpid() not in {row["process"] for row in rows}
    assert {row["folder"] for row in rows} == {str(tmp_path)}
