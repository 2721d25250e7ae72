from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from PIL import Image

from liveedit.backbones import Backbone
from liveedit.editors.lemoe import Lemoe, LemoeConfig
from liveedit.samples import Edit, Question

ConfigMaker = Callable[..., LemoeConfig]
EditorMaker = Callable[..., Lemoe]


@pytest.fixture(scope="session")
def lemoe_config() -> ConfigMaker:
    """A small, quick editor; random models need a high rate to learn anything in a few steps."""

    def make(**changes: object) -> LemoeConfig:
        small: dict[str, object] = {
            **{"projection_width": 64, "value_width": 64, "hidden": 64, "start": "random"},
            **{"rate": 1e-2, "steps": 12, "batch_edits": 2},
        }
        return LemoeConfig.model_validate({**small, **changes})

    return make


@pytest.fixture
def make_editor(random_backbone: Backbone, lemoe_config: ConfigMaker) -> Iterator[EditorMaker]:
    """Editors on the random backbone, all detached in the end."""
    made: list[Lemoe] = []

    def make(**changes: object) -> Lemoe:
        made.append(Lemoe(random_backbone, lemoe_config(**changes)))
        return made[-1]

    yield make
    for editor in made:
        editor.detach()


@pytest.fixture
def edits(picture: Callable[[int], Image.Image]) -> list[tuple[str, Edit]]:
    """Three edits with pictures, and one without."""
    return [
        ("hat", Edit(Question("What color is the hat?", picture(1)), "red")),
        ("home", Edit(Question("Where does this creature live? Please tell me.", picture(2)), "deep well")),
        ("legs", Edit(Question("How many legs are there?", picture(3)), "four")),
        ("city", Edit(Question("What is the capital of Coraland?"), "Faburg")),
    ]
