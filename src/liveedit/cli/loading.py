"""The edited model of a command: its options, and loading it with a line that says what happens."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..progress import steps_reported
from ..registry import UNTRAINED_EDITOR
from .arguments import loading
from .console import note, spinner
from .options import BackboneName, EditorName, EditorPath, ExpertsOn, LoadOptions

if TYPE_CHECKING:
    from ..backbones import Backbone
    from ..edited.model import EditedModel


@dataclass(frozen=True)
class ModelOptions:
    """The options of a command that loads an edited model: `with_options` gives them to it."""

    backbone: BackboneName = "tiny-llava"
    load: LoadOptions = None
    editor: EditorName = None
    editor_path: EditorPath = None
    experts_on: ExpertsOn = "device"

    def load_backbone(self) -> Backbone:
        """The backbone alone."""
        from ..backbones import load_backbone

        return load_backbone(self.backbone, **loading(self.load))

    @contextmanager
    def edited_model(
        self, edits: str | None, *, backbone: Backbone | None = None, json: bool = False, **further: Any
    ) -> Iterator[EditedModel]:
        """The model with the edits at a location, closed at the end of the block.

        The first use of a backbone without a trained editor shows the progress of its calibration. If no editor was
        given and the one without training is chosen, a note says so.

        backbone: what `load_backbone` gave, if it is loaded already. json: print nothing but JSON. further: arguments
        of `EditedModel.load`.
        """
        from ..edited.model import EditedModel

        options: dict[str, Any] = {
            "editor": self.editor,
            "editor_path": self.editor_path,
            "experts_on": self.experts_on,
            **further,
        }
        if backbone is None:
            options |= loading(self.load)
        with spinner("loading", not json) as steps, steps_reported(steps):
            model = EditedModel.load(backbone or self.backbone, edits=edits, **options)
        with model:
            if self.editor is None and model.editor.name == UNTRAINED_EDITOR and not json:
                note(f"Without a trained editor, edits are fitted one by one ({UNTRAINED_EDITOR}).")
            yield model
