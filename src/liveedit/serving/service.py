"""What the routes of one service share."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, TypeVar

from anyio import CapacityLimiter, move_on_after
from anyio.to_thread import run_sync
from PIL import Image
from starlette.concurrency import run_in_threadpool

from ..errors import StoreError
from ..store.store import EditStore
from .engine import Engine
from .fetching import Fetcher
from .images import bytes_of, image_from, image_of, is_long, is_small
from .served_model import ServedModel
from .settings import ServingSettings

_READERS: Final = 4
"""Threads that read the store at once. Few, so that the worker threads always find a free database connection."""

_HEALTH_SECONDS: Final = 2.0

_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Service:
    """One served model. `model_name` is its name in requests."""

    engine: Engine[ServedModel]
    served: ServedModel
    """For what any thread may call; everything else goes through the engine."""
    model_name: str
    settings: ServingSettings
    fetcher: Fetcher | None = None
    started: int = field(default_factory=lambda: int(time.time()))
    health_limiter: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(1))
    readers: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(_READERS))

    async def read(self, read: Callable[[EditStore], _Result]) -> _Result:
        """Run a function that only reads the store, on a thread of its own beside the worker threads."""
        return await run_sync(read, self.served.store, limiter=self.readers)

    async def image(self, uri: str) -> Image.Image:
        """The image of a data URI, or of a URL if its prefix is allowed. Raises `ImageError`."""
        pixels = self.settings.image_pixels
        if self.fetcher is not None and uri[:5].lower() != "data:":
            data = await self.fetcher.fetch(uri)
            return await run_in_threadpool(image_from, data, pixels)
        if is_long(uri):
            return await run_in_threadpool(image_of, uri, pixels)
        data = bytes_of(uri)
        if is_small(data):
            return image_from(data, pixels)
        return await run_in_threadpool(image_from, data, pixels)

    async def reaches_store(self) -> bool:
        """Whether the store answers within two seconds. One check runs at a time, however many clients ask."""
        with move_on_after(_HEALTH_SECONDS):
            try:
                store = self.served.store
                await run_sync(store.latest_revision, limiter=self.health_limiter, abandon_on_cancel=True)
                return True
            except StoreError:
                pass
        return False
