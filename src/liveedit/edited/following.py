"""The active edits of a store, kept active in an editor from one revision to the next."""

from __future__ import annotations

from typing import Any

from ..editors.base import ExpertEditor
from ..experts.expert import expert_from_bytes
from ..store.reader import EditReader
from ..store.records import Changes


class FollowedEdits:
    """Activates and deactivates edits in an editor, as they are in the store after some revision.

    Not for several threads at once.
    """

    def __init__(self, editor: ExpertEditor[Any], store: EditReader):
        self.editor, self.store = editor, store
        self.revision = 0
        """The revision after which the active edits of the editor are those of the store."""

    def load(self, at: int | None = None) -> None:
        """Activate the edits that are active now, or after a revision. Raises `StoreError` for a damaged expert."""
        self.revision = self.store.latest_revision() if at is None else at
        for edit_id, data in self.store.active_experts(self.revision):
            self.editor.add(edit_id, self.expert(edit_id, data))
        self.editor.number(self.store.numbers(self.editor.ids))

    def refresh(self, until: int | None = None) -> Changes:
        """Apply what has changed in the store since, up to the revision `until` if one is given."""
        found = self.store.changes_since(self.revision, until)
        known = set(self.editor.ids) if found else set()  # Of many edits in a row, none looks at all ids.
        missing = [edit_id for edit_id in found.added if edit_id not in known]
        experts = [(edit_id, self.expert(edit_id, data)) for edit_id, data in self.store.experts(missing)]
        for edit_id in known.intersection(found.removed):
            self.editor.undo(edit_id)
        for edit_id, expert in experts:
            self.editor.add(edit_id, expert)
        self.editor.number(self.store.numbers([edit_id for edit_id, _ in experts]))
        self.revision = found.revision
        return found

    def expert(self, edit_id: str, data: bytes) -> Any:
        """The expert of an edit from its stored bytes. Raises `StoreError` if it is damaged."""
        try:
            return expert_from_bytes(data, self.editor.expert_class)
        except ValueError as error:
            raise self.store.damage(edit_id, "expert", str(error)) from error
