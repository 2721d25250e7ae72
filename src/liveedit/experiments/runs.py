"""Runs of a comparison: an editor on a backbone, measured by the bench after given numbers of edits."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from ..backbones import Backbone, load_backbone
from ..datasets.sources import NamedData, open_data
from ..editors import Editor, editor_class
from ..evaluation.bench import Bench, BenchConfig, backbone_name
from ..evaluation.provenance import make_provenance
from ..progress import TaskProgress
from .jobs import Done


@dataclass(frozen=True)
class EditorChoice:
    """An editor by name.

    label: its name in rows. source: a folder of trained parts, if not the built-in ones. settings: changed ones.
    """

    label: str
    name: str
    source: str | None = None
    settings: tuple[tuple[str, Any], ...] = ()

    def make(self, backbone: Backbone) -> Editor:
        """The editor on a backbone. Raises `NotFoundError` if it needs training and nothing trained is found."""
        kind = editor_class(self.name)
        if self.settings:
            return kind.configured(backbone, dict(self.settings), self.source)
        return kind.load(backbone, self.source)


@dataclass(frozen=True)
class BenchOptions:
    """Options of the bench that all runs of an experiment share.

    cases: the least number of cases to open, so that all runs use the same data. load: further arguments of
    `load_backbone`. distinct_subjects: see `open_data`. command: see `Provenance`. The others are those of
    `BenchConfig`.
    """

    cases: int
    few_edits_cases: int = 100
    batch: int = 128
    max_new_tokens: int | None = None
    mixed_precision: bool = False
    load: tuple[tuple[str, Any], ...] = ()
    passages: bool = False
    distinct_subjects: bool = False
    command: str | None = None


@dataclass(frozen=True)
class Run:
    """An independent job: one editor, backbone and data set; rows for each T and seed, in a folder shared by runs.

    The bench does not measure a row again that exists with the same settings, the same way of loading the backbone,
    and the same digests of backbone, data and editor; a repeated run takes as long as loading its editor.
    """

    out: Path
    backbone: str
    data: str
    editor: EditorChoice
    edits: tuple[int, ...]
    seeds: tuple[int, ...]
    options: BenchOptions
    stage: int = 0

    @property
    def title(self) -> str:
        """Backbone, data, editor, edits and seeds."""
        edits, seeds = (_listed(values) for values in (self.edits, self.seeds))
        named = f"{backbone_name(self.backbone)}, {self.data}: {self.editor.label}"
        return f"{named}, {edits} edits, seed {seeds}"

    @property
    def kind(self) -> str:
        """Backbone and editor, which determine the time."""
        return f"{self.backbone} {self.editor.label}"

    @property
    def size(self) -> float:
        """Edits made and measured."""
        return len(self.seeds) * sum(max(edits, self.options.few_edits_cases) for edits in self.edits)

    def run(self, report: TaskProgress) -> Done:
        """The run's rows; those that do not exist yet are measured."""
        return measure_run(self, self.editor, report)


@dataclass(frozen=True)
class TimedRun(Run):
    """A run that measures further seeds only while a seed takes less than some seconds.

    The first seed is always measured. How long it took is in its row, so that a repeated run decides in the same way.
    """

    most_seconds: float = 600.0

    def run(self, report: TaskProgress) -> Done:
        """The rows of the seeds for which there is time."""
        found: list[Done] = []
        for seed in self.seeds:
            found.append(measure_run(replace(self, seeds=(seed,)), self.editor, report))
            if max(row.get("seconds", 0.0) for row in found[-1].rows) > self.most_seconds:
                break
        return Done(tuple(row for done in found for row in done.rows), all(done.kept for done in found))


def measure_run(run: Run, editor: EditorChoice, report: TaskProgress) -> Done:
    """The rows of a run with this editor."""
    found = opened_data(run.data, run.options.cases, run.options.distinct_subjects)
    backbone = loaded_backbone(run.backbone, run.options.load)
    measured = False

    def noted(task: str, done: int, total: int, figures: Mapping[str, float] | None = None, /) -> None:
        nonlocal measured
        measured = True
        report(task, done, total, figures)

    name = backbone_name(run.backbone)
    config = BenchConfig(
        backbone=name,
        data=found.name,
        edits=tuple(sorted(set(run.edits))),
        seeds=run.seeds,
        few_edits_cases=run.options.few_edits_cases,
        batch=run.options.batch,
        max_new_tokens=run.options.max_new_tokens,
        mixed_precision=run.options.mixed_precision,
        passages=run.options.passages,
    )
    folder = run.out / "runs" / slug(f"{name}-{found.name}")
    provenance = make_provenance(*(backbone, found.files, found.selection, run.options.command), dict(run.options.load))
    bench = Bench(backbone, found.cases, config, folder, provenance, noted)
    try:
        rows = bench.run([(run.editor.label, editor.make)])
    except BaseException:
        loaded_backbone.cache_clear()  # What an editor left on it must not reach the next run.
        raise
    return Done(tuple(rows), kept=not measured)


@lru_cache(maxsize=1)
def loaded_backbone(name: str, load: tuple[tuple[str, Any], ...] = ()) -> Backbone:
    """A backbone; the last one is cached, for consecutive runs in a process."""
    return load_backbone(name, **dict(load))


@lru_cache(maxsize=2)
def opened_data(source: str, cases: int, distinct_subjects: bool = False) -> NamedData:
    """Cases; cached like the backbone."""
    return open_data(source, cases, distinct_subjects=distinct_subjects)


def slug(name: str) -> str:
    """A name as part of a path."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", name).strip("-.")


def in_stages(runs: Sequence[Run]) -> list[Run]:
    """The runs with stages that fill a table early: seed by seed, and within a seed from few edits to many."""
    steps = sorted({(run.seeds, run.edits) for run in runs})
    return [replace(run, stage=steps.index((run.seeds, run.edits))) for run in runs]


def _listed(values: Sequence[int]) -> str:
    return " ".join(f"{value:,}" for value in values)
