"""The counterfactual model against a slow reference, and which models are taken for one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from liveedit.backbones import Backbone
from liveedit.editors.serac import Serac
from liveedit.editors.serac.counterfactual import Counterfactual, Rewrite
from liveedit.editors.shared.random_answers import random_answer, words_of
from liveedit.errors import ConfigError, InvalidInputError

REWRITES = [
    Rewrite("What color is the hat?", "red", "Which color does the hat have?"),
    Rewrite("Where does this creature live?", "deep well", "Please answer: In which place does this creature live?"),
]


@pytest.fixture
def model(random_backbone: Backbone) -> Counterfactual:
    torch.manual_seed(3)
    return Counterfactual.make(random_backbone, Serac.new_config(random_backbone, counterfactual_width=32)).eval()


def context_ids(backbone: Backbone, item: Rewrite) -> list[int]:
    tokenizer = backbone.tokenizer
    texts = (f" {item.prompt}", f" {item.answer}", f" {item.query}")
    prompt, answer, query = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts)
    start, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    return [start, *prompt, end, *answer, start, *query, end]


def test_it_predicts_each_token_as_a_model_that_reads_one_sequence_at_a_time(
    random_backbone: Backbone, model: Counterfactual
) -> None:
    answers = [model.answer_ids("red"), model.answer_ids("old stone bridge")]
    with torch.no_grad():
        found = model(REWRITES, answers)
        slow = []
        for item, answer in zip(REWRITES, answers, strict=True):
            context = context_ids(random_backbone, item)
            for place in range(len(answer)):
                ids = torch.tensor([[*context, *answer[:place]]])
                slow.append(model.model(input_ids=ids).logits[0, -1])
    assert found.shape == (sum(map(len, answers)), random_backbone.word_embeddings.num_embeddings)
    torch.testing.assert_close(found, torch.stack(slow), atol=1e-4, rtol=1e-4)


def test_it_answers_with_the_likeliest_token_each_time(random_backbone: Backbone, model: Counterfactual) -> None:
    expected = []
    for item in REWRITES:
        ids = context_ids(random_backbone, item)
        begun = len(ids)
        while len(ids) < begun + 5 and (len(ids) == begun or ids[-1] != model.end):
            with torch.no_grad():
                ids.append(int(model.model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
        expected.append(random_backbone.tokenizer.decode(ids[begun:], skip_special_tokens=True).strip())
    assert model.generate(REWRITES, 5) == expected


def test_too_long_a_text_is_refused(model: Counterfactual) -> None:
    long = Rewrite("What is this?", "red", "Please " * 3000)
    with pytest.raises(InvalidInputError, match="takes 2048 at most"):
        model.generate([long], 4)


def test_its_weights_are_kept_once_and_found_again(model: Counterfactual, random_backbone: Backbone) -> None:
    state = model.state_dict()
    assert len({value.data_ptr() for value in state.values()}) == len(state)
    torch.manual_seed(4)
    other = Counterfactual.make(random_backbone, Serac.new_config(random_backbone, counterfactual_width=32)).eval()
    answers = [model.answer_ids("red")]
    with torch.no_grad():
        assert not torch.equal(other(REWRITES[:1], answers), model(REWRITES[:1], answers))
        other.load_state_dict(state)
        assert torch.equal(other(REWRITES[:1], answers), model(REWRITES[:1], answers))


def test_random_answers_are_text_of_many_words_without_markers(random_backbone: Backbone) -> None:
    rng = np.random.default_rng(5)
    words = words_of(random_backbone.tokenizer)
    found = [random_answer(words, rng) for _ in range(200)]
    assert all(answer.strip() == answer and answer for answer in found)
    assert len({word for answer in found for word in answer.split()}) > 200
    assert not any(marker in answer for answer in found for marker in random_backbone.markers)


def saved_model(folder: Path, tokenizer: Any, vocabulary: int) -> str:
    torch.manual_seed(6)
    shape = LlamaConfig(
        vocab_size=vocabulary, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    LlamaForCausalLM(shape).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def test_a_named_model_with_the_same_vocabulary_is_taken(random_backbone: Backbone, tmp_path: Path) -> None:
    width = random_backbone.word_embeddings.num_embeddings
    name = saved_model(tmp_path / "same", random_backbone.tokenizer, width - 1)
    model = Counterfactual.make(random_backbone, Serac.new_config(random_backbone, counterfactual=name)).eval()
    assert not model.model.config.tie_word_embeddings
    with torch.no_grad():
        logits = model(REWRITES, [model.answer_ids("red")] * 2)
    assert logits.shape[1] == width
    assert int(logits.argmax(-1).max()) < width - 1, "a token that the model does not have is never the likeliest"


def test_a_named_model_with_another_vocabulary_is_refused(random_backbone: Backbone, tmp_path: Path) -> None:
    from liveedit.pretraining.tokenizer import build_tokenizer

    name = saved_model(tmp_path / "other", build_tokenizer(("zebra",)), 1200)
    with pytest.raises(ConfigError, match="another vocabulary than tiny-random"):
        Counterfactual.make(random_backbone, Serac.new_config(random_backbone, counterfactual=name))
    with pytest.raises(ConfigError, match="could not be loaded"):
        Counterfactual.make(random_backbone, Serac.new_config(random_backbone, counterfactual=str(tmp_path / "none")))
