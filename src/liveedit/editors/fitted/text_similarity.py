"""How similar two texts are: token by token, and by the numbers in them."""

from __future__ import annotations

import re
import zlib
from typing import Final

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from ...samples import plain_unicode

TOKENS: Final = 8
"""Tokens of a text that are compared: the longest ones after whitening, which are those of names."""

NUMBER_SLOTS: Final = 64
"""Length of the feature of numbers, in which each number has two slots: two numbers are rarely taken for each other."""

_WEIGHT_POWER: Final = 4
_SEPARATOR: Final = re.compile(r"(?<=\d)[,.'\u00a0\u202f](?=\d{3}(?!\d))")
"""What separates thousands: 1,000 is 1000."""


def main_tokens(whitened: Float[Tensor, "tokens width"]) -> tuple[Float[Tensor, "main width"], Float[Tensor, " main"]]:
    """The `TOKENS` longest tokens, each of length 1, and their weights, which add up to 1.

    A weight is the fourth power of a token's length. A shorter text is filled up with zeros of weight 0.
    """
    lengths, places = whitened.norm(dim=-1).topk(min(TOKENS, len(whitened)))
    rows, weights = whitened.new_zeros(TOKENS, whitened.shape[-1]), whitened.new_zeros(TOKENS)
    rows[: len(places)] = F.normalize(whitened[places], dim=-1)
    weights[: len(places)] = lengths**_WEIGHT_POWER / (lengths**_WEIGHT_POWER).sum().clamp(min=1e-12)
    return rows, weights


def token_similarity(
    cosines: Float[Tensor, "*pairs main main"],
    first: Float[Tensor, "*pairs main"],
    second: Float[Tensor, "*pairs main"],
) -> Float[Tensor, "*pairs"]:
    """How much of two texts is in the other one: 1 for the same tokens, 0 for none in common.

    Each token counts by the square of its cosine to the token of the other text that is most similar.
    cosines: of the tokens of the first text to those of the second. first, second: weights of their tokens.
    """
    near = cosines.clamp(min=0).square()
    return 0.5 * ((first * near.amax(-1)).sum(-1) + (second * near.amax(-2)).sum(-1))


def number_slots(text: str) -> Float[Tensor, " slots"]:
    """Which numbers a text has: 1 in the slots of each. Leading zeros and separators of thousands do not count."""
    slots = torch.zeros(NUMBER_SLOTS)
    for found in re.findall(r"\d+", _SEPARATOR.sub("", plain_unicode(text))):
        hashed = zlib.crc32(found.lstrip("0").encode())
        slots[[hashed % NUMBER_SLOTS, (hashed >> 16) % NUMBER_SLOTS]] = 1.0
    return slots


def has_numbers_of(query: Float[Tensor, "*pairs slots"], edit: Float[Tensor, "*pairs slots"]) -> Bool[Tensor, "*pairs"]:
    """Whether every number of the edit's question is in the query: a Renault 12 is no Renault 5."""
    return (query * edit).sum(-1) >= edit.sum(-1)
