"""A lock for a model that many threads ask and one changes at a time."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager


class ReadersWriterLock:
    """Several threads may read at once; a writer is alone.

    Threads enter in the order in which they come, so that neither readers nor writers wait for ever. A thread that
    holds the lock must not take it again.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: deque[object] = deque()
        self._readers = 0
        self._is_written = False

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Inside, no thread writes."""
        with self._turn():
            self._changed.wait_for(lambda: not self._is_written)
            self._readers += 1
        try:
            yield
        finally:
            with self._changed:
                self._readers -= 1
                self._changed.notify_all()

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Inside, no other thread reads or writes."""
        with self._turn():
            self._changed.wait_for(lambda: not self._is_written and not self._readers)
            self._is_written = True
        try:
            yield
        finally:
            with self._changed:
                self._is_written = False
                self._changed.notify_all()

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """Inside, this thread holds the condition and is the next to enter."""
        ticket = object()
        with self._changed:
            self._waiting.append(ticket)
            try:
                self._changed.wait_for(lambda: self._waiting[0] is ticket)
                yield
            finally:
                self._waiting.remove(ticket)
                self._changed.notify_all()
