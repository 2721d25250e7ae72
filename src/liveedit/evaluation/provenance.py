"""Where the rows of a measurement come from, and digests by which a later change is found."""

from __future__ import annotations

import hashlib
import json
import platform
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import torch

from ..backbones import Backbone

PACKAGES: Final = ("liveedit", "torch", "transformers", "numpy", "tokenizers", "safetensors")
"""The packages that figures depend on."""

ROW_DIGEST: Final = "row_digest"

Row = dict[str, Any]


def package_versions() -> dict[str, str]:
    """The versions of Python and of `PACKAGES`."""
    return {"python": platform.python_version(), **{name: metadata.version(name) for name in PACKAGES}}


@dataclass(frozen=True)
class Provenance:
    """The code, machine, backbone and data that the rows of a run are measured with.

    device: "cpu", or the type and name of a GPU. threads: of torch. command: the command line as it was typed, None if
    no command runs. load: how the weights were loaded, as `described_load` describes it; empty: by default.
    """

    git_sha: str | None
    dirty: bool | None
    backbone_digest: str
    data_digest: str
    versions: Mapping[str, str] = field(default_factory=package_versions)
    device: str | None = None
    threads: int = field(default_factory=torch.get_num_threads)
    command: str | None = None
    load: Mapping[str, str] = field(default_factory=dict)

    def of_row(self, config: Mapping[str, Any], started: str) -> Row:
        """The provenance in a row. config: the settings of its editor and measurement. started: see `Stopwatch`."""
        return {**vars(self), "started": started, "config": json.loads(json.dumps(config))}

    def of_edits(self, config: Mapping[str, Any]) -> Row:
        """What edits that an interrupted run has saved depend on, and unedited answers that runs share: all but the
        command, the time and the threads."""
        names = ("git_sha", "dirty", "backbone_digest", "data_digest", "versions", "device", "load")
        return {**{name: getattr(self, name) for name in names}, "config": dict(config)}

    def same_inputs(self, kept: Mapping[str, Any]) -> bool:
        """Whether a row with the provenance `kept` was measured with this backbone, loaded in this way, and data."""
        loaded_alike = kept.get("load", {}) == self.load  # Rows without an entry were loaded by default.
        return loaded_alike and all(kept[name] == getattr(self, name) for name in ("backbone_digest", "data_digest"))


def make_provenance(
    backbone: Backbone,
    data_files: Sequence[Path],
    selection: str = "",
    command: str | None = None,
    load: Mapping[str, Any] | None = None,
) -> Provenance:
    """The state of the source tree, if it is in a git repository, of this process, and digests of backbone and data.

    selection: how the cases were selected from the files; it changes the digest of the data. load: the arguments that
    `load_backbone` was given besides the name.
    """
    here = Path(__file__).parent
    sha = _git(here, "rev-parse", "HEAD")
    dirty = None if sha is None else bool(_git(here, "status", "--porcelain"))
    content = b"".join(file.read_bytes() for file in data_files)
    digest = hashlib.sha256(content + selection.encode()).hexdigest()
    return Provenance(
        *(sha, dirty, backbone.digest(), digest),
        device=device_name(backbone.device),
        command=command,
        load=described_load(load or {}),
    )


def described_load(load: Mapping[str, Any]) -> dict[str, str]:
    """The arguments of `load_backbone` that change figures, as text. Where the weights are does not: see `device`."""
    values = {name: load[name] for name in ("dtype", "quantization") if load.get(name) is not None}
    return {name: str(value).removeprefix("torch.") for name, value in values.items()}


def device_name(device: torch.device) -> str:
    """The type of a device, and the name of a GPU."""
    return f"cuda ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else device.type


class Stopwatch:
    """When a measurement started, and how long it has taken."""

    def __init__(self) -> None:
        self.started = datetime.now(UTC).isoformat(timespec="seconds")
        self._begun = time.monotonic()

    @property
    def seconds(self) -> float:
        """Wall time since the start."""
        return round(time.monotonic() - self._begun, 3)


def sealed(row: Mapping[str, Any]) -> Row:
    """The row with `row_digest`, the SHA-256 of everything else in it."""
    rest = {key: value for key, value in row.items() if key != ROW_DIGEST}
    return {**rest, ROW_DIGEST: hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()}


def file_digest(file: Path) -> str:
    """The SHA-256 of a file."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
