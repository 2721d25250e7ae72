"""The example of an editor in one file passes the contract that the built-in editors pass."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from liveedit.backbones import Backbone
from liveedit.editors import ExpertEditor
from liveedit.testing import ExpertEditorContract

EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "one_file_editor"


class TestLookup(ExpertEditorContract):
    registered = False

    @pytest.fixture
    def backbone(self, random_backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> Iterator[Backbone]:
        monkeypatch.syspath_prepend(EXAMPLE)
        yield random_backbone

    def make_editor(self, backbone: Backbone) -> ExpertEditor[Any]:
        return importlib.import_module("liveedit_lookup").Lookup(backbone)
