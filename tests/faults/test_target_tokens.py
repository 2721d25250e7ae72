"""The tokens of an answer are those that it has after its prompt: its leading space, and no start token."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from liveedit.backbones import Backbone
from liveedit.samples import Question

WORDS = ("▁red", "▁is", "▁The", "▁hat", "red")


def test_they_are_those_of_the_whole_text(family_backbone: Backbone, asked: list[Question]) -> None:
    for question, answer in zip(asked, ("red", "a deep well", "42, or so"), strict=True):
        text = family_backbone.prompt_text(question)
        whole = f"{text}{'' if text[-1].isspace() else ' '}{answer}"
        (tokens,), _ = family_backbone.process([whole], [question.image] if question.image is not None else [])
        inputs = family_backbone.encode([question], [answer])
        assert inputs.input_ids[0].tolist() == [*tokens, family_backbone.end_token_id]
        assert family_backbone.answer_tokens([question], [answer]) == [inputs.targets.tolist()]
        assert family_backbone.tokenizer.bos_token_id not in inputs.targets[:-1].tolist()


def metaspace_tokenizer(scheme: str) -> PreTrainedTokenizerFast:
    """A tokenizer like SentencePiece's: spaces are ▁, and by its scheme one is put before every text."""
    merges = list(dict.fromkeys((word[:end], word[end]) for word in WORDS for end in range(1, len(word))))
    letters = [chr(code) for code in range(33, 127)]
    tokens = dict.fromkeys(["<unk>", "<s>", "</s>", "▁", "\n", *letters, *("".join(pair) for pair in merges)])
    backend = Tokenizer(models.BPE(vocab={token: place for place, token in enumerate(tokens)}, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    backend.decoder = decoders.Metaspace(prepend_scheme=scheme, split=False)
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<unk>", unk_token="<unk>"
    )


@pytest.fixture(params=["byte level", "always", "never"])
def encoding(request: pytest.FixtureRequest, language_model: Backbone) -> Iterator[Backbone]:
    """A language model with a tokenizer of each kind; it is only encoded with."""
    own: Any = language_model.tokenizer
    if request.param != "byte level":
        language_model.tokenizer = metaspace_tokenizer(request.param)
    yield language_model
    language_model.tokenizer = own


@pytest.mark.parametrize("prompt", ["The hat is", "The hat is:", "The hat is ", "The hat is\n", "The hat is  "])
@pytest.mark.parametrize("answer", ["red", "is red", "42"])
def test_a_prompt_that_ends_in_a_space_gets_no_second_one(encoding: Backbone, prompt: str, answer: str) -> None:
    """As in data whose prompts end in a space: the tokenizer would merge it with the answer."""
    inputs = encoding.encode([Question(prompt)], [answer])
    gap = "" if prompt[-1].isspace() else " "
    assert encoding.decode(inputs.input_ids[0][1:-1].tolist()) == f"{prompt}{gap}{answer}"
    assert encoding.decode(inputs.targets[:-1].tolist()).strip() == answer
    assert encoding.tokenizer.bos_token_id not in inputs.targets.tolist()
