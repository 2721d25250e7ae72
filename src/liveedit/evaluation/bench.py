"""The lifelong bench: editors x numbers of edits x seeds on one backbone and one data set; resumable."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field

from ..backbones import Backbone
from ..backbones.vision_tower import SeenImages
from ..editors.base import Editor, EditRecord
from ..errors import ConfigError
from ..files import write_json, written_atomically
from ..progress import Counter, TaskProgress, no_task_progress, progress_of
from ..samples import EditCase, ProbeName
from .by_order import edit_order
from .case_intervals import case_intervals
from .following import edit_groups
from .kept_edits import KeptEdits
from .lines import COMPLETE
from .perplexity import PassageScores
from .protocol import (
    MEASURED,
    Measurement,
    UneditedAnswers,
    answer_limit,
    answers_file,
    cost,
    measure,
    probes_of,
    summarize_measurements,
)
from .provenance import Provenance, Row, Stopwatch, file_digest, sealed
from .recurring import recurring_edits

Protocol = Literal["lifelong", "wild"]

NATURAL_STOP_TOKENS: Final = 256
"""Length limit of free answers by the protocol "wild": far beyond any answer, so that the model ends them itself."""


class BenchConfig(BaseModel):
    """What a bench run measures."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    backbone: str = Field(description="Name of the backbone.")
    data: str = Field(description="Name of the data.")
    protocol: Protocol = Field(
        default="lifelong",
        description="lifelong: free answers are cut at what the longest answer of the data needs. wild: the model ends "
        "them itself, as QAEdit's evaluation in the wild asks.",
    )
    edits: tuple[int, ...] = Field(description="Numbers of edits T.")
    seeds: tuple[int, ...] = Field(default=(0,), description="Seeds: which edits, in which order.")
    few_edits_cases: int = Field(
        default=100,
        ge=1,
        description="For small T: groups of T edits, each on a fresh model, until this many cases are measured.",
    )
    batch: int = Field(default=128, ge=1, description="Questions per forward pass.")
    max_new_tokens: int | None = Field(
        default=None,
        ge=1,
        description="Length limit of free answers, in tokens. None: as many as the longest answer of the data needs.",
    )
    mixed_precision: bool = Field(
        default=False, description="Ask with bfloat16 products and float32 sums; edits are made in full precision."
    )
    passages: bool = Field(
        default=False, description="Also score answers by perplexity, and locality by agreement along unrelated texts."
    )
    cross_modal: bool = Field(default=False, description="Also ask for edited facts without the image.")

    @property
    def probes(self) -> tuple[ProbeName, ...]:
        """The probes that are asked besides the edits themselves."""
        return (*MEASURED, "cross_modal") if self.cross_modal else MEASURED


def backbone_name(given: str) -> str:
    """The name of a backbone in rows: the last part of a folder's absolute path, or the name itself."""
    return Path(given).resolve().name if Path(given).is_dir() else given


class Bench:
    """Runs a `BenchConfig` into a folder: one JSON file per row, raw answers beside it as JSON lines.

    Rows that exist already are not measured again: an interrupted bench continues where it stopped.
    """

    def __init__(
        self,
        backbone: Backbone,
        cases: Sequence[EditCase],
        config: BenchConfig,
        folder: Path,
        provenance: Provenance,
        report: TaskProgress = no_task_progress,
        unedited: Path | None = None,
    ):
        """unedited: a folder in which runs of the same backbone share the unedited model's answers.

        Raises `ConfigError` for more edits than cases, `InvalidInputError` if the backbone has an edited model.
        """
        backbone.claim.check_free()
        if max(config.edits) > len(cases):
            raise ConfigError(
                f"{max(config.edits)} edits were requested and the data holds {len(cases)}. "
                "Request fewer, or give more data."
            )
        longest = NATURAL_STOP_TOKENS if config.protocol == "wild" else answer_limit(backbone, cases)
        limit = config.max_new_tokens or longest
        config = config.model_copy(update={"max_new_tokens": limit})
        self.backbone, self.cases, self.config, self.folder = backbone, tuple(cases), config, folder
        self.provenance, self.report = provenance, report
        self._images = SeenImages(backbone.model)
        """For asking alone: an edit's time includes its image."""
        self._unedited_folder = unedited or folder / "unedited"
        folder.mkdir(parents=True, exist_ok=True)
        self.unedited = UneditedAnswers(backbone, limit, config.batch, self._unedited_file())

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
            for edits in missing:  # For small T several groups of T edits.
                groups = edit_groups(cases, edits, self.config.few_edits_cases, seed)
                rows[edits] = self._measure(name, editor, edits, groups, settings)
        return [rows[edits] for edits in self.config.edits]

    def _measure(
        self, name: str, editor: Editor, edits: int, groups: list[list[EditCase]], settings: dict[str, Any]
    ) -> Row:
        seed, watch = settings["seed"], Stopwatch()
        label = f"{name}, {edits} edits, seed {seed}"
        measurements: list[Measurement] = []
        records: list[EditRecord] = []
        editor.reset()
        self._ask_unedited(groups, label)
        passages = PassageScores(self.backbone) if self.config.passages else None
        if passages is not None:
            passages.ask_unedited([case for group in groups for case in group])
        asking = progress_of(self.report, f"asking: {label}")
        count_asked = Counter(asking, 2 * sum(len(probes_of(group, self.config.probes)[0]) for group in groups))
        count_edited = Counter(progress_of(self.report, f"editing: {label}"), sum(map(len, groups)))
        compared = progress_of(self.report, f"asking the unedited model where an answer changed: {label}")
        file = self._file(name, edits, seed, ".json")
        answers = answers_file(file)
        origin = self.provenance.of_edits(self._settings(settings))
        kept = KeptEdits(self._file(name, edits, seed, ".edits.safetensors"), origin)
        with written_atomically(answers) as temporary, temporary.open("w", encoding="utf-8") as raw:
            for group in groups:
                editor.reset()
                made = kept.make(editor, [(case.id, case.edit) for case in group], lambda done, total: count_edited(1))
                records += made
                with self._precision(), self._images.used():
                    found = measure(
                        self.backbone, editor, group, self.unedited, count_asked, raw, compared, self.config.probes
                    )
                measurements.append(found)
                if passages is not None:
                    passages.add(group)
        editor.reset()
        row = {
            "editor": name,
            "backbone": self.config.backbone,
            "data": self.config.data,
            "edits": edits,
            "seed": seed,
            **summarize_measurements(measurements),
            "recurring": recurring_edits(measurements),
            "intervals": case_intervals(measurements),
            "order": edit_order(measurements),
            **cost(records),
            "seconds": watch.seconds,
            **({} if passages is None else passages.summary()),
            "status": COMPLETE,
            "answers_digest": file_digest(answers),
            "provenance": {
                **self.provenance.of_row(self._settings(settings), watch.started),
                "restored_edits": kept.restored,
            },
        }
        row = sealed(row)
        write_json(file, row)
        kept.remove()
        return row

    def _ask_unedited(self, groups: Sequence[Sequence[EditCase]], label: str) -> None:
        """Ask the locality probes of all groups at once: groups of few edits would make small batches."""
        asked = [item for group in groups for item in probes_of(group, self.config.probes)[0]]
        asking = progress_of(self.report, f"asking the unedited model: {label}")
        with self._precision(), self._images.used():
            self.unedited.ask(asked, Counter(asking, 2 * len(self.unedited.missing(asked))))

    def _precision(self) -> torch.autocast:
        return torch.autocast(self.backbone.device.type, torch.bfloat16, enabled=self.config.mixed_precision)

    # -- rows on disk ------------------------------------------------------------------------------------

    def _settings(self, settings: dict[str, Any]) -> dict[str, Any]:
        """The settings that a row's figures depend on."""
        fields = {"few_edits_cases", "max_new_tokens", "mixed_precision", "passages"}
        if self.config.cross_modal:
            fields.add("cross_modal")
        if self.config.protocol != "lifelong":
            fields.add("protocol")
        return json.loads(json.dumps({**self.config.model_dump(mode="json", include=fields), **settings}))

    def _read(self, name: str, edits: int, settings: dict[str, Any]) -> Row | None:
        """A row of an earlier run with the same settings, backbone and data; None if it must be measured."""
        file = self._file(name, edits, settings["seed"], ".json")
        if not file.exists():
            return None
        row = json.loads(file.read_text(encoding="utf-8"))
        kept = row["provenance"]
        same = kept["config"] == self._settings(settings) and self.provenance.same_inputs(kept)
        return row if same else None

    def _unedited_file(self) -> Path:
        """One file for each backbone, data set, length limit and precision, code and packages; a digest of these is
        its name."""
        settings = self.config.model_dump(mode="json", include={"max_new_tokens", "mixed_precision"})
        parts = json.dumps(self.provenance.of_edits(settings), sort_keys=True)
        name = hashlib.sha256(parts.encode()).hexdigest()[:16]
        return self._unedited_folder / f"{name}.jsonl"

    def _file(self, name: str, edits: int, seed: int, ending: str) -> Path:
        folder = self.folder / "results"
        folder.mkdir(exist_ok=True)
        return folder / f"{name}-{edits}-seed{seed}{ending}"
