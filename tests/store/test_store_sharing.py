"""An edits file that several use at a time, and one whose writer is killed."""

from __future__ import annotations

import itertools
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from edit_examples import bound, make_edit, make_expert, part_bytes

from liveedit.errors import NotFoundError, StoreError
from liveedit.store import writes
from liveedit.store.store import EditStore


def test_two_stores_see_each_others_edits(path: Path) -> None:
    with bound(path) as one, bound(path) as other:
        edit = one.add(make_edit(), make_expert())
        assert other.get(edit.id) == edit
        other.undo(edit.id)
        assert len(one) == 0
        with pytest.raises(NotFoundError, match="already undone"):
            one.undo(edit.id)


def test_a_locked_file_is_readable_and_says_why_it_cannot_be_written(path: Path) -> None:
    with bound(path) as opened:
        edit = opened.add(make_edit(), make_expert())
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with bound(path, busy_timeout_s=0.05) as opened:
            assert opened.list() == (edit,)
            for write in (lambda: opened.add(make_edit(), make_expert()), lambda: opened.undo(edit.id)):
                with pytest.raises(StoreError, match="in use by another process"):
                    write()
            other.execute("ROLLBACK")
            assert not opened.undo(edit.id).is_active


def test_a_file_that_is_locked_altogether_cannot_be_opened(path: Path) -> None:
    with bound(path) as opened:
        opened.add(make_edit(), make_expert())
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("PRAGMA locking_mode = EXCLUSIVE")
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(StoreError, match="in use by another process"):
            EditStore(path, busy_timeout_s=0.05)


def in_threads(count: int, work: Callable[[int], None]) -> list[BaseException]:
    errors: list[BaseException] = []

    def guarded(number: int) -> None:
        try:
            work(number)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return errors


def test_many_may_create_and_write_the_file_at_once(tmp_path: Path) -> None:
    for attempt in range(5):
        path = tmp_path / f"edits{attempt}.db"

        def work(number: int, path: Path = path) -> None:
            with bound(path) as opened:
                opened.add(make_edit(str(number)), make_expert(number))

        assert in_threads(6, work) == []
        with EditStore(path) as opened:
            assert sorted(edit.answer for edit in opened.list()) == [str(number) for number in range(6)]
            assert opened.verify() == ()


def test_threads_may_share_a_store(path: Path) -> None:
    with bound(path) as opened:

        def work(number: int) -> None:
            for seed in range(5):
                edit = opened.add(make_edit(str(number)), make_expert(seed))
                assert edit.expert == make_expert(seed)
            opened.undo(edit.id)

        assert in_threads(4, work) == []
        assert len(opened) == 16
        assert opened.verify() == ()


def test_an_interrupted_add_leaves_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with bound(path) as opened:
        with monkeypatch.context() as patch:
            patch.setattr(writes, "insert_blobs", interrupted)
            with pytest.raises(KeyboardInterrupt):
                opened.add(make_edit(), make_expert())
        assert (len(opened), opened.history(), opened.verify()) == (0, (), ())
        assert opened.add(make_edit(), make_expert()).number == 1


_ENDLESS_WRITER = """
import sys
import numpy as np
from safetensors.numpy import save
from liveedit.store.store import EditStore, NewEdit

with EditStore(sys.argv[1]) as store:
    store.bind("b" * 64, "e" * 64, backbone="tiny-llava", editor="liveedit")
    seed = 0
    while True:
        part = np.full((4, 256), seed, np.float32)
        edit = NewEdit(prompt="?", answer=str(seed), editor="liveedit")
        edit = store.add(edit, save({"u": part, "v": part}))
        print(edit.id, seed, flush=True)
        seed += 1
"""


def acknowledged_before_kill(path: Path, count: int) -> dict[str, int]:
    """Let another process add edits, kill it once it has acknowledged this many, and return all of those."""
    command = [sys.executable, "-c", _ENDLESS_WRITER, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        lines = list(itertools.islice(writer.stdout, count))
        writer.kill()
        lines += writer.stdout
    # The last line may have been cut off: it was then not acknowledged.
    return {edit_id: int(seed) for edit_id, seed in (line.split() for line in lines if line.endswith("\n"))}


def test_a_killed_process_loses_no_acknowledged_edit(path: Path) -> None:
    acknowledged = acknowledged_before_kill(path, 40)
    assert len(acknowledged) >= 40
    with EditStore(path) as opened:
        found = dict(opened.active_experts())
        assert acknowledged.keys() <= found.keys()
        assert len(found) <= len(acknowledged) + 1
        for edit_id, seed in acknowledged.items():
            assert opened.get(edit_id).answer == str(seed)
            assert part_bytes(found[edit_id]) == np.full((4, 256), seed, np.float32).tobytes()
        assert opened.verify() == ()
