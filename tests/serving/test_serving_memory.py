"""Memory of a server: freed memory is kept for the next batch where the C library can be told so."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from liveedit.serving import memory

_FAULTS_OF_BATCHES = """
import resource, sys
import torch
from liveedit.serving.memory import keep_memory

if "keep" in sys.argv:
    assert keep_memory()

def batch():
    parts = [torch.ones(1024, 1024) for _ in range(16)]
    return sum(float(part[0, 0]) for part in parts)

batch()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(8):
    batch()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(*arguments: str) -> int:
    """Pages that a process asked the system for in eight batches of 64 MiB."""
    command = [sys.executable, "-c", _FAULTS_OF_BATCHES, *arguments]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="glibc's malloc is told so: on Linux alone")
def test_the_next_batch_takes_the_memory_of_the_last_one() -> None:
    usual, kept = faults(), faults("keep")
    assert kept < 1000 < usual


def test_other_systems_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not memory.keep_memory()
