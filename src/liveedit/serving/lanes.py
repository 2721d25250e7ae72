"""Threads beside each other, for processors whose cores one batch does not fill."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import TypeVar

import torch

_Part = TypeVar("_Part")
_Result = TypeVar("_Result")

_FEWEST = 8
"""Questions that a lane takes at least: fewer are answered sooner in one batch."""


def default_lanes(device: torch.device) -> int:
    """Two where the model is on a processor that has two threads to give; an accelerator wants one large batch."""
    return 2 if device.type == "cpu" and torch.get_num_threads() > 1 else 1


class Lanes:
    """Answers a batch in parts, each on a thread of its own with its share of the processor.

    On processors the threads of one operation wait for the slowest of them, again at each operation; parts of a batch
    wait for one another only at the end. A small batch stays whole, and has all of the processor.
    """

    def __init__(self, count: int):
        self.count = count
        share = max(1, torch.get_num_threads() // count)
        self._pool = ThreadPoolExecutor(count, "liveedit-lane", torch.set_num_threads, (share,)) if count > 1 else None

    def split(self, lengths: Sequence[int]) -> list[list[int]]:
        """The places of a batch's questions, lane by lane: those of like length together, for the sake of padding."""
        count = max(1, min(self.count, len(lengths) // _FEWEST))
        places = sorted(range(len(lengths)), key=lambda place: lengths[place])
        bounds = [round(lane * len(places) / count) for lane in range(count + 1)]
        return [places[first:last] for first, last in pairwise(bounds)]

    def run(self, work: Callable[[_Part], _Result], parts: Sequence[_Part]) -> list[_Result]:
        """The results of the parts, in their order; where one fails, its error, once all have ended."""
        if self._pool is None or len(parts) == 1:
            return [work(part) for part in parts]
        futures = [self._pool.submit(work, part) for part in parts]
        for future in futures:
            future.exception()  # Waits for it.
        return [future.result() for future in futures]
