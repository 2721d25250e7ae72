"""Threads that answer beside each other, for processors whose cores one batch does not fill."""

from __future__ import annotations

import math

import torch

FEWEST = 8
"""Questions that a lane begins with at least while another is at work: fewer are answered sooner in its next batch."""

_SMALL_PARAMETERS = 50_000_000
_MOST_WORKERS = 8


def default_workers(device: torch.device, parameters: int) -> int:
    """One for each thread, up to eight, for a small model on a processor; else one, and large batches.

    A small model's operations are too short to share: their threads would wait for one another more than they work.
    A large model's weights are read from memory once for all of a batch, and on accelerators all of it is fast.
    """
    if device.type != "cpu" or parameters >= _SMALL_PARAMETERS:
        return 1
    return min(_MOST_WORKERS, torch.get_num_threads())


def fair_share(waiting: int, being_answered: int, workers: int, batch: int) -> int:
    """How many of the questions that wait a free lane takes; 0 where it had better wait for the others.

    waiting, being_answered: questions, the latter by other lanes. batch: most that may be answered at once, by all
    lanes together. Lanes share evenly what there is, so that none ends long after the others.
    """
    if being_answered and waiting < FEWEST:
        return 0
    share = max(FEWEST, math.ceil((waiting + being_answered) / workers))
    return max(0, min(share, waiting, batch - being_answered))
