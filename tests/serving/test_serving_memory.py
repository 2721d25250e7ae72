"""Memory of a server: freed memory is kept for the next batch where the C library can be told so."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from liveedit.serving.server import keep_freed_memory

_FAULTS_OF_BATCHES = """
import resource, sys, threading
import torch
from liveedit.serving.server import keep_freed_memory

if "keep" in sys.argv:
    assert keep_freed_memory()

def batch(seed):
    sizes = torch.randint(10_000, 1_000_000, (24,), generator=torch.Generator().manual_seed(seed)).tolist()
    together = [torch.ones(size) for size in sizes]

def worker():
    torch.set_num_threads(1)
    batch(0)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for seed in range(1, 14):
        batch(seed)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

thread = threading.Thread(target=worker)
thread.start()
thread.join()
"""


def faults(*arguments: str) -> int:
    """Pages that a process asks the system for in batches of some 50 MB after the first one, on a thread."""
    command = [sys.executable, "-c", _FAULTS_OF_BATCHES, *arguments]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library than glibc is left alone")
def test_the_next_batch_takes_the_memory_of_the_last_one() -> None:
    usual, kept = faults(), faults("keep")
    assert 4 * kept < usual


def test_other_systems_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not keep_freed_memory()
