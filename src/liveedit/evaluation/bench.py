"""The lifelong bench: editors x numbers of edits x seeds on one backbone and one data set; resumable."""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field

from ..backbones import Backbone
from ..editors.base import Editor, EditRecord
from ..errors import ConfigError
from ..samples import EditCase
from .passages import PassageScores
from .protocol import Measurement, UneditedAnswers, cost, measure, probes_of, summarize_measurements

Row = dict[str, Any]
Report = Callable[[str, int, int], None]
"""Called with what is going on, how much of it is done, and how much there is."""


class BenchConfig(BaseModel):
    """What a bench run measures."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    backbone: str = Field(description="Name of the backbone.")
    data: str = Field(description="Name of the data.")
    edits: tuple[int, ...] = Field(description="Numbers of edits T.")
    seeds: tuple[int, ...] = Field(default=(0,), description="Seeds: which edits, in which order.")
    few_edits_cases: int = Field(
        default=100,
        ge=1,
        description="For small T: groups of T edits, each on a fresh model, until so many cases are measured.",
    )
    batch: int = Field(default=128, ge=1, description="Questions per forward pass.")
    max_new_tokens: int = Field(default=16, ge=1, description="Longest free answer, in tokens.")
    mixed_precision: bool = Field(
        default=False, description="Ask with bfloat16 products and float32 sums; edits are made in full precision."
    )
    passages: bool = Field(
        default=False, description="Also score answers by perplexity, and locality by agreement along unrelated texts."
    )


@dataclass(frozen=True)
class Provenance:
    """Where figures come from."""

    git_sha: str | None
    dirty: bool | None
    backbone_digest: str
    data_digest: str


def make_provenance(backbone_digest: str, data_files: Sequence[Path]) -> Provenance:
    """Git state of the source tree where it is one, digests of backbone and annotation files."""
    here = Path(__file__).parent
    sha = _git(here, "rev-parse", "HEAD")
    dirty = None if sha is None else bool(_git(here, "status", "--porcelain"))
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in data_files)).hexdigest()
    return Provenance(sha, dirty, backbone_digest, digest)


class Bench:
    """Runs a `BenchConfig` into a folder: one JSON file per row, raw answers beside it as JSON lines.

    Rows that are there already are not measured again, so that an interrupted bench goes on where it was.
    """

    def __init__(
        self,
        backbone: Backbone,
        cases: Sequence[EditCase],
        config: BenchConfig,
        folder: Path,
        provenance: Provenance,
        report: Report = lambda what, done, total: None,
        unedited: Path | None = None,
    ):
        """`unedited` is a folder in which runs of the same backbone share what the unedited model answers."""
        if max(config.edits) > len(cases):
            raise ConfigError(
                f"{max(config.edits)} edits were asked for and the data holds {len(cases)}. "
                "Ask for fewer or give more data."
            )
        self.backbone, self.cases, self.config, self.folder = backbone, tuple(cases), config, folder
        self.provenance, self.report = provenance, report
        self._unedited_folder = unedited or folder / "unedited"
        folder.mkdir(parents=True, exist_ok=True)
        self.unedited = UneditedAnswers(backbone, config.max_new_tokens, config.batch, self._unedited_file())

    def run(self, editors: Sequence[tuple[str, Callable[[Backbone], Editor]]]) -> list[Row]:
        """All rows, editor by editor, seed by seed."""
        rows = []
        for name, make in editors:
            for seed in self.config.seeds:
                rows += self._run_editor(name, make, seed)
        return rows

    def _run_editor(self, name: str, make: Callable[[Backbone], Editor], seed: int) -> list[Row]:
        order = np.random.default_rng([seed, 77]).permutation(len(self.cases))
        cases = [self.cases[index] for index in order]
        rows: dict[int, Row] = {}
        with make(self.backbone) as editor:
            settings = {"editor": editor.configuration(), "editor_digest": editor.digest(), "seed": seed}
            for edits in self.config.edits:
                found = self._read(name, edits, settings)
                if found is not None:
                    rows[edits] = found
            missing = sorted(edits for edits in self.config.edits if edits not in rows)
            for edits, groups in self._plan(cases, missing):
                rows[edits] = self._measure(name, editor, edits, groups, settings)
        return [rows[edits] for edits in self.config.edits]

    def _plan(self, cases: Sequence[EditCase], missing: Sequence[int]) -> Iterator[tuple[int, list[list[EditCase]]]]:
        """For each T its groups of T edits: one group for large T, several for small T, incomplete last ones too."""
        for edits in missing:
            count = min(len(cases), max(edits, self.config.few_edits_cases))
            chosen = list(cases[:count])
            yield edits, [chosen[start : start + edits] for start in range(0, count, edits)]

    def _measure(
        self, name: str, editor: Editor, edits: int, groups: list[list[EditCase]], settings: dict[str, Any]
    ) -> Row:
        seed = settings["seed"]
        label = f"{name}, {edits} edits, seed {seed}"
        measurements: list[Measurement] = []
        records: list[EditRecord] = []
        total = 2 * sum(len(probes_of(group)[0]) for group in groups)
        raw_file = self._file(name, edits, seed, ".answers.jsonl")
        beside = raw_file.with_suffix(".tmp")
        tick = self._ticking(f"asking: {label}", total)
        editor.reset()
        self._ask_unedited(groups, label)
        passages = PassageScores(self.backbone) if self.config.passages else None
        if passages is not None:
            passages.ask_unedited([case for group in groups for case in group])
        with beside.open("w", encoding="utf-8") as raw:
            for group in groups:
                editor.reset()
                ids = [(case.id, case.edit) for case in group]
                made = len(records)
                records += editor.edit(
                    ids,
                    lambda count, _, made=made: self.report(f"editing: {label}", made + count, sum(map(len, groups))),
                )
                with self._precision():
                    measurements.append(measure(self.backbone, editor, group, self.unedited, tick, raw))
                if passages is not None:
                    passages.add(group)
        editor.reset()
        beside.replace(raw_file)
        row = {
            "editor": name,
            "backbone": self.config.backbone,
            "data": self.config.data,
            "edits": edits,
            "seed": seed,
            **summarize_measurements(measurements),
            **cost(records),
            **({} if passages is None else passages.summary()),
            "status": "complete",
            "provenance": {**vars(self.provenance), "config": self._settings(settings)},
        }
        self._write(self._file(name, edits, seed, ".json"), row)
        return row

    def _ask_unedited(self, groups: Sequence[Sequence[EditCase]], label: str) -> None:
        """All groups at once: of few edits each, they would make small batches."""
        asked = [item for group in groups for item in probes_of(group)[0]]
        tick = self._ticking(f"asking the unedited model: {label}", 2 * len(self.unedited.missing(asked)))
        with self._precision():
            self.unedited.ask(asked, tick)

    def _precision(self) -> torch.autocast:
        return torch.autocast(self.backbone.device.type, torch.bfloat16, enabled=self.config.mixed_precision)

    def _ticking(self, what: str, total: int) -> Callable[[int], None]:
        """A function that is told how many more are done, and reports how many that makes."""
        done = 0

        def tick(count: int) -> None:
            nonlocal done
            done += count
            self.report(what, done, total)

        return tick

    # -- rows on disk ------------------------------------------------------------------------------------

    def _settings(self, settings: dict[str, Any]) -> dict[str, Any]:
        """What a row's figures hang on. Settings that came later are named only where they are used."""
        later = {name for name in ("mixed_precision", "passages") if getattr(self.config, name)}
        general = self.config.model_dump(mode="json", include={"few_edits_cases", "max_new_tokens", *later})
        return json.loads(json.dumps({**general, **settings}))

    def _read(self, name: str, edits: int, settings: dict[str, Any]) -> Row | None:
        """A row of an earlier run with the same settings, backbone and data; None where it must be measured."""
        file = self._file(name, edits, settings["seed"], ".json")
        if not file.exists():
            return None
        row = json.loads(file.read_text(encoding="utf-8"))
        kept = row["provenance"]
        same = (
            kept["config"] == self._settings(settings)
            and kept["backbone_digest"] == self.provenance.backbone_digest
            and kept["data_digest"] == self.provenance.data_digest
        )
        return row if same else None

    def _unedited_file(self) -> Path:
        """One file for each backbone, data set, longest answer and precision: digests tell them apart."""
        digests = (self.provenance.backbone_digest, self.provenance.data_digest)
        config = self.config
        parts = (*digests, config.max_new_tokens, config.mixed_precision)
        name = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
        return self._unedited_folder / f"{name}.jsonl"

    def _file(self, name: str, edits: int, seed: int, ending: str) -> Path:
        folder = self.folder / "results"
        folder.mkdir(exist_ok=True)
        return folder / f"{name}-{edits}-seed{seed}{ending}"

    @staticmethod
    def _write(file: Path, row: Row) -> None:
        beside = file.with_suffix(".tmp")
        beside.write_text(json.dumps(row, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        beside.replace(file)


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
