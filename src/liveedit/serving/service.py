"""What the routes of one service share."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from .engine import Engine
from .idempotency import Idempotency
from .served_model import ServedModel
from .settings import ServingSettings


@dataclass(frozen=True)
class Service:
    """One served model. `model_name` is what clients call it."""

    engine: Engine[ServedModel]
    model_name: str
    settings: ServingSettings
    idempotency: Idempotency[Any]
    started: int = field(default_factory=lambda: int(time.time()))
