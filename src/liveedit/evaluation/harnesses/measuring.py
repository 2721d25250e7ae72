"""General ability before and after edits: the same tasks on the unedited and on the edited model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Final

from ...edited.model import EditedModel
from ...files import write_json, written_atomically
from ..lines import COMPLETE
from ..provenance import Provenance, Row, Stopwatch, file_digest, sealed
from .running import EvalConfig, HarnessResults, harness_version, run_harness

GENERAL_ABILITY: Final = "general ability"
"""What rows.json says that it is the report of."""

UNEDITED: Final = "unedited"
EDITED: Final = "edited"
COLUMNS: Final = (UNEDITED, EDITED)


class GeneralAbility:
    """Runs the tasks of a harness twice on one model: with its edits paused, and with all of them active.

    Each column is a row in `results/` with the samples of the harness beside it, one JSON object in a line. A column
    that is there already, with the same settings, edits and model, is not measured again.
    """

    def __init__(
        self,
        model: EditedModel,
        config: EvalConfig,
        folder: Path,
        provenance: Provenance,
        backbone: str,
        include: Path | None = None,
        note: Callable[[str], None] = lambda text: None,
    ):
        """backbone: its name in the rows. include: a folder with further tasks. note: called with what is measured."""
        self.model, self.config, self.folder, self.provenance = model, config, folder, provenance
        self.backbone, self.include, self.note = backbone, include, note
        self.version = harness_version(config.harness)

    def run(self) -> list[Row]:
        """The rows of both columns."""
        return [self._kept(column) or self._measured(column) for column in COLUMNS]

    def _measured(self, column: str) -> Row:
        self.note(f"{self.config.harness} on the {column} model: {', '.join(self.config.tasks)}")
        watch = Stopwatch()
        with self.model.editor.paused() if column == UNEDITED else nullcontext():
            found = run_harness(self.model, self.config, self.include)
        samples = samples_file(self.folder, column)
        with written_atomically(samples) as temporary, temporary.open("w", encoding="utf-8") as stream:
            for one in found.samples:
                stream.write(json.dumps(one, ensure_ascii=False) + "\n")
        row = sealed(self._row(column, found, watch, samples))
        write_json(row_file(self.folder, column), row)
        return row

    def _row(self, column: str, found: HarnessResults, watch: Stopwatch, samples: Path) -> Row:
        return {
            "column": column,
            "backbone": self.backbone,
            "harness": self.config.harness,
            "harness_version": self.version,
            "editor": self.model.editor.name,
            "edits": 0 if column == UNEDITED else len(self.model),
            "revision": None if column == UNEDITED else self.model.revision,
            "tasks": found.tasks,
            "groups": found.groups,
            "requests": found.requests,
            "seconds": watch.seconds,
            "status": COMPLETE,
            "samples_digest": file_digest(samples),
            "provenance": self.provenance.of_row(self._settings(column), watch.started),
        }

    def _settings(self, column: str) -> dict[str, Any]:
        """What a row's figures depend on, besides the backbone and the data."""
        settings = {**self.config.model_dump(mode="json"), "harness_version": self.version}
        if column == EDITED:
            ids = "\n".join(sorted(self.model.editor.ids))
            edits = hashlib.sha256(ids.encode()).hexdigest()
            settings |= {"editor": self.model.editor.configuration(), "editor_digest": self.model.editor.digest()}
            settings |= {"edits_digest": edits}
        return json.loads(json.dumps(settings))

    def _kept(self, column: str) -> Row | None:
        """The row of an earlier run; None if it must be measured."""
        file, samples = row_file(self.folder, column), samples_file(self.folder, column)
        if not file.is_file() or not samples.is_file():
            return None
        row = json.loads(file.read_text(encoding="utf-8"))
        kept: Mapping[str, Any] = row["provenance"]
        same = kept["config"] == self._settings(column) and self.provenance.same_inputs(kept)
        return row if same and row["samples_digest"] == file_digest(samples) else None


def row_file(folder: Path, column: str) -> Path:
    """Where the row of a column is."""
    return folder / "results" / f"{column}.json"


def samples_file(folder: Path, column: str) -> Path:
    """Where the harness's samples of a column are, beside its row."""
    return folder / "results" / f"{column}.samples.jsonl"


def read_samples(folder: Path, column: str) -> list[dict[str, Any]]:
    """The samples of a column."""
    text = samples_file(folder, column).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.split("\n") if line]


def tasks_digest(include: Path | None) -> str:
    """What distinguishes a folder of tasks: all its files, by name and content. Empty without a folder."""
    if include is None:
        return ""
    content = hashlib.sha256()
    for file in sorted(path for path in include.rglob("*") if path.suffix in (".yaml", ".py", ".jsonl", ".json")):
        content.update(f"{file.relative_to(include).as_posix()}\n{file_digest(file)}\n".encode())
    return content.hexdigest()
