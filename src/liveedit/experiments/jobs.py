"""Independent jobs, run one by one, in several processes or on a Ray cluster. A job that fails stops no other."""

from __future__ import annotations

import logging
import os
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from ..errors import ConfigError, LiveEditError
from ..progress import TaskProgress, no_task_progress

Row = Mapping[str, Any]

_KILLED = "Its process was killed, also when the job ran alone. Check whether the system ran out of memory."


class ClusterUnavailableError(LiveEditError, ImportError):
    """A cluster is to be used, but Ray is not installed."""


class Job(Protocol):
    """A piece of work that depends on no other; it is pickled to the process that runs it."""

    @property
    def title(self) -> str:
        """A description in one line."""
        ...

    @property
    def stage(self) -> int:
        """Jobs of a lower stage start first."""
        ...

    @property
    def kind(self) -> str:
        """Jobs of the same kind take time in proportion to their sizes."""
        ...

    @property
    def size(self) -> float:
        """The amount of work, relative to other jobs of its kind."""
        ...

    def run(self, report: TaskProgress) -> Done:
        """Do the work, or read its result if it was done before."""
        ...


@dataclass(frozen=True)
class Done:
    """The result of a job: rows, and whether all of them existed already."""

    rows: tuple[Row, ...]
    kept: bool


@dataclass(frozen=True)
class Outcome:
    """How a job ended: with rows, or with an error."""

    job: Job
    seconds: float
    done: Done | None = None
    error: str = ""
    trace: str = ""


@dataclass(frozen=True)
class Workers:
    """Where jobs run.

    jobs: how many run at once; above 1, each has its own process with one torch thread. None: one, or as many as the
    cluster has CPUs. cluster: None for this machine, else "local" (a cluster on this machine), "auto" (a running one)
    or the address of a Ray cluster; its machines must have access to the folders that are given.
    """

    jobs: int | None = None
    cluster: str | None = None

    def __post_init__(self) -> None:
        fewest = 1 if self.cluster is None else 2
        if self.jobs is not None and self.jobs < fewest:
            where = "" if self.cluster is None else " on a cluster"
            raise ConfigError(f"{self.jobs} jobs at once were requested{where}. Give {fewest} or more.")

    @property
    def in_process(self) -> bool:
        """Whether jobs run in this process, so that their progress can be shown."""
        return self.jobs in (None, 1) and self.cluster is None

    @property
    def count(self) -> int:
        """How many run at once, as joblib counts: -1 for as many as there are CPUs."""
        return self.jobs or (1 if self.cluster is None else -1)


Ended = Callable[[Outcome, int, int], None]
"""Called with an outcome, the number of jobs that have ended, and the number of all jobs."""


def run_jobs(
    jobs: Sequence[Job], workers: Workers, ended: Ended = lambda *_: None, report: TaskProgress = no_task_progress
) -> list[Outcome]:
    """Run all jobs; the outcomes come in the order of `jobs`.

    A job that raises gives an outcome with its error. Ctrl-C stops all jobs and is raised again. Raises
    `ClusterUnavailableError` if a cluster is to be used without Ray.
    """
    queue = _Queue(list(jobs), list(range(len(jobs))))
    found: dict[int, Outcome] = {}
    with _backend(workers) as killings:
        try:
            while batch := queue.next_batch():
                for place, outcome in _until_killed(batch, queue, workers, report, killings):
                    found[place] = outcome
                    queue.took(place, outcome)
                    ended(outcome, len(found), len(jobs))
        except BaseException:
            _stop_workers(workers)
            raise
    return [found[place] for place in range(len(jobs))]


def _until_killed(
    places: Iterable[int], queue: _Queue, workers: Workers, report: TaskProgress, killings: type[Exception]
) -> Iterator[tuple[int, Outcome]]:
    """The outcomes of these jobs, until a process is killed."""
    from joblib import Parallel, delayed

    runner, argument = (_run_here, report) if workers.in_process else (_run_there, str(Path.cwd()))
    how: dict[str, Any] = {"batch_size": 1, "pre_dispatch": "n_jobs", "return_as": "generator_unordered"}
    parallel: Any = Parallel(n_jobs=workers.count, **how)
    try:
        yield from parallel(delayed(runner)(place, queue.jobs[place], argument) for place in places)
    except killings:
        yield from queue.killed()


@dataclass
class _Queue:
    """Indices of jobs in the order in which they start: by stage, and within a stage the longest first.

    How long a job takes is estimated from ended jobs of its kind; kinds without an ended job go first, in their order.
    When a process is killed, every job that was running is suspected, and is run again alone after all others.
    """

    jobs: list[Job]
    waiting: list[int]
    begun: set[int] = field(default_factory=set)
    suspects: list[int] = field(default_factory=list)
    alone: int | None = None
    """The suspect that is running."""
    seconds_per_size: dict[str, float] = field(default_factory=dict)

    def next_batch(self) -> Iterator[int] | None:
        """What to run next: all that wait, or one suspect; None if nothing is left."""
        if self.waiting:
            return self._in_order()
        if not self.suspects:
            return None
        self.alone = self.suspects.pop(0)
        return iter([self.alone])

    def _in_order(self) -> Iterator[int]:
        while self.waiting:
            place = min(self.waiting, key=self._rank)
            self.waiting.remove(place)
            self.begun.add(place)
            yield place

    def _rank(self, place: int) -> tuple[int, float]:
        job = self.jobs[place]
        known = self.seconds_per_size.get(job.kind)
        return (job.stage, float("-inf") if known is None else -known * job.size)

    def took(self, place: int, outcome: Outcome) -> None:
        """Record a job that has ended, and how long it took."""
        self.begun.discard(place)
        if outcome.done is not None and not outcome.done.kept and outcome.job.size > 0:
            self.seconds_per_size[outcome.job.kind] = outcome.seconds / outcome.job.size

    def killed(self) -> Iterator[tuple[int, Outcome]]:
        """Handle a killed process: running jobs become suspects; a job that ran alone has failed."""
        if self.alone is not None:
            yield self.alone, Outcome(self.jobs[self.alone], 0.0, None, _KILLED)
        else:
            self.suspects += sorted(self.begun)
            self.begun.clear()


def _run_here(place: int, job: Job, report: TaskProgress) -> tuple[int, Outcome]:
    started = time.perf_counter()
    try:
        done = job.run(report)
    except Exception as error:
        text = str(error) if isinstance(error, LiveEditError) else f"{type(error).__name__}: {error}"
        return place, Outcome(job, time.perf_counter() - started, None, text, traceback.format_exc())
    return place, Outcome(job, time.perf_counter() - started, done)


def _run_there(place: int, job: Job, folder: str) -> tuple[int, Outcome]:
    """Run a job in its own process, in the same folder, with one thread and no output but errors."""
    import warnings

    import torch
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    if Path(folder).is_dir():  # A machine of a cluster may lack it; paths must then be absolute.
        os.chdir(folder)
    torch.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _run_here(place, job, no_task_progress)


@contextmanager
def _backend(workers: Workers) -> Iterator[type[Exception]]:
    """Set joblib's backend; yields the error that it raises when a process was killed."""
    from joblib import parallel_config
    from joblib.externals.loky.process_executor import TerminatedWorkerError

    if workers.cluster is None:
        with parallel_config(backend="loky"):
            yield TerminatedWorkerError
        return
    try:
        import ray  # pyright: ignore[reportMissingImports]
        from ray.exceptions import RayError  # pyright: ignore[reportMissingImports]
        from ray.util.joblib.ray_backend import RayBackend  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ClusterUnavailableError(
            "A cluster is to be used, but Ray cannot be imported. Install it with: pip install 'liveedit[cluster]'"
        ) from error

    class StreamingRay(RayBackend):
        """Ray's backend with outcomes as they end; joblib only checks for this attribute."""

        supports_return_generator = True

    begun = not ray.is_initialized()
    if begun:
        passed = {name: value for name, value in os.environ.items() if name.startswith("LIVEEDIT_")}
        environment = {"env_vars": passed} if passed else {}
        ray.init(workers.cluster, log_to_driver=False, logging_level=logging.ERROR, runtime_env=environment)
    try:
        with parallel_config(backend=StreamingRay()):
            yield RayError
    finally:
        if begun:
            ray.shutdown()


def _stop_workers(workers: Workers) -> None:
    """End the worker processes, so that none continues a job that nobody waits for."""
    if workers.in_process or workers.cluster is not None:
        return
    from joblib.externals.loky import get_reusable_executor

    get_reusable_executor().shutdown(wait=True, kill_workers=True)
