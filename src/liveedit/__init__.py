"""LiveEdit: correct a frozen vision-language model, keep corrections apart, undo any of them exactly.

    from liveedit import EditedModel

    with EditedModel.load("tiny-llava", edits="edits.db") as model:
        receipt = model.edit("creature.png", "What is this creature called?", "Bruvak")
        model.ask("creature.png", "What is the name of this creature?").text
        model.undo(receipt.id)

Names are imported when they are first used, so that `import liveedit` costs nothing.
"""

from __future__ import annotations

from importlib import import_module, metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .answers import Answer, Fired
    from .backbones import Backbone, load_backbone
    from .edited.model import EditedModel
    from .edited.receipt import Receipt
    from .editors import Editor, editor_class, editor_names
    from .editors.liveedit import LiveEdit, LiveEditConfig, LiveEditRefine
    from .errors import LiveEditError
    from .samples import Edit, EditCase, Probe, Question

__version__ = metadata.version("liveedit")

_HOMES = {
    "Answer": "answers",
    "Backbone": "backbones",
    "Edit": "samples",
    "EditCase": "samples",
    "EditedModel": "edited.model",
    "Editor": "editors",
    "Fired": "answers",
    "LiveEdit": "editors.liveedit",
    "LiveEditConfig": "editors.liveedit",
    "LiveEditError": "errors",
    "LiveEditRefine": "editors.liveedit",
    "Probe": "samples",
    "Question": "samples",
    "Receipt": "edited.receipt",
    "editor_class": "editors",
    "editor_names": "editors",
    "load_backbone": "backbones",
}

__all__ = [
    "Answer",
    "Backbone",
    "Edit",
    "EditCase",
    "EditedModel",
    "Editor",
    "Fired",
    "LiveEdit",
    "LiveEditConfig",
    "LiveEditError",
    "LiveEditRefine",
    "Probe",
    "Question",
    "Receipt",
    "__version__",
    "editor_class",
    "editor_names",
    "load_backbone",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
