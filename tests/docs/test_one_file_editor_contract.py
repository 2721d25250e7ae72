"""The example editor passes the contract that the package ships for editors of others."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest

from liveedit.backbones import Backbone

testing = pytest.importorskip("liveedit.testing", exc_type=ImportError)


class TestLookup(testing.ExpertEditorContract):  # type: ignore[name-defined,misc]
    @pytest.fixture(autouse=True)
    def _installed(self, module: ModuleType) -> None:
        self.module = module

    def make_editor(self, backbone: Backbone) -> Any:
        return self.module.Lookup(backbone)
