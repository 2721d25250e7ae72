"""The edited model of a command: loaded with a line that says what happens, and which editor was chosen."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ..progress import steps_reported
from ..registry import UNTRAINED_EDITOR
from .console import note, spinner

if TYPE_CHECKING:
    from ..backbones import Backbone
    from ..edited.model import EditedModel


@contextmanager
def loaded_model(
    backbone: str | Backbone, *, editor: str | None = None, json: bool = False, **options: Any
) -> Iterator[EditedModel]:
    """`EditedModel.load`; its first use of a backbone without a trained editor shows the progress of its calibration.

    editor: None chooses one, and says so if it is the one without training.
    """
    from ..edited.model import EditedModel

    with spinner("loading", not json) as steps, steps_reported(steps):
        model = EditedModel.load(backbone, editor=editor, **options)
    with model:
        if editor is None and model.editor.name == UNTRAINED_EDITOR and not json:
            note(f"Without a trained editor, edits are fitted one by one ({UNTRAINED_EDITOR}).")
        yield model
