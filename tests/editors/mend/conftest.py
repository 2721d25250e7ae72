from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from PIL import Image

from liveedit.backbones import Backbone
from liveedit.backbones.families.blip2 import Blip2Backbone
from liveedit.pretraining.models import TINY_BLIP2, TINY_LLAVA, TINY_MINIGPT4
from liveedit.samples import Edit, Question
from liveedit.testing.model_traces import hooks_of, weight_bits


@pytest.fixture(scope="session")
def random_models() -> dict[str, Backbone]:
    """One of each built-in kind: Llama's gated MLP, and OPT's with biases, which sees all tokens in one row."""
    blip2 = {
        made.name: Blip2Backbone(made.name, made.build(seed=3), made.processor())
        for made in (TINY_BLIP2, TINY_MINIGPT4)
    }
    return {"tiny-llava": Backbone("tiny-llava", TINY_LLAVA.build(seed=3), TINY_LLAVA.processor()), **blip2}


@pytest.fixture(params=["tiny-llava", "tiny-blip2", "tiny-minigpt4"])
def backbone(request: pytest.FixtureRequest, random_models: dict[str, Backbone]) -> Iterator[Backbone]:
    """A random backbone, checked to be left as it was."""
    model = random_models[request.param]
    layers, weights = model.decoder.layers, weight_bits(model)
    yield model
    assert model.decoder.layers is layers
    assert hooks_of(model) == []
    assert weight_bits(model) == weights


@pytest.fixture
def edits(picture: Callable[[int], Image.Image]) -> list[Edit]:
    """Three edits of different lengths, one of them without a picture."""
    return [
        Edit(Question("What color is the hat?", picture(1)), "red"),
        Edit(Question("Can you say where this creature lives? Please tell me.", picture(2)), "the deep well"),
        Edit(Question("What is the capital of Coraland?"), "north"),
    ]
