"""The unedited model: every edit is accepted and changes nothing."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..samples import Edit
from .base import Editor


class NoEditor(Editor):
    """The baseline that shows what the backbone answers by itself."""

    name = "none"
    summary = "the unedited model"
    table_order = 0

    def _edit_one(self, edit_id: str, edit: Edit) -> dict[str, Any]:
        return {}

    def reset(self) -> None:
        """There is nothing to undo."""

    def edited_state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Nothing."""
        return {}, {}

    def restore(self, tensors: dict[str, Tensor], note: dict[str, Any]) -> None:
        """There is nothing to restore."""
