"""The tokenizer of the built-in backbones."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AddedToken, PreTrainedTokenizerFast

from ...datasets.world import questions

_SPECIAL = ("<pad>", "<s>", "</s>", "<image>")
_COMMON = ("Say", "the", "a", "is")


def build_tokenizer(
    template_words: Sequence[str] = ("Q", "A"), names_image_token: bool = True
) -> PreTrainedTokenizerFast:
    """Longest match over the world's words, those of a prompt template, and syllables; every byte is a fallback.

    A byte-level pre-tokenizer turns any text into the 256 byte letters first, so nothing is ever unknown.
    """
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*questions.vocabulary(), *template_words, *_COMMON]
    known = dict.fromkeys([*_SPECIAL, *letters, *(f"Ġ{word}" for word in words), *words, *"0123456789"])
    vocabulary = {token: index for index, token in enumerate(known)}
    backend = Tokenizer(
        models.WordPiece(vocabulary, unk_token="<pad>", continuing_subword_prefix="", max_input_chars_per_word=100_000)
    )
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", vocabulary["<s>"])]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        extra_special_tokens={"image_token": "<image>"} if names_image_token else {},
        clean_up_tokenization_spaces=False,
        model_max_length=2048,
        padding_side="left",
    )
    tokenizer.add_tokens([AddedToken("<image>", normalized=False, special=True)], special_tokens=True)
    return tokenizer
