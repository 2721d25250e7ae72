"""Weights by name, read one by one from files that need not fit into memory."""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ...errors import BackboneError, NotFoundError, first_line

INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
SINGLE_FILES = ("model.safetensors", "pytorch_model.bin")
_SHOWN = 4


class WeightSource(Protocol):
    """Named weights that are read one at a time."""

    def shape(self, name: str) -> tuple[int, ...] | None:
        """Its shape; None if there is no such weight."""
        ...

    def read(self, name: str) -> Tensor:
        """The weight itself, as it is stored."""
        ...

    def names(self) -> Iterable[str]:
        """All names."""
        ...


class SafetensorsFile:
    """One safetensors file; only its header is read until a weight is requested."""

    def __init__(self, path: Path):
        self.path = path
        try:
            self._file: Any = safe_open(_existing(path), framework="pt")
            self._names = frozenset(self._file.keys())
        except (OSError, SafetensorError) as error:
            raise _damaged(path, error) from error

    def names(self) -> Iterable[str]:
        """All names."""
        return self._names

    def shape(self, name: str) -> tuple[int, ...] | None:
        """Its shape; None if there is no such weight."""
        return tuple(self._file.get_slice(name).get_shape()) if name in self._names else None

    def read(self, name: str) -> Tensor:
        """The weight itself. Raises `BackboneError` if the file is damaged."""
        try:
            return self._file.get_tensor(name)
        except (OSError, SafetensorError) as error:
            raise _damaged(self.path, error) from error


class TorchFile:
    """One file of `torch.save`, mapped into memory where its format allows; nothing but weights is unpickled.

    The weights may lie at the top or under "model", with or without "module." before their names.
    """

    def __init__(self, path: Path):
        self.path = path
        self._tensors = {name.removeprefix("module."): tensor for name, tensor in self._load().items()}

    def _load(self) -> dict[str, Tensor]:
        try:
            mapped = zipfile.is_zipfile(_existing(self.path))
            loaded = torch.load(self.path, map_location="cpu", weights_only=True, mmap=mapped)
        except pickle.UnpicklingError as error:
            raise BackboneError(
                f"{self.path} ({_size(self.path)}) is damaged, no checkpoint of PyTorch, or holds more than weights "
                f"({first_line(error)}), which is not unpickled for the sake of safety. Download it again; or, where "
                "you trust it, load it yourself and save its weights alone."
            ) from error
        except (OSError, RuntimeError, EOFError, ValueError, KeyError) as error:
            raise _damaged(self.path, error) from error
        weights = loaded.get("model", loaded) if isinstance(loaded, Mapping) else {}
        return {str(name): value for name, value in weights.items() if isinstance(value, Tensor)}

    def names(self) -> Iterable[str]:
        """All names."""
        return self._tensors

    def shape(self, name: str) -> tuple[int, ...] | None:
        """Its shape; None if there is no such weight."""
        return tuple(self._tensors[name].shape) if name in self._tensors else None

    def read(self, name: str) -> Tensor:
        """The weight itself."""
        return self._tensors[name]


class CheckpointFolder:
    """A checkpoint folder of transformers, whole or in shards, of safetensors or of PyTorch's own files.

    A shard is opened when a weight in it is asked for: shards that hold nothing of use need not be there.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._opened: dict[str, SafetensorsFile | TorchFile] = {}
        self._homes = self._find()

    def _find(self) -> dict[str, str]:
        for index, single in zip(INDEXES, SINGLE_FILES, strict=True):
            if (self.folder / index).is_file():
                return _read_index(self.folder / index)
            if (self.folder / single).is_file():
                return dict.fromkeys(self._open(single).names(), single)
        wanted = " or ".join(name for pair in zip(SINGLE_FILES, INDEXES, strict=True) for name in pair)
        raise NotFoundError(f"{self.folder} has no weights. Give a folder with {wanted}.")

    def _open(self, file: str) -> SafetensorsFile | TorchFile:
        if file not in self._opened:
            path = self.folder / file
            self._opened[file] = SafetensorsFile(path) if path.suffix == ".safetensors" else TorchFile(path)
        return self._opened[file]

    def names(self) -> Iterable[str]:
        """All names."""
        return self._homes

    def shape(self, name: str) -> tuple[int, ...] | None:
        """Its shape; None if there is no such weight. Raises `NotFoundError` if its shard is missing."""
        return self._open(self._homes[name]).shape(name) if name in self._homes else None

    def read(self, name: str) -> Tensor:
        """The weight itself. Raises `BackboneError` if its file is damaged."""
        return self._open(self._homes[name]).read(name)


def some_names(names: Iterable[str]) -> str:
    """A few names and the number of the others, for messages."""
    listed = sorted(names)
    rest = f" and {len(listed) - _SHOWN} more" if len(listed) > _SHOWN else ""
    return ", ".join(listed[:_SHOWN]) + rest if listed else "none"


def _read_index(path: Path) -> dict[str, str]:
    try:
        return {str(name): str(file) for name, file in json.loads(path.read_bytes())["weight_map"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(path, error) from error


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise NotFoundError(f"The file {path} is not there. Check the path, or download it.")
    return path


def _damaged(path: Path, error: Exception) -> BackboneError:
    return BackboneError(
        f"{path} ({_size(path)}) is damaged or not downloaded to its end ({first_line(error)}). Download it again."
    )


def _size(path: Path) -> str:
    return f"{path.stat().st_size:,} bytes" if path.is_file() else "missing"
