"""Processes of a training, played by threads of which one runs at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from threading import Barrier, BrokenBarrierError, Lock, Thread
from typing import Any

import torch
from torch import Tensor

from liveedit.training.distributed import Processes


@dataclass
class Meeting:
    """Where they show each other what they hold."""

    count: int
    shown: dict[int, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.turn, self.barrier = Lock(), Barrier(self.count)

    def exchange(self, rank: int, value: Any) -> list[Any]:
        """What all of them show, by rank."""
        self.shown[rank] = value
        self._wait()
        found = [self.shown[other] for other in range(self.count)]
        self._wait()
        return found

    def _wait(self) -> None:
        self.turn.release()
        try:
            self.barrier.wait()
        finally:
            self.turn.acquire()


@dataclass(frozen=True)
class Simulated(Processes):
    """One of them. Rows come with their graphs, so that one backward through all losses is that of all processes."""

    meeting: Meeting = field(default_factory=lambda: Meeting(1))

    def gather(self, *parts: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.cat(rows) for rows in zip(*self.meeting.exchange(self.rank, parts), strict=True))

    def total(self, *numbers: float) -> list[float]:
        return [sum(column) for column in zip(*self.meeting.exchange(self.rank, numbers), strict=True)]


def simulate(count: int, work: Callable[[Simulated], Any]) -> list[Any]:
    """What each of `count` processes gives; raises what the first of them to fail raised."""
    meeting, results, errors = Meeting(count), {}, []

    def run(rank: int) -> None:
        with meeting.turn:
            try:
                results[rank] = work(Simulated(rank, count, meeting=meeting))
            except BrokenBarrierError:
                pass
            except BaseException as error:
                errors.append(error)
                meeting.barrier.abort()

    threads = [Thread(target=run, args=(rank,)) for rank in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return [results[rank] for rank in range(count)]
