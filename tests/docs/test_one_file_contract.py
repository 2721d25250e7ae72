"""The example of an editor in one file, installed, passes the contract that the built-in editors pass."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest

from liveedit.backbones import Backbone
from liveedit.editors import ExpertEditor
from liveedit.testing import ExpertEditorContract


class TestLookup(ExpertEditorContract):
    """`registered` stays true: the contract looks the editor up by its entry point."""

    @pytest.fixture
    def backbone(self, random_backbone: Backbone) -> Iterator[Backbone]:
        yield random_backbone

    @pytest.fixture(autouse=True)
    def _installed(self, module: ModuleType) -> None:
        self.module = module

    def make_editor(self, backbone: Backbone) -> ExpertEditor[Any]:
        return self.module.Lookup(backbone)
