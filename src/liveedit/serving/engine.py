"""Worker threads that share the model: waiting questions are answered in batches, and changes run alone."""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, Generic, Protocol, TypeVar, cast

from ..answers import above_threshold
from ..errors import LiveEditError, QueueFullError, ServiceStoppingError, WaitedTooLongError
from .metrics import Metrics
from .served_model import GenerationRequest, GenerationResult
from .settings import ServingSettings

_SMALLEST_SHARE: Final = 8
"""Fewest questions that a worker starts with while another is busy: fewer are answered sooner in its next batch."""

_log = logging.getLogger(__name__)


class AnsweringModel(Protocol):
    """What the engine needs of a model; `ServedModel` is one.

    Several threads may call these at once, except for `refresh`.
    """

    workers: int
    """The number of worker threads."""

    def start_worker(self) -> None:
        """Called once on each worker thread."""
        ...

    def is_outdated(self) -> bool:
        """Whether `refresh` has something to do. Both raise `StoreError` if the store is unreachable."""
        ...

    def refresh(self) -> Any:
        """Load the changes of other processes. No other thread uses the model meanwhile."""
        ...

    def check(self, prompt: str) -> None:
        """Raise if this prompt cannot be answered."""
        ...

    def answer(self, requests: Sequence[GenerationRequest], deadline: float) -> list[GenerationResult | Exception]:
        """Answers in the order of the requests."""
        ...

    @property
    def routing_seconds(self) -> float | None:
        """Seconds spent on routing this thread's last batch; None if unknown."""
        ...


_Model = TypeVar("_Model", bound=AnsweringModel)
_Result = TypeVar("_Result")
_Action = Callable[[Any], Any]


@dataclass(eq=False)
class _Job:
    """Work that waits for the model: either a request, or an action that needs the model for itself."""

    request: GenerationRequest | None
    action: _Action | None
    pixels: int
    future: Future[Any] = field(default_factory=Future)
    since: float = field(default_factory=time.monotonic)


class Engine(Generic[_Model]):
    """Serves one model to many callers.

    Worker threads answer batches of questions side by side. An action (an edit, an undo, a check) runs alone, so no
    answer sees half an edit. Jobs run in the order of arrival, except that a batch also takes questions that arrived
    after a waiting action. A question that is asked after an edit was acknowledged is answered with that edit.

    `ask` and `act` raise `QueueFullError`, `ServiceStoppingError`, `WaitedTooLongError`, and what the model raises.
    `close` finishes all accepted work.
    """

    def __init__(self, model: _Model, settings: ServingSettings, metrics: Metrics | None = None):
        self.settings, self.metrics = settings, metrics or Metrics()
        self._model = model
        self._jobs: deque[_Job] = deque()
        self._changed = threading.Condition()
        self._accepting = True
        self._running: list[list[_Job]] = []
        self.metrics.watch_queue(lambda: len(self._jobs))
        names = [f"liveedit-worker-{number}" for number in range(model.workers)]
        self._threads = [threading.Thread(target=self._work, name=name, daemon=True) for name in names]
        for thread in self._threads:
            thread.start()

    # -- submitting work ---------------------------------------------------------------------------------

    async def ask(self, request: GenerationRequest) -> GenerationResult:
        """Answer a question. If the caller is cancelled while the request waits, the request is dropped."""
        return cast(GenerationResult, await self._result(self._submit(_Job(request, None, request.pixels))))

    async def act(self, action: Callable[[_Model], _Result], pixels: int = 0) -> _Result:
        """Run a function of the model alone and return its result. Once started, it always completes."""
        return cast(_Result, await self._result(self._submit(_Job(None, action, pixels))))

    @property
    def is_ready(self) -> bool:
        """Whether new work is accepted."""
        return self._accepting and self.is_alive

    @property
    def is_alive(self) -> bool:
        """Whether all worker threads run."""
        return all(thread.is_alive() for thread in self._threads)

    def stop_accepting(self) -> None:
        """Refuse new work from now on. Takes no lock, so a signal handler may call it."""
        self._accepting = False

    def close(self) -> None:
        """Refuse new work, finish what was accepted, and end the threads."""
        self.stop_accepting()
        with self._changed:
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _submit(self, job: _Job) -> _Job:
        with self._changed:
            if not self._accepting:
                raise ServiceStoppingError("The service is shutting down and accepts no new work. Ask another replica.")
            waiting, pixels = len(self._jobs), sum(other.pixels for other in self._jobs)
            if waiting >= self.settings.queue:
                raise QueueFullError(f"{waiting} requests are waiting, which is the limit. Try again in a moment.")
            if job.pixels and pixels and pixels + job.pixels > self.settings.queue_pixels:
                raise QueueFullError(
                    f"The waiting images have {pixels:,} pixels and this request has {job.pixels:,}; at most "
                    f"{self.settings.queue_pixels:,} may wait. Try again in a moment, or send smaller images."
                )
            self._jobs.append(job)
            self._changed.notify_all()
        return job

    async def _result(self, job: _Job) -> Any:
        result = asyncio.wrap_future(job.future)
        try:
            await asyncio.wait({result}, timeout=self.settings.queue_seconds)
        except asyncio.CancelledError:
            result.cancel()  # This also cancels the job if it still waits.
            self._forget(job)
            raise
        if not result.done() and job.future.cancel():  # Only a waiting job can be cancelled.
            self._forget(job)
            raise WaitedTooLongError(
                f"The request waited {self.settings.queue_seconds:g} s for the model and was dropped. Try again later."
            )
        return await result

    def _forget(self, job: _Job) -> None:
        with self._changed:
            if job in self._jobs:
                self._jobs.remove(job)

    # -- worker threads ----------------------------------------------------------------------------------

    def _work(self) -> None:
        self._model.start_worker()
        while jobs := self._next():
            if jobs[0].action is not None:
                self._start(jobs, self._act)
            elif self._is_current(jobs):
                self._start(jobs, self._answer)
            self._leave(jobs)

    def _start(self, jobs: list[_Job], run: Callable[[list[_Job]], None]) -> None:
        started = [job for job in jobs if job.future.set_running_or_notify_cancel()]
        for job in started:
            self.metrics.wait_seconds.observe(time.monotonic() - job.since)
        if started:
            run(started)

    def _is_current(self, questions: list[_Job]) -> bool:
        """Whether these questions can be answered now. Otherwise they have failed, or wait for a refresh."""
        try:
            if not self._model.is_outdated():
                return True
        except Exception as error:
            self._start(questions, partial(_fail, error=error))
            return False
        with self._changed:
            self._jobs.extendleft(reversed([_Job(None, partial(self._refresh, questions), 0), *questions]))
        return False

    def _refresh(self, questions: list[_Job], model: _Model) -> None:
        """Refresh the model. If that fails, the questions that wait for it fail too; else they would retry forever."""
        try:
            model.refresh()
        except Exception as error:
            for job in questions:
                self._forget(job)
            self._start(questions, partial(_fail, error=error))

    def _next(self) -> list[_Job]:
        """Wait for the next jobs of this thread; an empty list ends it."""
        with self._changed:
            while not (taken := self._takeable()):
                if not self._jobs and not self._accepting:
                    return []
                self._changed.wait()
            chosen = set(map(id, taken))
            self._jobs = deque(job for job in self._jobs if id(job) not in chosen)
            self._running.append(taken)
            return taken

    def _takeable(self) -> list[_Job]:
        """The next action if no worker is busy, or a share of the questions if the next job is one."""
        if not self._jobs or any(jobs[0].action is not None for jobs in self._running):
            return []
        if self._jobs[0].action is not None:
            return [] if self._running else [self._jobs[0]]
        questions = [job for job in self._jobs if job.request is not None]
        in_progress = sum(map(len, self._running))
        return questions[: fair_share(len(questions), in_progress, len(self._threads), self.settings.batch)]

    def _leave(self, jobs: list[_Job]) -> None:
        with self._changed:
            self._running.remove(jobs)
            self._changed.notify_all()

    def _act(self, jobs: list[_Job]) -> None:
        for job in jobs:
            try:
                _finish(job, cast(_Action, job.action)(self._model))
            except Exception as error:
                _finish(job, error)

    def _answer(self, jobs: list[_Job]) -> None:
        accepted = [job for job in jobs if self._is_accepted(job)]
        if not accepted:
            return
        self.metrics.batch_size.observe(len(accepted))
        try:
            results = self._results(accepted)
        except Exception as error:
            _log.info("A batch of %d failed (%s).", len(accepted), error)
            for job in accepted:
                self._answer_alone(job, error) if len(accepted) > 1 else _finish(job, error)
            return
        for job, result in zip(accepted, results, strict=True):
            self._deliver(job, result)

    def _answer_alone(self, job: _Job, batch_error: Exception) -> None:
        """Answer one question of a failed batch again, so that one bad question does not fail the others."""
        if not isinstance(batch_error, LiveEditError) and cast(GenerationRequest, job.request).on_text is not None:
            _finish(job, batch_error)  # Its client may have received a part, and must not receive it twice.
            return
        try:
            self._deliver(job, self._results([job])[0])
        except Exception as error:
            _finish(job, error)

    def _results(self, jobs: Sequence[_Job]) -> list[GenerationResult | Exception]:
        deadline = time.monotonic() + self.settings.answer_seconds
        results = self._model.answer([cast(GenerationRequest, job.request) for job in jobs], deadline)
        if (seconds := self._model.routing_seconds) is not None:
            self.metrics.routing_seconds.observe(seconds)
        return results

    def _is_accepted(self, job: _Job) -> bool:
        try:
            self._model.check(cast(GenerationRequest, job.request).prompt)
        except Exception as error:
            _finish(job, error)
            return False
        return True

    def _deliver(self, job: _Job, result: GenerationResult | Exception) -> None:
        if isinstance(result, GenerationResult):
            metrics = self.metrics
            metrics.answer_seconds.observe(time.monotonic() - job.since)
            fired = above_threshold(result.fired)
            metrics.answers.labels("yes" if fired else "no").inc()
            metrics.edits_fired.inc(len(fired))
            metrics.tokens.labels("prompt").inc(result.prompt_tokens)
            metrics.tokens.labels("answer").inc(result.answer_tokens)
        _finish(job, result)


def fair_share(waiting: int, in_progress: int, workers: int, batch: int) -> int:
    """Batch size for an idle worker; 0 means wait for more requests.

    waiting: questions in the queue. in_progress: questions that other workers are answering. batch: most questions
    answered at once, by all workers together. Workers share the questions evenly, so that all finish at about the
    same time.
    """
    if in_progress and waiting < _SMALLEST_SHARE:
        return 0
    share = max(_SMALLEST_SHARE, math.ceil((waiting + in_progress) / workers))
    return max(0, min(share, waiting, batch - in_progress))


def _fail(jobs: list[_Job], error: Exception) -> None:
    for job in jobs:
        _finish(job, error)


def _finish(job: _Job, result: object) -> None:
    if isinstance(result, Exception):
        job.future.set_exception(result)
    else:
        job.future.set_result(result)
