"""Writers killed at random moments, also on a full disk: what was acknowledged is there, nothing is half there.

`LIVEEDIT_KILLS` says how many kills; `make torture` asks for 200.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import store_writer
from edit_examples import bits

from liveedit.experts.opening import is_absent
from liveedit.experts.store import EditStore

KILLS = int(os.environ.get("LIVEEDIT_KILLS", "10"))
LONGEST_LIFE_S = 0.15


class Torturer:
    """Kills writers of one edits file, and keeps what they had acknowledged before."""

    def __init__(self, location: Path | str, seed: int = 1):
        self.location, self._chance = location, random.Random(seed)
        self.seeds: dict[str, int] = {}
        self.in_force: dict[str, bool] = {}
        self.acknowledged = self.refused = self.kills = 0
        self._command = [sys.executable, str(store_writer.__file__), str(location)]
        self._process = subprocess.Popen(self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def kill_one(self, largest_file: int = 0) -> None:
        """Let a writer begin, and kill it within `LONGEST_LIFE_S` seconds of its beginning or of its first change."""
        process = self._process
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(f"{largest_file}\n")
        process.stdin.flush()
        pid = int(process.stdout.readline().split()[1])
        if self._chance.random() < 0.8:  # Else it may be killed while it opens the file.
            self._note(*process.stdout.readline().split())
        time.sleep(self._chance.uniform(0, LONGEST_LIFE_S))
        os.kill(pid, signal.SIGKILL)
        self.kills += 1
        self.read_to_end()

    def begin_one(self) -> int:
        """Let a writer begin; its process id."""
        process = self._process
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write("0\n")
        process.stdin.flush()
        return int(process.stdout.readline().split()[1])

    def read_one(self) -> None:
        """Wait for a line of the writer."""
        assert self._process.stdout is not None
        self._note(*self._process.stdout.readline().split())

    def read_to_end(self) -> None:
        """What a writer had said before it was killed."""
        assert self._process.stdout is not None
        while (line := self._process.stdout.readline().split()) != ["ended"]:
            assert line, "the writers' parent died"
            self._note(*line)

    def _note(self, kind: str, edit_id: str = "", seed: str = "") -> None:
        if kind == "full":
            self.refused += 1
            return
        self.acknowledged += 1
        self.in_force[edit_id] = kind != "undo"
        if kind == "edit":
            self.seeds[edit_id] = int(seed)

    def check(self) -> None:
        """Everything acknowledged is there; at most one change for each kill was not acknowledged."""
        if is_absent(self.location):
            assert self.acknowledged == 0
            return
        with EditStore(self.location) as store:
            assert store.verify() == ()
            assert self.acknowledged <= store.latest_revision() <= self.acknowledged + self.kills
            edits = {edit.id: edit for edit in store.list(include_undone=True)}
            wrong = [edit_id for edit_id, active in self.in_force.items() if edits[edit_id].is_active != active]
            unexpected = store.latest_revision() - self.acknowledged
            assert len(wrong) <= unexpected
            for edit_id, seed in self.seeds.items():
                assert edits[edit_id].answer == str(seed)
            for edit_id, expert in store.experts(list(edits)):
                assert bits(expert) == bits(store_writer.expert_of(int(edits[edit_id].answer)))

    def close(self) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(timeout=60)
        self._process.stdout.close()


@contextmanager
def torturing(location: Path | str) -> Iterator[Torturer]:
    torturer = Torturer(location)
    try:
        yield torturer
    finally:
        torturer.close()


def test_killed_writers_lose_nothing_that_was_acknowledged(path: Path) -> None:
    with torturing(path) as torturer:
        for _ in range(KILLS):
            torturer.kill_one()
            torturer.check()
        assert torturer.acknowledged > KILLS, "writers got to work before they were killed"


def test_killed_writers_on_a_full_disk_lose_nothing(path: Path) -> None:
    """Files may not grow past a size, which is raised a little each time."""
    with torturing(path) as torturer:
        for round in range(KILLS):
            torturer.kill_one(150_000 + 60_000 * round)
            torturer.check()
        assert torturer.refused > 0, "the limit was met"
        torturer.kill_one()
        torturer.check()
        assert torturer.acknowledged > 0


def mount(folder: Path, kib: int, *, again: bool = False) -> bool:
    options = f"{'remount,' if again else ''}size={kib}k"
    command = ["mount", "-t", "tmpfs", "-o", options, "liveedit-test", str(folder)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 300 KiB; the test is skipped where none may be mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    try:
        mounted = mount(folder, 300)
    except FileNotFoundError:
        mounted = False
    if not mounted:
        pytest.skip("a small file system cannot be mounted here (that takes root)")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_killed_writers_on_a_small_disk_lose_nothing(small_disk: Path) -> None:
    with torturing(small_disk / "edits.db") as torturer:
        for round in range(KILLS):
            torturer.kill_one()
            assert mount(small_disk, 600 + 120 * round, again=True), "room to look at the file"
            torturer.check()
        assert torturer.refused > 0, "the disk was full"
        assert torturer.acknowledged > 0
