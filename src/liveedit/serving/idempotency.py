"""Requests that come twice at the same time: what is under way here is not begun again."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from ..store.idempotency import ChangeRequest

_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Done(Generic[_Result]):
    """What a request gets, and whether it is what the same request did before, so that nothing was done anew."""

    result: _Result
    is_replay: bool


class Idempotency(Generic[_Result]):
    """Joins a request with the same one that is under way. For one event loop.

    What was done before is remembered with the edits, by the store, for all processes and over restarts; a request
    that comes again after its first is done runs again, and the store gives the earlier answer.
    """

    def __init__(self) -> None:
        self._under_way: dict[str, tuple[ChangeRequest, asyncio.Future[Done[_Result]]]] = {}

    async def once(self, request: ChangeRequest | None, run: Callable[[], Awaitable[Done[_Result]]]) -> Done[_Result]:
        """What `run` gives, or a replay of the same request under way; None is a request like no other.

        Raises `ConflictError` where that one has another body. Once begun, `run` goes on though its caller be gone.
        """
        if request is None:
            return await asyncio.shield(asyncio.ensure_future(run()))
        place = request.sha256
        is_first = place not in self._under_way
        if is_first:
            task = asyncio.ensure_future(run())
            self._under_way[place] = request, task
            task.add_done_callback(lambda _: self._under_way.pop(place))
        first, task = self._under_way[place]
        request.check_same(first.body_sha256)
        done = await asyncio.shield(task)
        return done if is_first else replace(done, is_replay=True)
