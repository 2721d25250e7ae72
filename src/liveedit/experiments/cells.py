"""One cell of a comparison: an editor on a backbone, measured by the bench after so many edits."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from ..backbones import Backbone, load_backbone
from ..datasets.sources import NamedData, open_data
from ..editors import Editor, editor_class
from ..evaluation.bench import Bench, BenchConfig, make_provenance
from .jobs import Done, Report


@dataclass(frozen=True)
class EditorChoice:
    """An editor by name; `label` is what rows call it, `source` the folder of its trained parts, where not its own."""

    label: str
    name: str
    source: str | None = None

    def make(self, backbone: Backbone) -> Editor:
        """The editor on a backbone. Raises `NotFoundError` where it needs training and nothing trained is found."""
        return editor_class(self.name).load(backbone, self.source)


@dataclass(frozen=True)
class Measuring:
    """What is the same for all cells of an experiment.

    cases: cases to open at least, so that every cell sees the same data. load: further arguments of `load_backbone`.
    """

    cases: int
    few_edits_cases: int = 100
    batch: int = 128
    max_new_tokens: int = 16
    mixed_precision: bool = False
    load: tuple[tuple[str, Any], ...] = ()


@dataclass(frozen=True)
class Cell:
    """An independent job: one editor, backbone and data set; rows for each T and seed, in a folder shared by cells.

    The bench measures no row again that is there with the same settings and the same digests of backbone, data and
    editor, so that a cell that ran before takes as long as loading its editor.
    """

    out: Path
    backbone: str
    data: str
    editor: EditorChoice
    edits: tuple[int, ...]
    seeds: tuple[int, ...]
    measuring: Measuring
    stage: int = 0

    @property
    def title(self) -> str:
        """Backbone, data, editor, edits and seeds."""
        edits, seeds = (_listed(values) for values in (self.edits, self.seeds))
        named = f"{backbone_name(self.backbone)}, {self.data}: {self.editor.label}"
        return f"{named}, {edits} edits, seed {seeds}"

    @property
    def kind(self) -> str:
        """Editor and backbone decide the time."""
        return f"{self.backbone} {self.editor.label}"

    @property
    def size(self) -> float:
        """Edits made and measured."""
        return len(self.seeds) * sum(max(edits, self.measuring.few_edits_cases) for edits in self.edits)

    def run(self, report: Report) -> Done:
        """The cell's rows, measured where they are not there yet."""
        return measure_cell(self, self.editor, report)


def measure_cell(cell: Cell, editor: EditorChoice, report: Report) -> Done:
    """The rows of a cell with this editor."""
    found = opened_data(cell.data, cell.measuring.cases)
    backbone = loaded_backbone(cell.backbone, cell.measuring.load)
    measured = False

    def noted(what: str, done: int, total: int) -> None:
        nonlocal measured
        measured = True
        report(what, done, total)

    name = backbone_name(cell.backbone)
    config = BenchConfig(
        backbone=name,
        data=found.name,
        edits=tuple(sorted(set(cell.edits))),
        seeds=cell.seeds,
        few_edits_cases=cell.measuring.few_edits_cases,
        batch=cell.measuring.batch,
        max_new_tokens=cell.measuring.max_new_tokens,
        mixed_precision=cell.measuring.mixed_precision,
    )
    folder = cell.out / "cells" / slug(f"{name}-{found.name}")
    provenance = make_provenance(backbone.digest(), found.files)
    bench = Bench(backbone, found.cases, config, folder, provenance, noted)
    try:
        rows = bench.run([(cell.editor.label, editor.make)])
    except BaseException:
        loaded_backbone.cache_clear()  # Whatever an editor left on it must not reach the next cell.
        raise
    return Done(tuple(rows), kept=not measured)


@lru_cache(maxsize=1)
def loaded_backbone(name: str, load: tuple[tuple[str, Any], ...] = ()) -> Backbone:
    """A backbone; one is remembered, for cells that follow each other in a process."""
    return load_backbone(name, **dict(load))


@lru_cache(maxsize=2)
def opened_data(source: str, cases: int) -> NamedData:
    """Cases, remembered like the backbone."""
    return open_data(source, cases)


def backbone_name(backbone: str) -> str:
    """What rows call a backbone: a folder goes by its last part."""
    return Path(backbone).resolve().name if Path(backbone).is_dir() else backbone


def slug(name: str) -> str:
    """A name as part of a path."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", name).strip("-.")


def in_stages(cells: Sequence[Cell]) -> list[Cell]:
    """The cells with stages by which a table fills up early: seed by seed, and within a seed from few edits to many."""
    steps = sorted({(cell.seeds, cell.edits) for cell in cells})
    return [replace(cell, stage=steps.index((cell.seeds, cell.edits))) for cell in cells]


def _listed(values: Sequence[int]) -> str:
    return " ".join(f"{value:,}" for value in values)
