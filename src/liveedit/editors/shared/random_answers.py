"""Answers made of random words: a model that is trained on them learns to copy any answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np


def words_of(tokenizer: Any) -> tuple[str, ...]:
    """What the tokenizer has a token of its own for, of letters alone and at least two of them."""
    special = set(tokenizer.all_special_ids)
    texts = tokenizer.batch_decode([[token] for token in range(len(tokenizer)) if token not in special])
    return tuple(sorted({text for text in texts if len(text) > 1 and text.strip().isalpha()}))


def random_answer(words: Sequence[str], rng: np.random.Generator, longest: int = 4) -> str:
    """One to `longest` random words, or parts of words, as one text: what no training edit answers."""
    while True:
        chosen = rng.integers(len(words), size=int(rng.integers(1, longest + 1))).tolist()
        text = "".join(words[int(index)] for index in chosen).strip()
        if text:
            return text
