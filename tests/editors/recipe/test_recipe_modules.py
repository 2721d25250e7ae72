"""RECIPE's retriever and prompt generator."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from PIL import Image

from liveedit.backbones import Backbone, HiddenTokens
from liveedit.editors.recipe import RecipeConfig
from liveedit.editors.recipe.modules import RecipeModules
from liveedit.editors.shared import read_questions
from liveedit.samples import Question

LAYER = 3


@pytest.fixture
def modules() -> RecipeModules:
    torch.manual_seed(0)
    sizes = {"features": 32, "generator_width": 32, "embedding_scale": 0.5}
    return RecipeModules(RecipeConfig.model_validate({"width": 192, "layer": LAYER, **sizes})).eval()


@pytest.fixture
def tokens(random_backbone: Backbone, picture: Callable[[int], Image.Image]) -> Callable[..., HiddenTokens]:
    """One question with an answer; any of the three may be another."""

    def read(seed: int = 1, prompt: str = "What color is the hat?", answer: str = "red") -> HiddenTokens:
        return read_questions(random_backbone, [Question(prompt, picture(seed))], LAYER, [answer])

    return read


@torch.no_grad()
def test_the_prompt_knows_the_answer_and_the_key_does_not(
    modules: RecipeModules, tokens: Callable[..., HiddenTokens]
) -> None:
    first, other = tokens(), tokens(answer="deep well")
    torch.testing.assert_close(modules.keys(first), modules.keys(other), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(modules.queries(first), modules.queries(other), atol=1e-5, rtol=1e-5)
    assert (modules.generator(first) - modules.generator(other)).abs().max() > 1e-3


@torch.no_grad()
def test_key_and_prompt_know_picture_and_wording(modules: RecipeModules, tokens: Callable[..., HiddenTokens]) -> None:
    for other in (tokens(seed=2), tokens(prompt="What color is the box?")):
        for made in (modules.keys, modules.queries, modules.generator):
            assert (made(tokens()) - made(other)).abs().max() > 1e-4


@torch.no_grad()
def test_an_answer_is_read_in_its_order(modules: RecipeModules, tokens: Callable[..., HiddenTokens]) -> None:
    one, other = tokens(answer="red blue"), tokens(answer="blue red")
    assert sorted(one.embeddings[one.answer_mask].sum(1).tolist()) == pytest.approx(
        sorted(other.embeddings[other.answer_mask].sum(1).tolist()), abs=1e-4
    )
    assert (modules.generator(one) - modules.generator(other)).abs().max() > 1e-3


@torch.no_grad()
def test_prompts_have_their_shape_and_features_unit_length(
    modules: RecipeModules, tokens: Callable[..., HiddenTokens]
) -> None:
    assert modules.generator(tokens()).shape == (1, 3, 192)
    keys, queries = modules.both(tokens())
    for features in (keys, queries, modules.sentinel_key[None]):
        torch.testing.assert_close(features.norm(dim=1), torch.ones(1))
    assert torch.equal(modules.keys(tokens()), keys)
    assert torch.equal(modules.queries(tokens()), queries)


def test_first_prompts_are_as_large_as_words(modules: RecipeModules, tokens: Callable[..., HiddenTokens]) -> None:
    made = modules.generator(tokens())
    double = RecipeModules(modules.config.model_copy(update={"embedding_scale": 1.0})).eval()
    double.load_state_dict(modules.state_dict())
    torch.testing.assert_close(double.generator(tokens()), 2 * made)


def test_heads_must_divide_the_generator() -> None:
    with pytest.raises(ValueError, match="must divide generator_width = 30"):
        RecipeConfig(width=192, layer=LAYER, generator_width=30)  # type: ignore[call-arg]
