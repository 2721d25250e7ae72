"""Threads beside each other, for processors whose cores one batch does not fill."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate, pairwise
from typing import TypeVar

import torch

_Part = TypeVar("_Part")
_Result = TypeVar("_Result")

_FEWEST = 8
"""Questions that a lane takes at least: fewer are answered sooner in one batch."""

_SMALL_PARAMETERS = 50_000_000
_MOST_LANES = 8


def default_lanes(device: torch.device, parameters: int) -> int:
    """One for each thread, up to eight, for a small model on a processor; else one, and large batches.

    A small model's operations are too short to share: their threads would wait for one another more than they work.
    A large model's weights are read from memory once for all of a batch, and on accelerators all of it is fast.
    """
    if device.type != "cpu" or parameters >= _SMALL_PARAMETERS:
        return 1
    return min(_MOST_LANES, torch.get_num_threads())


class Lanes:
    """Answers a batch in parts, each on a thread of its own with its share of the processor's.

    A small batch stays whole, on one of the lanes. With one lane all happens on the caller's thread.
    """

    def __init__(self, count: int):
        self.count = count
        share = max(1, torch.get_num_threads() // count)
        self._pool = ThreadPoolExecutor(count, "liveedit-lane", torch.set_num_threads, (share,)) if count > 1 else None

    def split(self, lengths: Sequence[float]) -> list[list[int]]:
        """The places of a batch's questions, lane by lane: those of like length together, for the sake of padding.

        lengths: of the questions, in any unit; each lane has its share of their sum.
        """
        count = max(1, min(self.count, len(lengths) // _FEWEST))
        places = sorted(range(len(lengths)), key=lambda place: lengths[place])
        sums = list(accumulate(lengths[place] for place in places))
        shares = [bisect_left(sums, lane * sums[-1] / count) for lane in range(1, count)]
        return [places[first:last] for first, last in pairwise([0, *shares, len(places)])]

    def run(self, work: Callable[[_Part], _Result], parts: Sequence[_Part]) -> list[_Result]:
        """The results of the parts, in their order; where one fails, its error, once all have ended."""
        if self._pool is None:
            return [work(part) for part in parts]
        futures = [self._pool.submit(work, part) for part in parts]
        for future in futures:
            future.exception()  # Waits for it.
        return [future.result() for future in futures]
