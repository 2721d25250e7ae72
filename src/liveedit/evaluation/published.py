"""The values that the LiveEdit paper reports, in tables separate from measured values."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from importlib import resources
from typing import Any

from .lines import metric_label
from .table import Table


def published_table(edits: Collection[int] = (), backbones: Collection[str] = (), data: Collection[str] = ()) -> Table:
    """The paper's own values, for these numbers of edits, or for all if the paper has none of them.

    backbones, data: only those with these names, as the paper writes them; all if none are given.
    """
    published = published_values()
    columns: list[str] = published["columns"]
    entries = [dict(zip(columns, row, strict=True)) for row in published["rows"]]
    entries = [entry for entry in entries if not backbones or entry["backbone"] in backbones]
    entries = [entry for entry in entries if not data or entry["data"] in data]
    entries = [entry for entry in entries if entry["edits"] in edits] or entries
    names = [name for name in columns if name.endswith(("reliability", "generality", "locality"))]
    rows = tuple(
        (
            entry["backbone"],
            entry["data"],
            entry["editor"],
            f"{entry['edits']:,}",
            *(f"{entry[name]:.2f}" for name in names),
            f"{entry['average']:.2f}±{entry['std_of_average']:.2f}",
        )
        for entry in entries
    )
    header = ("Backbone", "Data", "Editor", "Edits", *map(metric_label, names), "Average")
    notes = (
        f"Source: {published['source']}",
        "Teacher-forced token accuracy only, in %: the source reports neither exact match of free generation nor "
        "broken answers. "
        "Models, data and training differ from the runs above; compare with care.",
    )
    return Table("Published values (not ours)", header, rows, notes, text_columns=3)


def published_ablation_table() -> Table:
    """The paper's table 2: LiveEdit without one of its parts."""
    published = published_values("published_ablation.json")
    columns: list[str] = published["columns"]
    names = columns[1:]
    rows = tuple((row[0], *(f"{value:.2f}" for value in row[1:])) for row in published["rows"])
    notes = (
        f"Source: {published['source']}",
        "Teacher-forced token accuracy only, in %. Model, data and training differ from the runs above; compare with "
        "care.",
    )
    return Table("Published ablation (not ours)", ("Setting", *map(metric_label, names)), rows, notes)


def published_values(name: str = "published.json") -> Mapping[str, Any]:
    """The paper's tables as data: `source`, `columns` and `rows`. Table 2 is in "published_ablation.json"."""
    file = resources.files("liveedit.evaluation") / name
    return json.loads(file.read_text(encoding="utf-8"))
