"""Saving and resuming a training: safetensors with a JSON object, written atomically."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from ..errors import CheckpointError
from ..files import written_atomically

JSONObject = dict[str, Any]


def save_tensors(path: Path, tensors: dict[str, torch.Tensor], metadata: JSONObject) -> None:
    """Write tensors and a JSON object to one safetensors file, atomically."""
    contiguous = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    with written_atomically(path) as temporary:
        save_file(contiguous, temporary, metadata={"json": json.dumps(metadata)})


def load_tensors(path: Path) -> tuple[dict[str, torch.Tensor], JSONObject]:
    """Read what `save_tensors` wrote. Raises `CheckpointError` if the file is missing or damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = json.loads((file.metadata() or {}).get("json", "{}"))
            return {name: file.get_tensor(name) for name in file.keys()}, metadata  # noqa: SIM118
    except (OSError, SafetensorError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path} could not be read as a checkpoint ({error}).") from error


def save_training(path: Path, module: nn.Module, optimizer: torch.optim.Optimizer, step: int, note: JSONObject) -> None:
    """Save weights and optimiser moments after `step` steps, together with a `note`."""
    tensors = {f"module.{name}": value for name, value in module.state_dict().items()}
    for index, moments in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": torch.as_tensor(value) for name, value in moments.items()}
    save_tensors(path, tensors, {"step": step, "note": note})


def resume_training(path: Path, module: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[int, JSONObject] | None:
    """Load what `save_training` wrote into module and optimiser; return step and note, or None if there is no file.

    Raises `CheckpointError` for a damaged file and for one of another configuration.
    """
    if not path.exists():
        return None
    tensors, metadata = load_tensors(path)
    weights = {name[7:]: value for name, value in tensors.items() if name.startswith("module.")}
    try:
        module.load_state_dict(weights)
    except RuntimeError as error:
        raise CheckpointError(
            f"{path} belongs to another configuration ({error}). Remove it or choose another folder."
        ) from error
    moments: dict[int, JSONObject] = {}
    for name, value in tensors.items():
        if name.startswith("optimizer."):
            _, index, moment = name.split(".", 2)
            moments.setdefault(int(index), {})[moment] = value
    state = optimizer.state_dict()
    optimizer.load_state_dict({"state": moments, "param_groups": state["param_groups"]})
    return int(metadata["step"]), metadata["note"]
