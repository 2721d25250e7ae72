"""What the routes of one service share."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from anyio import CapacityLimiter, move_on_after
from anyio.to_thread import run_sync
from PIL import Image
from starlette.concurrency import run_in_threadpool

from ..errors import StoreError
from .engine import Engine
from .fetching import Fetcher
from .idempotency import Idempotency
from .images import image_from, image_of, is_quick
from .served_model import ServedModel
from .settings import ServingSettings

_READERS: Final = 4
"""So few threads read the store at once that connections to it are left for the threads of the model."""

_LOOK_SECONDS: Final = 2.0

_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Service:
    """One served model. `model_name` is what clients call it."""

    engine: Engine[ServedModel]
    model: ServedModel
    """For what may be called on any thread; the engine has it for all else."""
    model_name: str
    settings: ServingSettings
    idempotency: Idempotency[Any]
    fetcher: Fetcher | None = None
    started: int = field(default_factory=lambda: int(time.time()))
    health_limiter: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(1))
    readers: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(_READERS))

    async def read(self, look: Callable[[ServedModel], _Result]) -> _Result:
        """What a function that only reads the store returns; it runs beside the threads of the model."""
        return await run_sync(look, self.model, limiter=self.readers)

    async def image(self, uri: str) -> Image.Image:
        """The image of a data URI, or of a URL where that is allowed. Raises `ImageError`."""
        pixels = self.settings.image_pixels
        if self.fetcher is not None and uri[:5].lower() != "data:":
            data = await self.fetcher.fetch(uri)
            return await run_in_threadpool(image_from, data, pixels)
        if is_quick(uri):
            return image_of(uri, pixels)
        return await run_in_threadpool(image_of, uri, pixels)

    async def reaches_store(self) -> bool:
        """Whether the store answers, and soon. One look at a time is taken, however many ask."""
        with move_on_after(_LOOK_SECONDS):
            try:
                await run_sync(self.model.look_at_store, limiter=self.health_limiter, abandon_on_cancel=True)
                return True
            except StoreError:
                pass
        return False
