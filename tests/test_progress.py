"""Progress: counted, and reported from within the work on one edit."""

from __future__ import annotations

import threading

from liveedit.progress import Counter, report_step, steps_reported


def test_steps_reach_the_innermost_listener_of_this_thread() -> None:
    outer: list[tuple[int, int]] = []
    inner: list[tuple[int, int]] = []
    with steps_reported(lambda done, most: outer.append((done, most))):
        report_step(1, 9)
        with steps_reported(lambda done, most: inner.append((done, most))):
            report_step(2, 9)
            other = threading.Thread(target=report_step, args=(3, 9))
            other.start()
            other.join()
        report_step(4, 9)
    report_step(5, 9)
    assert (outer, inner) == ([(1, 9), (4, 9)], [(2, 9)])


def test_a_counter_adds_up() -> None:
    found: list[tuple[int, int]] = []
    count = Counter(lambda done, total: found.append((done, total)), 5)
    count(2)
    count(3)
    assert found == [(2, 5), (5, 5)]
