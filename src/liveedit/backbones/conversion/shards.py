"""Writing a checkpoint of transformers shard by shard, so that it never has to fit into memory."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from ...errors import BackboneError, InvalidInputError

SHARD_BYTES = 2 * 1024**3
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class PlannedTensor:
    """A weight of the new checkpoint that is read only when it is written.

    read: gives it in any precision, in `shape`. source: where it comes from, for messages.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], Tensor]
    source: str

    @property
    def parameters(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    @property
    def size_bytes(self) -> int:
        """Size in the file."""
        return self.parameters * self.dtype.itemsize

    def load(self) -> Tensor:
        """A copy in its precision. Raises `BackboneError` or `InvalidInputError` for numbers that are not finite."""
        stored = self.read()
        tensor = stored.to(self.dtype, copy=True).contiguous()
        if not bool(torch.isfinite(tensor).all()):
            if bool(torch.isfinite(stored).all()):
                raise InvalidInputError(
                    f"{self.name} from {self.source} has numbers beyond the range of {self.dtype}. Choose bfloat16 or "
                    "float32."
                )
            raise BackboneError(f"{self.name} from {self.source} has numbers that are not finite. Download it again.")
        return tensor


def write_shards(
    folder: Path, tensors: Sequence[PlannedTensor], shard_bytes: int = SHARD_BYTES, progress: Progress | None = None
) -> list[str]:
    """Write `model.safetensors`, or shards of at most `shard_bytes` (one tensor at least) with their index.

    Needs memory for one shard. progress: is called with the tensors done and their total. Returns the file names.
    """
    shards = _divide(tensors, shard_bytes)
    files = _file_names(len(shards))
    done = 0
    for file, shard in zip(files, shards, strict=True):
        loaded: dict[str, Tensor] = {}
        for planned in shard:
            loaded[planned.name] = planned.load()
            done += 1
            if progress:
                progress(done, len(tensors))
        save_file(loaded, folder / file, metadata={"format": "pt"})
    if len(files) > 1:
        homes = {planned.name: file for file, shard in zip(files, shards, strict=True) for planned in shard}
        sizes = {
            "total_parameters": sum(planned.parameters for planned in tensors),
            "total_size": sum(planned.size_bytes for planned in tensors),
        }
        index = json.dumps({"metadata": sizes, "weight_map": homes}, indent=2, sort_keys=True)
        (folder / "model.safetensors.index.json").write_text(index + "\n", encoding="utf-8")
    return files


def _divide(tensors: Sequence[PlannedTensor], shard_bytes: int) -> list[list[PlannedTensor]]:
    shards: list[list[PlannedTensor]] = []
    filled = 0
    for planned in tensors:
        if not shards or filled + planned.size_bytes > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(planned)
        filled += planned.size_bytes
    return shards


def _file_names(count: int) -> list[str]:
    if count == 1:
        return ["model.safetensors"]
    return [f"model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]
