from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from PIL import Image

from liveedit.backbones import Backbone
from liveedit.editors.liveedit import LiveEdit, LiveEditConfig
from liveedit.samples import Question


@pytest.fixture(params=["improved", "paper"])
def editor(
    request: pytest.FixtureRequest, random_backbone: Backbone, small_config: Callable[..., LiveEditConfig]
) -> Iterator[LiveEdit]:
    """An untrained editor on the random backbone, in both forms."""
    with LiveEdit.untrained(random_backbone, small_config(request.param)) as attached:
        yield attached


@pytest.fixture
def questions(picture: Callable[[int], Image.Image]) -> list[Question]:
    """Three questions with pictures, of different lengths."""
    return [
        Question("What color is the hat?", picture(1)),
        Question("Can you say where this creature lives? Please tell me, I have to know it now.", picture(2)),
        Question("How many legs are there?", picture(3)),
    ]
