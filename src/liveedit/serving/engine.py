"""Threads that have the model between them: questions that wait are answered together, changes run alone."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Generic, Protocol, TypeVar, cast

from ..answers import above_threshold
from ..errors import LiveEditError, QueueFullError, ServiceStoppingError, WaitedTooLongError
from .metrics import Metrics
from .served_model import Query, Reply
from .settings import ServingSettings
from .workers import fair_share

_log = logging.getLogger(__name__)


class AnsweringModel(Protocol):
    """What the engine wants of a model; `ServedModel` is one. All but `refresh` may run on several threads at once."""

    workers: int
    """How many threads answer beside each other."""

    def enter_worker(self) -> None:
        """Called once by each of these threads, on itself."""
        ...

    def is_outdated(self) -> bool:
        """Whether `refresh` has something to do; both raise `StoreError` where the store is away."""
        ...

    def refresh(self) -> Any:
        """Take in what others have changed; nobody else has the model then."""
        ...

    def check(self, query: Query) -> None:
        """Raise where this question alone cannot be taken."""
        ...

    def answer(self, queries: Sequence[Query], deadline: float) -> list[Reply | Exception]:
        """Answers in the order of the questions."""
        ...

    @property
    def routing_seconds(self) -> float | None:
        """How long finding the edits of this thread's last batch took."""
        ...


_Model = TypeVar("_Model", bound=AnsweringModel)
_Result = TypeVar("_Result")
_Action = Callable[[Any], Any]


@dataclass(eq=False)
class _Job:
    """Something that waits for the model: a question, or an action that has it for itself."""

    query: Query | None
    action: _Action | None
    pixels: int
    future: Future[Any] = field(default_factory=Future)
    since: float = field(default_factory=time.monotonic)


class Engine(Generic[_Model]):
    """Serves a model to many.

    Its threads, one for each lane of the model, answer batches of questions beside each other. An action (an edit, an
    undo, a look at the list) runs alone, so that no answer sees half an edit. First come, first served, except that a
    batch takes along the questions that wait behind an action; whoever was told of an edit sees it.

    Raises at `ask` and `act`: `QueueFullError`, `ServiceStoppingError`, `WaitedTooLongError`, and whatever the model
    raises. `close` finishes what was accepted.
    """

    def __init__(self, model: _Model, settings: ServingSettings, metrics: Metrics | None = None):
        self.settings, self.metrics = settings, metrics or Metrics()
        self._model = model
        self._jobs: deque[_Job] = deque()
        self._changed = threading.Condition()
        self._accepting = True
        self._at_work: list[list[_Job]] = []
        self.metrics.watch_queue(lambda: len(self._jobs))
        names = [f"liveedit-lane-{number}" for number in range(model.workers)]
        self._threads = [threading.Thread(target=self._work, name=name, daemon=True) for name in names]
        for thread in self._threads:
            thread.start()

    # -- asking for work ---------------------------------------------------------------------------------

    async def ask(self, query: Query) -> Reply:
        """The answer to a question. A question whose caller is cancelled while it waits is dropped."""
        return cast(Reply, await self._result(self._submit(_Job(query, None, query.pixels))))

    async def act(self, action: Callable[[_Model], _Result], pixels: int = 0) -> _Result:
        """What a function of the model returns; it has the model for itself. Once begun it is finished."""
        return cast(_Result, await self._result(self._submit(_Job(None, action, pixels))))

    @property
    def is_ready(self) -> bool:
        """Whether it takes work."""
        return self._accepting and self.is_alive

    @property
    def is_alive(self) -> bool:
        """Whether the threads of the model run."""
        return all(thread.is_alive() for thread in self._threads)

    def stop_accepting(self) -> None:
        """Refuse new work from now on. Takes no lock, so that a signal handler may call it."""
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
                raise ServiceStoppingError("The service is shutting down and takes nothing new. Ask another replica.")
            waiting, pixels = len(self._jobs), sum(other.pixels for other in self._jobs)
            if waiting >= self.settings.queue:
                raise QueueFullError(f"{waiting} requests wait already, and no more may. Try again in a moment.")
            if job.pixels and pixels and pixels + job.pixels > self.settings.queue_pixels:
                raise QueueFullError("Too many images wait already. Try again in a moment, or give smaller ones.")
            self._jobs.append(job)
            self._changed.notify_all()
        return job

    async def _result(self, job: _Job) -> Any:
        result = asyncio.wrap_future(job.future)
        try:
            await asyncio.wait({result}, timeout=self.settings.queue_seconds)
        except asyncio.CancelledError:
            result.cancel()  # And the job with it, if it still waits.
            self._forget(job)
            raise
        if not result.done() and job.future.cancel():  # It can be cancelled only while it waits.
            self._forget(job)
            raise WaitedTooLongError(
                f"The request waited {self.settings.queue_seconds:g} s for the model and was dropped. Try again later."
            )
        return await result

    def _forget(self, job: _Job) -> None:
        with self._changed:
            if job in self._jobs:
                self._jobs.remove(job)

    # -- the threads of the model ------------------------------------------------------------------------

    def _work(self) -> None:
        self._model.enter_worker()
        while jobs := self._next():
            if jobs[0].action is not None:
                self._begin(jobs, self._act)
            elif self._is_current(jobs):
                self._begin(jobs, self._answer)
            self._leave(jobs)

    def _begin(self, jobs: list[_Job], do: Callable[[list[_Job]], None]) -> None:
        begun = [job for job in jobs if job.future.set_running_or_notify_cancel()]
        for job in begun:
            self.metrics.wait_seconds.observe(time.monotonic() - job.since)
        if begun:
            do(begun)

    def _is_current(self, questions: list[_Job]) -> bool:
        """Whether these questions can be answered now; else they were put back behind a refresh, or have failed."""
        try:
            if not self._model.is_outdated():
                return True
        except Exception as error:
            self._begin(questions, partial(_fail, error=error))
            return False
        with self._changed:
            self._jobs.extendleft(reversed([_Job(None, partial(self._refresh, questions), 0), *questions]))
        return False

    def _refresh(self, questions: list[_Job], model: _Model) -> None:
        """Refresh the model; where that fails, so do the questions that wait for it: they would ask for it for ever."""
        try:
            model.refresh()
        except Exception as error:
            for job in questions:
                self._forget(job)
            self._begin(questions, partial(_fail, error=error))

    def _next(self) -> list[_Job]:
        """What this thread is to do next, once something can be begun; nothing when all is done."""
        with self._changed:
            while not (taken := self._takeable()):
                if not self._jobs and not self._accepting:
                    return []
                self._changed.wait()
            chosen = set(map(id, taken))
            self._jobs = deque(job for job in self._jobs if id(job) not in chosen)
            self._at_work.append(taken)
            return taken

    def _takeable(self) -> list[_Job]:
        """The next action, if nobody is at work, or a share of the questions, if the next job is one."""
        if not self._jobs or any(jobs[0].action is not None for jobs in self._at_work):
            return []
        if self._jobs[0].action is not None:
            return [] if self._at_work else [self._jobs[0]]
        questions = [job for job in self._jobs if job.query is not None]
        being_answered = sum(map(len, self._at_work))
        return questions[: fair_share(len(questions), being_answered, len(self._threads), self.settings.batch)]

    def _leave(self, jobs: list[_Job]) -> None:
        with self._changed:
            self._at_work.remove(jobs)
            self._changed.notify_all()

    def _act(self, jobs: list[_Job]) -> None:
        for job in jobs:
            try:
                _finish(job, cast(_Action, job.action)(self._model))
            except Exception as error:
                _finish(job, error)

    def _answer(self, jobs: list[_Job]) -> None:
        fit = [job for job in jobs if self._is_fit(job)]
        if not fit:
            return
        self.metrics.batch_size.observe(len(fit))
        try:
            replies = self._replies(fit)
        except Exception as error:
            _log.info("A batch of %d failed (%s).", len(fit), error)
            for job in fit:
                self._answer_alone(job, error) if len(fit) > 1 else _finish(job, error)
            return
        for job, reply in zip(fit, replies, strict=True):
            self._deliver(job, reply)

    def _answer_alone(self, job: _Job, error_together: Exception) -> None:
        """One bad question is not to spoil its neighbours' answers."""
        if not isinstance(error_together, LiveEditError) and cast(Query, job.query).listener is not None:
            _finish(job, error_together)  # Its listener may have heard a part, and is not to hear it again.
            return
        try:
            self._deliver(job, self._replies([job])[0])
        except Exception as error:
            _finish(job, error)

    def _replies(self, jobs: Sequence[_Job]) -> list[Reply | Exception]:
        deadline = time.monotonic() + self.settings.answer_seconds
        replies = self._model.answer([cast(Query, job.query) for job in jobs], deadline)
        if (seconds := self._model.routing_seconds) is not None:
            self.metrics.routing_seconds.observe(seconds)
        return replies

    def _is_fit(self, job: _Job) -> bool:
        try:
            self._model.check(cast(Query, job.query))
        except Exception as error:
            _finish(job, error)
            return False
        return True

    def _deliver(self, job: _Job, reply: Reply | Exception) -> None:
        if isinstance(reply, Reply):
            metrics = self.metrics
            metrics.answer_seconds.observe(time.monotonic() - job.since)
            fired = above_threshold(reply.fired)
            metrics.answers.labels("yes" if fired else "no").inc()
            metrics.edits_fired.inc(len(fired))
            metrics.tokens.labels("prompt").inc(reply.prompt_tokens)
            metrics.tokens.labels("answer").inc(reply.answer_tokens)
        _finish(job, reply)


def _fail(jobs: list[_Job], error: Exception) -> None:
    for job in jobs:
        _finish(job, error)


def _finish(job: _Job, result: object) -> None:
    if isinstance(result, Exception):
        job.future.set_exception(result)
    else:
        job.future.set_result(result)
