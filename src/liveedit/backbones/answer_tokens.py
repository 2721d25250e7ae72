"""The tokens of an answer as they follow its prompt."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

TokenIds = Callable[[list[str]], list[list[int]]]
"""The token ids of each text."""

_BREAK: Final = "\n"
"""Text that no tokenizer merges with the words after it."""


def following_tokens(prompt: str, answer: str, tokenize: TokenIds, plain: TokenIds) -> list[int]:
    """Token ids of an answer after a prompt, as in the whole text of both; none for an empty answer.

    tokenize: as the model reads a text, with its start token. plain: without special tokens.
    """
    if not answer.strip():
        return []
    ending = answer.strip() if prompt[-1:].isspace() else f" {answer.strip()}"
    before, whole = tokenize([prompt, f"{prompt}{ending}"])
    if whole[: len(before)] != before:
        # The tokenizer merged prompt and answer, but generated text starts after the prompt. The answer is tokenized
        # after a line break: alone, it would get the space that some tokenizers put before every text.
        before, whole = plain([_BREAK, f"{_BREAK}{ending}"])
    return whole[len(before) :]
