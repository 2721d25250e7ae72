"""The readers-writer lock: readers side by side, a writer alone, everybody in the order of arrival."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from liveedit.edited.lock import ReadersWriterLock

PATIENCE_S = 20.0


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, "this never came to be"
        time.sleep(0.001)


def test_readers_are_inside_together() -> None:
    lock, together = ReadersWriterLock(), threading.Barrier(3)

    def read() -> None:
        with lock.reading():
            together.wait(PATIENCE_S)

    with ThreadPoolExecutor(3) as pool:
        for reader in [pool.submit(read) for _ in range(3)]:
            reader.result()


def test_a_writer_is_alone_and_nobody_waits_for_ever() -> None:
    lock, inside, most = ReadersWriterLock(), [0, 0], [0, 0]

    def work(number: int) -> None:
        kind = int(number % 4 == 0)
        for _ in range(100):
            with lock.writing() if kind else lock.reading():
                inside[kind] += 1
                most[kind] = max(most[kind], inside[kind])
                assert not inside[1] or inside == [0, 1]
                time.sleep(0)
                inside[kind] -= 1

    with ThreadPoolExecutor(8) as pool:
        for worker in [pool.submit(work, number) for number in range(8)]:
            worker.result(PATIENCE_S)
    assert most[1] == 1


def test_a_reader_does_not_overtake_a_writer_that_waits() -> None:
    lock, order, leave = ReadersWriterLock(), [], threading.Event()

    def first() -> None:
        with lock.reading():
            leave.wait(PATIENCE_S)

    def enter(name: str) -> None:
        with lock.writing() if name == "writer" else lock.reading():
            order.append(name)

    with ThreadPoolExecutor(3) as pool:
        waiting = [pool.submit(first)]
        until(lambda: lock._readers == 1)
        for number, name in enumerate(("writer", "reader"), 1):
            waiting.append(pool.submit(enter, name))
            until(lambda number=number: len(lock._waiting) == number)
        assert order == []
        leave.set()
        for one in waiting:
            one.result(PATIENCE_S)
    assert order == ["writer", "reader"]


def test_an_error_inside_leaves_the_lock_free() -> None:
    lock = ReadersWriterLock()
    for enter in (lock.reading, lock.writing):
        try:
            with enter():
                raise ZeroDivisionError
        except ZeroDivisionError:
            pass
        with lock.writing():
            pass
