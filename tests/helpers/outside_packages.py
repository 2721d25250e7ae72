"""Distributions with entry points, installed for the time of a test."""

from __future__ import annotations

from pathlib import Path

EntryPoints = dict[str, dict[str, str]]


def install(folder: Path, name: str, entry_points: EntryPoints, module: str | None = None) -> None:
    """Write a distribution's metadata into a folder of `sys.path`, and a module NAME_module if its source is given."""
    if module is not None:
        (folder / f"{name}_module.py").write_text(module)
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    lines = []
    for group, points in entry_points.items():
        lines += [f"[{group}]", *(f"{key} = {value}" for key, value in points.items())]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
