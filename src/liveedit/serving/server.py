"""Running the application: uvicorn, which finishes what was accepted when it is told to stop."""

from __future__ import annotations

import asyncio
import gc
import signal
import socket
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI

from ..edited.model import EditedModel
from ..errors import ConfigError
from .api_keys import KeyFile
from .app import create_app
from .engine import Engine
from .served_model import ServedModel
from .settings import ServingSettings


def server_of(
    model: EditedModel, name: str, settings: ServingSettings, keys: KeyFile | None, host: str, port: int
) -> Server:
    """A server of this model, which clients call `name`. keys: None to ask for none."""
    served = ServedModel(model, settings)
    engine = Engine(served, settings)
    return Server(engine, create_app(engine, name, served, keys), host, port)


class Server(uvicorn.Server):
    """Serves one model until a signal.

    Told to stop, it refuses new work (`/readyz` says so, which a load balancer sees while the port is still open),
    finishes what was accepted, and closes the port then.
    """

    def __init__(self, engine: Engine[Any], app: FastAPI, host: str, port: int):
        self.engine = engine
        options: dict[str, Any] = {"log_level": "warning", "access_log": False, "server_header": False, "ws": "none"}
        super().__init__(uvicorn.Config(app, host=host, port=port, **options))

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve until a signal."""
        # The model's objects stay until the end: looking through them again and again would cost each answer.
        gc.collect()
        gc.freeze()
        super().run(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """On SIGTERM and SIGINT; a second SIGINT waits for nothing.

        Unlike uvicorn's own it does not raise the signal again at the end: the model is closed behind it.
        """
        self.engine.stop_accepting()
        self.force_exit = self.should_exit and sig == signal.SIGINT
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Finish, then close."""
        await asyncio.to_thread(self.engine.close)
        await super().shutdown(sockets)


def reserved(host: str, port: int) -> socket.socket:
    """A socket of this address, at which nothing listens yet; port 0 is any free one. Raises `ConfigError`."""
    door = None
    try:
        (family, kind, protocol, _, address), *_ = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        door = socket.socket(family, kind, protocol)
        door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        door.bind(address)
        return door
    except OSError as error:
        if door is not None:
            door.close()
        raise ConfigError(
            f"{host}, port {port}, cannot be listened at ({error.strerror or error}). Give another --port or --host."
        ) from error


def model_name(backbone: str) -> str:
    """What clients call a model that was loaded from here: never a path of this machine."""
    return Path(backbone).name or "model"
