"""A tiny random model of each family, made once for all tests of faults."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache

import pytest
from PIL import Image

from liveedit.backbones import Backbone
from liveedit.samples import Question
from liveedit.testing import tiny_backbone, tiny_families
from liveedit.testing.model_traces import left_unchanged

shared_backbone = cache(tiny_backbone)


@pytest.fixture(params=tiny_families())
def family_backbone(request: pytest.FixtureRequest) -> Iterator[Backbone]:
    """The model of a family, checked to be left as it was."""
    yield from left_unchanged(shared_backbone(request.param))


@pytest.fixture(params=[family for family in tiny_families() if family not in ("llama", "mistral")])
def reader(request: pytest.FixtureRequest) -> Iterator[Backbone]:
    """The model of a family that reads images."""
    yield from left_unchanged(shared_backbone(request.param))


@pytest.fixture
def language_model() -> Iterator[Backbone]:
    """A model that reads text alone, without a chat template."""
    yield from left_unchanged(shared_backbone("llama"))


@pytest.fixture
def asked(family_backbone: Backbone, picture: Callable[[int], Image.Image]) -> list[Question]:
    """Questions of different lengths, with images of different shapes, if the model reads them, and without."""
    shown = [picture(1), picture(2).resize((96, 48)), None] if family_backbone.reads_images else [None] * 3
    prompts = ("What color is the hat?", "Look at it once more: where does this creature live?", "How many?")
    return [Question(prompt, image) for prompt, image in zip(prompts, shown, strict=True)]
