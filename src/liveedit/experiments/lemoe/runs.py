"""Runs of LEMoE in which every batch of edits is asked right after its expert is trained, and again at the end."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from torch import Tensor

from ...backbones import Backbone
from ...editors.lemoe import Lemoe, LemoeConfig
from ...editors.lemoe.planning import plan_batches
from ...evaluation.bench import backbone_name
from ...evaluation.lines import COMPLETE
from ...evaluation.protocol import (
    Measurement,
    UneditedAnswers,
    answer_limit,
    answers_file,
    measure,
    probes_of,
    summarize_measurements,
)
from ...evaluation.provenance import Stopwatch, file_digest, make_provenance, sealed
from ...evaluation.scoring import REPORTED
from ...files import write_json, written_atomically
from ...progress import TaskProgress
from ...samples import LOCALITY, EditCase, edited_scopes
from ..jobs import Done
from ..runs import BenchOptions, loaded_backbone, opened_data, slug
from .analysis import consistency_matrix, diagonal_mass, within_between_similarity

IMMEDIATE: Final = "immediate"
FINAL: Final = "final"
"""When edits are asked: right after their batch, or after all batches."""


@dataclass(frozen=True)
class LemoeRun:
    """An independent job: LEMoE makes some edits in one order, on one backbone.

    settings: of `LemoeConfig`, routing and batch size among them. shuffled: share of the edits whose places in the
    planned order are exchanged at random; 1 is a random order. order: number of the random order.
    """

    out: Path
    backbone: str
    data: str
    label: str
    edits: int
    seed: int
    options: BenchOptions
    settings: tuple[tuple[str, Any], ...] = ()
    shuffled: float = 1.0
    order: int = 0
    stage: int = 0

    @property
    def title(self) -> str:
        """Backbone, data, label, edits, seed and order."""
        named = f"{backbone_name(self.backbone)}, {self.data}: {self.label}"
        return f"{named}, {self.edits:,} edits, seed {self.seed}, order {self.order}"

    @property
    def kind(self) -> str:
        """Backbone and routing, which determine the time."""
        return f"{self.backbone} {dict(self.settings).get('routing')}"

    @property
    def size(self) -> float:
        """Edits made."""
        return self.edits

    def run(self, report: TaskProgress) -> Done:
        """Two rows, asked immediately and finally; read if they exist with the same settings and digests."""
        found = opened_data(self.data, self.options.cases, self.options.distinct_subjects)
        backbone = loaded_backbone(self.backbone, self.options.load)
        provenance = make_provenance(
            *(backbone, found.files, found.selection, self.options.command), dict(self.options.load)
        )
        limit = self.options.max_new_tokens or answer_limit(backbone, found.cases)
        with Lemoe(backbone, LemoeConfig.model_validate({**dict(self.settings), "order": "given"})) as editor:
            config = {
                **{"editor": editor.configuration(), "edits": self.edits, "seed": self.seed},
                **{"shuffled": self.shuffled, "order": self.order, "max_new_tokens": limit},
            }
            file = self._file(config)  # Its name has a digest of the settings.
            kept = _read(file)
            if kept is not None and provenance.same_inputs(kept[0]["provenance"]):
                return Done(tuple(kept), kept=True)
            watch = Stopwatch()
            named = {"backbone": backbone_name(self.backbone), "data": found.name, "edits": self.edits}
            order = np.random.default_rng([self.seed, 77]).permutation(len(found.cases))  # The same as in the bench.
            cases = _without_edited_locality([found.cases[index] for index in order[: self.edits]])
            measured = self._measure(backbone, editor, cases, limit, file, report)
            common = {
                **{**named, "status": COMPLETE, "label": self.label, "order": self.order},
                "seconds": watch.seconds,
                "answers_digest": file_digest(answers_file(file)),
                "provenance": provenance.of_row({**config, "editor_digest": editor.digest()}, watch.started),
            }
            rows = [sealed({**common, **row}) for row in measured]
            write_json(file, rows)
            return Done(tuple(rows), kept=False)

    def _measure(
        self, backbone: Backbone, editor: Lemoe, cases: Sequence[EditCase], limit: int, file: Path, report: TaskProgress
    ) -> list[dict[str, Any]]:
        anchors = editor.anchors_of_edits([case.edit for case in cases]).cpu()
        ordered = [cases[place] for place in self._order(anchors, editor.config.batch_edits)]
        unedited = UneditedAnswers(backbone, limit, self.options.batch)
        unedited.ask(probes_of(ordered)[0])
        by_id = {case.id: case for case in ordered}
        immediate: list[Measurement] = []
        with written_atomically(answers_file(file)) as temporary, temporary.open("w", encoding="utf-8") as raw:

            def made(done: int, total: int) -> None:
                report(f"editing: {self.title}", done, total)
                if len(immediate) < len(editor.experts):  # A batch's expert has just been trained.
                    batch = [by_id[edit_id] for edit_id in editor.edits_of[-1]]
                    immediate.append(measure(backbone, editor, batch, unedited, raw=raw))

            editor.edit([(case.id, case.edit) for case in ordered], made)
            batches = [[by_id[edit_id] for edit_id in ids] for ids in editor.edits_of]
            final = [measure(backbone, editor, batch, unedited, raw=raw) for batch in batches]
        places = {case.id: place for place, case in enumerate(cases)}
        numbers = [[places[case.id] for case in batch] for batch in batches]
        matrix = consistency_matrix(editor, [(case.id, case.edit) for case in ordered])
        within, between = within_between_similarity(anchors, numbers)
        shared = {
            "router": editor.config.routing,
            "shuffled": self.shuffled,
            "consistency": [[_number(value) for value in line] for line in matrix.tolist()],
            "diagonal_mass": _number(diagonal_mass(matrix)),
            "within_similarity": _number(within),
            "between_similarity": _number(between),
        }
        return [
            {**shared, "editor": f"{self.label}, {when}", "seed": self._seed(), "when": when, **scores_of(found)}
            for when, found in ((IMMEDIATE, immediate), (FINAL, final))
        ]

    def _order(self, anchors: Tensor, size: int) -> list[int]:
        """Places of the edits: planned by clusters, with a share of them exchanged at random."""
        planned = [place for batch in plan_batches(anchors, size, "clustered", 0) for place in batch]
        rng = np.random.default_rng([self.seed, self.order, 78])
        moved = rng.permutation(len(planned))[: round(self.shuffled * len(planned))]
        for place, other in zip(moved.tolist(), rng.permutation([planned[place] for place in moved]), strict=True):
            planned[place] = int(other)
        return planned

    def _seed(self) -> int:
        """Runs of one label differ by seed or by order."""
        return self.seed + 1000 * self.order

    def _file(self, config: dict[str, Any]) -> Path:
        digest = hashlib.sha256(json.dumps([self.data, config], sort_keys=True).encode()).hexdigest()[:12]
        return self.out / "runs" / slug(backbone_name(self.backbone)) / f"{slug(self.label)}-{digest}.json"


def scores_of(found: Sequence[Measurement]) -> dict[str, Any]:
    """Metrics over all batches, as of the bench, and the reliability of each."""
    batches: dict[str, list[float | None]] = {score: [] for score, _ in REPORTED}
    for measurement in found:
        metrics = summarize_measurements([measurement])["metrics"]["reliability"]
        for score in batches:
            batches[score].append(metrics[score])
    counts = [sum(item.probe.name == "reliability" for item, _ in measurement.scores) for measurement in found]
    return {"metrics": summarize_measurements(found)["metrics"], "batches": batches, "batch_sizes": counts}


def _without_edited_locality(cases: Sequence[EditCase]) -> list[EditCase]:
    """The cases without the locality probes in the scope of any edit, also of those made later."""
    scopes = edited_scopes(cases)
    return [
        replace(
            case,
            probes=tuple(
                probe for probe in case.probes if probe.name not in LOCALITY or probe.question.scope not in scopes
            ),
        )
        for case in cases
    ]


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _read(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
