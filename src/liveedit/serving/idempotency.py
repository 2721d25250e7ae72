"""Requests that may come twice: the same key with the same body gives the same answer, and nothing happens twice."""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from ..errors import ConflictError, InvalidInputError

LONGEST_KEY = 255

_Result = TypeVar("_Result")


class Idempotency(Generic[_Result]):
    """Remembers results by key, in memory, the most recent ones. For one event loop.

    A request that comes while the first is under way waits for it. What failed is forgotten, so that it can be tried
    again.
    """

    def __init__(self, most: int):
        self._most = most
        self._kept: OrderedDict[tuple[str, str], tuple[str, asyncio.Task[_Result]]] = OrderedDict()

    async def once(self, owner: str, key: str | None, body: bytes, run: Callable[[], Awaitable[_Result]]) -> _Result:
        """The result of `run`, or of the earlier request with this key of this owner.

        Raises `ConflictError` where that had another body, `InvalidInputError` for a key that is empty or too long.
        Once begun, `run` goes on though its caller be cancelled.
        """
        if key is None:
            return await asyncio.shield(asyncio.ensure_future(run()))
        if not 0 < len(key) <= LONGEST_KEY:
            raise InvalidInputError(f"The Idempotency-Key has {len(key)} characters; 1 to {LONGEST_KEY} are taken.")
        digest = hashlib.sha256(body).hexdigest()
        place = (owner, key)
        if place not in self._kept:
            self._keep(place, digest, run)
        before, task = self._kept[place]
        if before != digest:
            raise ConflictError("This Idempotency-Key came before with another body. Take a new key for a new request.")
        self._kept.move_to_end(place)
        return await asyncio.shield(task)

    def _keep(self, place: tuple[str, str], digest: str, run: Callable[[], Awaitable[_Result]]) -> None:
        task: asyncio.Task[_Result] = asyncio.ensure_future(run())  # type: ignore[assignment]
        self._kept[place] = (digest, task)
        task.add_done_callback(lambda done: self._forget_failure(place, done))
        for old in list(self._kept):
            if len(self._kept) <= self._most:
                break
            if self._kept[old][1].done():
                del self._kept[old]

    def _forget_failure(self, place: tuple[str, str], task: asyncio.Task[_Result]) -> None:
        failed = task.cancelled() or task.exception() is not None
        if failed and place in self._kept and self._kept[place][1] is task:
            del self._kept[place]
