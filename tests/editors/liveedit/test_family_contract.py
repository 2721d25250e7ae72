"""Every supported family under the contract of `liveedit.testing`, on tiny random models."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import pytest

from liveedit.backbones import Backbone
from liveedit.editors.liveedit import LiveEdit
from liveedit.samples import Question
from liveedit.testing import EditedBackboneContract, tiny_backbone, tiny_families
from liveedit.testing.model_traces import left_unchanged

loaded = cache(tiny_backbone)


class TestFamily(EditedBackboneContract):
    @pytest.fixture(params=tiny_families())
    def backbone(self, request: pytest.FixtureRequest) -> Iterator[Backbone]:
        yield from left_unchanged(loaded(request.param))

    @pytest.mark.slow
    @pytest.mark.filterwarnings("ignore::DeprecationWarning")
    def test_a_compiled_model_is_edited(self, backbone: Backbone, editor: LiveEdit, questions: list[Question]) -> None:
        super().test_a_compiled_model_is_edited(backbone, editor, questions)
