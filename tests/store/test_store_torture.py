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
from typing import NamedTuple

import pytest
import store_writer

from liveedit.errors import StoreError
from liveedit.store.locations import is_absent
from liveedit.store.store import EditStore

KILLS = int(os.environ.get("LIVEEDIT_KILLS", "10"))
LONGEST_LIFE_S = 0.15


class Change(NamedTuple):
    """A change that a writer makes by a request of its own. edit_id: of the edit that leaves or comes back."""

    seed: int
    kind: str
    edit_id: str


class Torturer:
    """Kills writers of one edits file, and keeps what they had acknowledged before."""

    def __init__(self, location: Path | str, seed: int = 1):
        self.location, self._chance = location, random.Random(seed)
        self.seeds: dict[str, int] = {}
        self.active: dict[str, bool] = {}
        self.answers: dict[Change, str] = {}
        """The edit of each acknowledged change."""
        self.pending: Change | None = None
        """The change that a writer was about to make."""
        self._replaces: dict[str, str] = {}
        self._taken_out_by: dict[str, str] = {}
        self.refused = self.found_done = self.made_again = 0
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
        self.read_to_end()

    @property
    def acknowledged(self) -> int:
        """How many changes were."""
        return len(self.answers)

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

    def _note(self, kind: str, *words: str) -> None:
        if kind == "full":
            self.refused += 1
        elif kind == "try":
            self.pending = Change(int(words[0]), words[1], words[2])
        elif kind == "done":
            self._acknowledge(words[0])

    def _acknowledge(self, edit_id: str) -> None:
        """The pending change was made: what is in force after it, by rules of our own."""
        change, self.pending = self.pending, None
        assert change is not None
        self.answers[change] = edit_id
        self.active[edit_id] = change.kind != "undo"
        if change.kind in ("edit", "supersede"):
            self.seeds[edit_id] = change.seed
            self._replaces[edit_id] = change.edit_id
        replaced = self._replaces[edit_id]
        if change.kind == "undo":
            self._taken_out_by[edit_id] = ""
            if self._taken_out_by.get(replaced) == edit_id and not self.active[replaced]:
                self.active[replaced] = True
        elif self.active.get(replaced):
            self.active[replaced] = False
            self._taken_out_by[replaced] = edit_id

    def check(self) -> None:
        """Everything acknowledged is there, once; what was not is there whole, or can be made by the same request."""
        if is_absent(self.location):
            assert not self.answers
            return
        with EditStore(self.location) as store:
            assert store.verify() == ()
            assert len(self.answers) <= store.latest_revision() <= len(self.answers) + (self.pending is not None)
            self._settle(store)
            assert self.pending is not None or store.latest_revision() == len(self.answers)
            edits = {edit.id: edit for edit in store.list(include_undone=True)}
            for edit_id, seed in self.seeds.items():
                assert edits[edit_id].answer == str(seed)
            if self.pending is None:
                assert {edit_id: edit.is_active for edit_id, edit in edits.items()} == self.active
            for edit_id, expert in store.experts(list(edits)):
                assert expert == store_writer.expert_of(int(edits[edit_id].answer))
            self._ask_again(store)

    def _settle(self, store: EditStore) -> None:
        """Send the request that got no answer once more; what it made before is the answer, and is not made again."""
        if self.pending is None:
            return
        store_writer.bind(store)
        before, made = store.latest_revision(), store.made_by(store_writer.request_of(*self.pending))
        assert (made is None) == (before == len(self.answers))
        try:
            done = store_writer.make_change(store, *self.pending)
        except StoreError:
            assert made is None, "for the answer alone no room is needed"
            return  # The disk is full: another time.
        assert made is None or done == made
        assert store.latest_revision() == before + (made is None)
        self.found_done += made is not None
        self.made_again += made is None
        self._acknowledge(done.id)

    def _ask_again(self, store: EditStore) -> None:
        """Acknowledged requests, the last and some others: each is answered as before, and makes nothing."""
        before, changes = store.latest_revision(), list(self.answers)
        store_writer.bind(store)
        for change in {*changes[-10:], *self._chance.sample(changes, min(10, len(changes)))}:
            answer = store_writer.make_change(store, *change)
            assert (answer.id, answer.is_active) == (self.answers[change], change.kind != "undo")
        assert store.latest_revision() == before

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
        assert {change.kind for change in torturer.answers} == {"edit", "supersede", "undo", "redo"}
        print(
            f"{torturer.acknowledged} changes; unanswered: {torturer.found_done} made, {torturer.made_again} made again"
        )


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
