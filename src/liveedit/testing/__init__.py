"""Tests and tiny models for editors, backbone families and dataset readers, the built-in ones and those of others.

A contract is a pytest class with the tests that every extension of a kind must pass. Subclass it in a test file:

    from liveedit.testing import ExpertEditorContract

    class TestMyEditor(ExpertEditorContract):
        def make_editor(self, backbone):
            return MyEditor(backbone)

`EditorContract` is for any editor, `ExpertEditorContract` for one that makes one expert per edit, `BackboneContract`
for a family of models, `EditedBackboneContract` for a family with edits, and `DatasetContract` for a reader. They need
pytest. `tiny_backbone` and `random_image` do not.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from .backbone_contract import BackboneContract
    from .dataset_contract import DatasetContract
    from .edited_backbone_contract import EditedBackboneContract
    from .editor_contract import EditorContract
    from .expert_editor_contract import ExpertEditorContract
    from .tiny_backbones import random_image, tiny_backbone, tiny_families

__all__ = [
    "BackboneContract",
    "DatasetContract",
    "EditedBackboneContract",
    "EditorContract",
    "ExpertEditorContract",
    "random_image",
    "tiny_backbone",
    "tiny_families",
]

_CONTRACTS: Final = {
    "BackboneContract": "backbone_contract",
    "DatasetContract": "dataset_contract",
    "EditedBackboneContract": "edited_backbone_contract",
    "EditorContract": "editor_contract",
    "ExpertEditorContract": "expert_editor_contract",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name in _CONTRACTS:
        _show_values_of_failed_asserts()
    value = getattr(import_module(f".{_CONTRACTS.get(name, 'tiny_backbones')}", __name__), name)
    globals()[name] = value
    return value


def _show_values_of_failed_asserts() -> None:
    if find_spec("pytest") is None:
        raise ImportError("The contracts of liveedit.testing need pytest: pip install pytest.")
    import pytest

    modules = [f"{__name__}.{module}" for module in _CONTRACTS.values()]
    pytest.register_assert_rewrite(*(module for module in modules if module not in sys.modules))
