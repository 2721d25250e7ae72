"""What is read of a question: its own tokens without the chat template, and the last token of its prompt."""

from __future__ import annotations

from functools import cache

import pytest
import torch

from liveedit.backbones import Backbone, TokenBatch
from liveedit.editors.shared.reading import KeptLayer, Template, last_of_prompt
from liveedit.samples import Question
from liveedit.testing import random_image, tiny_backbone, tiny_families

QUESTIONS = ("Where does the river end?", "Name it")

loaded = cache(tiny_backbone)


def text_of(backbone: Backbone, ids: torch.Tensor) -> str:
    return backbone.processor.tokenizer.decode(ids, clean_up_tokenization_spaces=False)


@pytest.mark.parametrize("padding", ["left", "right"])
@pytest.mark.parametrize("family", tiny_families())
def test_the_question_alone_is_found_within_the_template(family: str, padding: str) -> None:
    backbone = loaded(family)
    inputs = backbone.encode([Question(prompt) for prompt in QUESTIONS], padding=padding)
    mask = Template.of(backbone).question_mask(inputs)
    assert not (mask & ~inputs.prompt_mask).any()
    for prompt, ids, inside, role in zip(QUESTIONS, inputs.input_ids, mask, inputs.prompt_mask, strict=True):
        found, whole = text_of(backbone, ids[inside]), text_of(backbone, ids[role])
        assert found.strip() == prompt, (found, whole)


@pytest.mark.parametrize("family", ["llava", "qwen3-vl", "mistral"])
def test_a_template_has_tokens_around_the_question(family: str) -> None:
    template = Template.of(loaded(family))
    assert template.before > 0 and template.after > 0


def test_a_model_without_a_template_has_none_behind_the_question() -> None:
    assert Template.of(loaded("llama")).after == 0


def batch(*rows: list[int]) -> TokenBatch:
    roles = torch.tensor(rows)
    return TokenBatch(roles, torch.arange(roles.numel()).view(roles.shape))


def test_a_prompt_that_is_no_longer_than_the_template_is_taken_whole() -> None:
    tokens = batch([0, 0, 0, 0, 0], [0, 0, 0, -1, -1], [0, 0, -1, -1, -1])
    mask = Template(2, 1).question_mask(tokens)
    assert mask.tolist() == [
        [False, False, True, True, False],
        [True, True, True, False, False],
        [True, True, False, False, False],
    ]


def test_image_and_answer_are_no_part_of_the_question() -> None:
    tokens = batch([-1, 0, 1, 1, 0, 0, 0, 2, 2])
    assert Template(1, 1).question_mask(tokens).nonzero()[:, 1].tolist() == [4, 5]


@pytest.mark.parametrize(
    "row",
    [[0, 0, 0, -1, -1], [-1, -1, 0, 0, 0], [0, 1, 1, 0, 2], [0, 0, 2, 2, -1], [-1, 0, 0, 2, 2], [3, 0, 0, 1, 1]],
)
def test_the_last_token_of_the_prompt(row: list[int]) -> None:
    tokens = batch(row)
    states = torch.randn(1, 5, 3)
    last = max(place for place, role in enumerate(row) if role == 0)
    assert torch.equal(last_of_prompt(states, tokens.prompt_mask), states[:, last])


def test_padding_changes_nothing_that_is_read(tiny_llava: Backbone) -> None:
    questions = [Question("What is this?", random_image(1)), Question("What is it called by the people there?")]
    read = []
    for padding in ("left", "right"):
        inputs = tiny_llava.encode(questions, padding=padding)
        states, inside = tiny_llava.hidden_states(inputs, 3), Template.of(tiny_llava).content_mask(inputs)
        read.append((last_of_prompt(states, inputs.prompt_mask), states[0][inside[0]], states[1][inside[1]]))
    for left, right in zip(*read, strict=True):
        assert torch.allclose(left, right, atol=1e-5)


def test_the_content_is_that_of_the_image_if_there_is_one() -> None:
    tokens = batch([0, 1, 1, 0, 2], [0, 0, 0, 0, 2])
    found = Template(1, 1).content_mask(tokens)
    assert found[0].nonzero().flatten().tolist() == [1, 2]
    assert found[1].nonzero().flatten().tolist() == [1, 2], "the question without its template"


def test_a_kept_layer_is_that_layers_output_and_leaves_no_hook(tiny_llava: Backbone) -> None:
    inputs = tiny_llava.encode([Question("What is it?")])
    layer = KeptLayer(tiny_llava, 1)
    tiny_llava.hidden_states(inputs, 2)
    assert torch.equal(layer.states, tiny_llava.hidden_states(inputs, 1))
    layer.remove()
    layer.remove()
    with pytest.raises(AssertionError, match="no forward pass"):
        _ = layer.states
