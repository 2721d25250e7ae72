"""Edits of a long run, saved while they are made, so that an interrupted run resumes from them."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
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

        Editors that make edits in groups start from the beginning each time.
        """
        if editor.edits_in_groups:
            return editor.edit(edits, progress)
        records = self._restored(editor, [edit_id for edit_id, _ in edits])
        self.restored += len(records)
        saved, pause = time.monotonic(), _SECONDS
        for done in range(1, len(edits) + 1):
            if done > len(records):
                records += editor.edit([edits[done - 1]])
            progress(done, len(edits))
            # After the last edit too, so that an interruption while probes are asked costs no edit.
            last = done == len(edits) and self.file.exists()
            if time.monotonic() - saved >= pause or last:
                started = time.monotonic()
                self._save(editor, records)
                saved = time.monotonic()
                pause = max(_SECONDS, (saved - started) / _MOST_SHARE)
        return records

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
