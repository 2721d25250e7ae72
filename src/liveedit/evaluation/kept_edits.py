"""Edits of a long run, saved while they are made, so that an interrupted run resumes from them."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final

from ..editors.base import Editor, EditRecord
from ..errors import CheckpointError
from ..progress import Progress, no_progress
from ..samples import Edit
from ..training.checkpoints import load_tensors, save_tensors

_SECONDS: Final = 60.0
"""Edits are saved after this time, and not at all if they take less."""
_MOST_SHARE: Final = 0.05
"""The most that saving may take of the time, where the state of an editor is large."""


class KeptEdits:
    """A file with the active edits of a run and their records.

    settings: what the edits depend on, a JSON object; a file with others is ignored.
    """

    def __init__(self, file: Path, settings: Mapping[str, Any]):
        self.file, self.settings = file, dict(settings)
        self.restored = 0
        """How many edits were not made but restored."""

    def make(
        self, editor: Editor, edits: Sequence[tuple[str, Edit]], progress: Progress = no_progress
    ) -> list[EditRecord]:
        """Make edits on an editor without any, as `Editor.edit` does; those of the file are restored instead.

        What an editor makes together (`Editor.groups`) is made and saved as a whole.
        """
        started = time.perf_counter()
        groups = editor.groups([edit for _, edit in edits])
        planning = 1000 * (time.perf_counter() - started) / max(1, len(edits))
        planned = [place for group in groups for place in group]
        records = self._restored(editor, [edits[place][0] for place in planned])
        self.restored += len(records)
        saved, pause, done = time.monotonic(), _SECONDS, 0
        for group in groups:
            if done + len(group) > len(records):
                made = editor.edit([edits[place] for place in group])
                records += [replace(record, milliseconds=record.milliseconds + planning) for record in made]
            for _ in group:
                done += 1
                progress(done, len(edits))
            # After the last edit too, so that an interruption while probes are asked costs no edit.
            last = done == len(edits) and self.file.exists()
            if time.monotonic() - saved >= pause or last:
                started = time.monotonic()
                self._save(editor, records)
                saved = time.monotonic()
                pause = max(_SECONDS, (saved - started) / _MOST_SHARE)
        by_place = dict(zip(planned, records, strict=True))
        return [by_place[place] for place in range(len(edits))]

    def remove(self) -> None:
        """Remove the file."""
        self.file.unlink(missing_ok=True)

    def _save(self, editor: Editor, records: Sequence[EditRecord]) -> None:
        tensors, note = editor.edited_state()
        kept = {"settings": self.settings, "note": note, "records": [asdict(record) for record in records]}
        save_tensors(self.file, tensors, kept)

    def _restored(self, editor: Editor, ids: Sequence[str]) -> list[EditRecord]:
        """The records of the edits of the file, which are active again."""
        if not self.file.exists():
            return []
        try:
            tensors, kept = load_tensors(self.file)
        except CheckpointError:
            return []  # Damaged: the edits are made again.
        records = [EditRecord(**record) for record in kept.get("records", ())]
        if kept.get("settings") != self.settings or [record.edit_id for record in records] != [*ids[: len(records)]]:
            return []
        editor.restore({name: tensor.clone() for name, tensor in tensors.items()}, kept["note"])
        return records
