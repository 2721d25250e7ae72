"""Running the application with uvicorn: on a signal, accepted requests are finished first."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import signal
import socket
import sys
from pathlib import Path
from types import FrameType
from typing import Any, Final

import uvicorn
from fastapi import FastAPI

from ..edited.model import EditedModel
from ..errors import ConfigError
from .api_keys import KeyFile
from .app import create_app
from .engine import Engine
from .served_model import ServedModel
from .settings import ServingSettings

_MIB: Final = 2**20
_GLIBC_OPTIONS: Final = {
    -8: 1,  # M_ARENA_MAX: one heap for all threads, so that one thread can reuse what another has freed.
    -3: 32 * _MIB,  # M_MMAP_THRESHOLD: only larger blocks come from the system, page by page.
    -1: 1024 * _MIB,  # M_TRIM_THRESHOLD: free memory at the end of the heap stays for the next batch.
}


def server_of(
    model: EditedModel, name: str, settings: ServingSettings, keys: KeyFile | None, host: str, port: int
) -> Server:
    """A server of this model. name: the model's name in requests. keys: None to require no API key."""
    served = ServedModel(model, settings)
    engine = Engine(served, settings)
    return Server(engine, create_app(engine, name, served, keys), host, port)


class Server(uvicorn.Server):
    """Serves one model until a signal.

    On a signal it first refuses new work: `/readyz` reports that while the port is still open, so that a load
    balancer sees it. Then it finishes the accepted work and closes the port.
    """

    def __init__(self, engine: Engine[Any], app: FastAPI, host: str, port: int):
        self.engine = engine
        options: dict[str, Any] = {"log_level": "warning", "access_log": False, "server_header": False, "ws": "none"}
        super().__init__(uvicorn.Config(app, host=host, port=port, **options))

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve until a signal."""
        # The model's objects live until the end. Frozen, they are not scanned by each garbage collection.
        gc.collect()
        gc.freeze()
        super().run(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Start the shutdown on SIGTERM or SIGINT. A second SIGINT skips waiting for accepted work.

        uvicorn's own handler raises the signal again at the end; this one does not, because the caller still has to
        close the model.
        """
        self.engine.stop_accepting()
        self.force_exit = self.should_exit and sig == signal.SIGINT
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Finish the accepted work, then close the port."""
        await asyncio.to_thread(self.engine.close)
        await super().shutdown(sockets)


def reserved(host: str, port: int) -> socket.socket:
    """A socket bound to this address that does not listen yet. Port 0 binds any free port. Raises `ConfigError`."""
    bound = None
    try:
        (family, kind, protocol, _, address), *_ = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        bound = socket.socket(family, kind, protocol)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        return bound
    except OSError as error:
        if bound is not None:
            bound.close()
        raise ConfigError(
            f"The server cannot listen at {host}, port {port} ({error.strerror or error}). Give another --port or "
            "--host."
        ) from error


def model_name(backbone: str) -> str:
    """The default name of a model in requests: never a path of this machine."""
    return Path(backbone).name or "model"


def keep_freed_memory() -> bool:
    """Configure glibc to keep freed memory for the next batch, in one heap for all threads. Returns whether it did.

    By default, glibc returns the memory of each batch to the system and requests it again page by page. It also keeps
    a heap per thread, and each of them grows to the size of the largest batch. Call this before threads are started.
    It overrides environment variables such as `MALLOC_ARENA_MAX`. Other C libraries are not changed.
    """
    if not sys.platform.startswith("linux"):
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):
        return False
    return all(library.mallopt(option, value) == 1 for option, value in _GLIBC_OPTIONS.items())
