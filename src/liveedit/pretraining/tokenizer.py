"""The tokenizer of the built-in backbones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AddedToken, PreTrainedTokenizerFast

from ..datasets.world import questions

_SPECIAL = ("<pad>", "<s>", "</s>")
_COMMON = ("Say", "the", "a", "is")


def build_tokenizer(
    template_words: Sequence[str] = ("Q", "A"), names_image_token: bool = True
) -> PreTrainedTokenizerFast:
    """The tokenizer of the world's words, those of a prompt template, and the image's token."""
    words = [*questions.vocabulary(), *template_words, *_COMMON]
    named = {"image_token": "<image>"} if names_image_token else {}
    tokenizer = tokenizer_of(words, ("<image>",), 2048, extra_special_tokens=named)
    tokenizer.add_tokens([AddedToken("<image>", normalized=False, special=True)], special_tokens=True)
    return tokenizer


def tokenizer_of(words: Sequence[str], further: Sequence[str], longest: int, **options: Any) -> PreTrainedTokenizerFast:
    """Longest match over these words, syllables among them; every byte is a fallback.

    A byte-level pre-tokenizer turns any text into the 256 byte letters first, so nothing is ever unknown. `further` are
    special tokens besides the usual three, `longest` is the longest text in tokens, `options` are the tokenizer's own.
    """
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    known = dict.fromkeys([*_SPECIAL, *further, *letters, *(f"Ġ{word}" for word in words), *words, *"0123456789"])
    vocabulary = {token: index for index, token in enumerate(known)}
    backend = Tokenizer(
        models.WordPiece(vocabulary, unk_token="<pad>", continuing_subword_prefix="", max_input_chars_per_word=100_000)
    )
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", vocabulary["<s>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        clean_up_tokenization_spaces=False,
        model_max_length=longest,
        padding_side="left",
        **options,
    )
