"""Requests that come twice at the same time: what is under way here is not begun again."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from ..experts.requests import ChangeRequest

_Result = TypeVar("_Result")


class Idempotency(Generic[_Result]):
    """Joins a request with the same one that is under way. For one event loop.

    What was done before is remembered with the edits, by the store, for all processes and over restarts; a request
    that comes again after its first is done runs again, and the store gives the earlier answer.
    """

    def __init__(self) -> None:
        self._under_way: dict[str, tuple[ChangeRequest, asyncio.Future[_Result]]] = {}

    async def once(self, request: ChangeRequest | None, run: Callable[[], Awaitable[_Result]]) -> _Result:
        """The result of `run`, or of the same request under way; None is a request like no other.

        Raises `ConflictError` where that one has another body. Once begun, `run` goes on though its caller be gone.
        """
        if request is None:
            return await asyncio.shield(asyncio.ensure_future(run()))
        place = request.sha256
        if place not in self._under_way:
            task = asyncio.ensure_future(run())
            self._under_way[place] = request, task
            task.add_done_callback(lambda _: self._under_way.pop(place))
        first, task = self._under_way[place]
        request.check_same(first.body_sha256)
        return await asyncio.shield(task)
