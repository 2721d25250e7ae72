"""What `liveedit train --dry-run` prints."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .console import print_fields

if TYPE_CHECKING:
    from ..editors.training_estimate import TrainingEstimate


def with_disk(estimate: TrainingEstimate, out: Path) -> dict[str, Any]:
    """The estimate for JSON, with the room that is left where the output folder would be."""
    there = next(folder for folder in (out.absolute(), *out.absolute().parents) if folder.exists())
    return {**estimate.to_dict(), "disk_free_bytes": shutil.disk_usage(there).free}


def print_estimate(found: Mapping[str, Any]) -> None:
    """Names and values in units that a person reads."""
    states = f"{_size(found['states_bytes'])}, kept {'on disk' if found['states_on_disk'] else 'in memory'}"
    if found["processes"] > 1:
        states += " by each process"
    fields: dict[str, object] = {
        "device": found["device"],
        "processes": found["processes"],
        "cases": f"{found['cases']:,}, of which {found['validation_cases']:,} for validation",
        "inputs": f"{found['inputs']:,}",
        "tokens of an input with image": _tokens(found["tokens_per_image_input"]),
        "tokens of an input without": _tokens(found["tokens_per_text_input"]),
        "states": states,
        "disk free": _size(found["disk_free_bytes"]),
        "backbone": _size(found["backbone_bytes"]),
        "trained parameters": f"{found['parameters']:,}, {_size(found['parameters_bytes'])}",
        "gradients": _size(found["gradients_bytes"]),
        "moments of AdamW": _size(found["moments_bytes"]),
        "peak memory": _size(found["peak_memory_bytes"]),
        "GPU memory": _gpu(found["gpu_peak_bytes"], found["gpu_total_bytes"]),
        "filling states": _duration(found["fill_seconds"]),
    }
    for stage in found["stages"]:
        fields[f"stage {stage['name']}"] = (
            f"{_duration(stage['seconds'])}: {stage['steps']:,} steps of {stage['batch']} edits at "
            f"{stage['seconds_per_step']:.3g} s, validated {stage['validations']} times"
        )
    print_fields({**fields, "in all": _duration(found["seconds"])}, "What the training would take")


def _tokens(mean: float | None) -> str | None:
    return None if mean is None else f"{mean:.1f}"


def _gpu(peak: int | None, total: int | None) -> str | None:
    return None if peak is None or total is None else f"{_size(peak)} of {_size(total)}"


def _size(count: float) -> str:
    if count < 1000:
        return f"{count:.0f} bytes"
    for unit in ("kB", "MB", "GB"):
        count /= 1000
        if count < 1000:
            return f"{count:.1f} {unit}"
    return f"{count / 1000:.1f} TB"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
