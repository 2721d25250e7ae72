"""What a model answers, which edits fired for it, and when two answers are the same.

Everything that compares answers uses `same_answer`: receipts, `must_take`, checks, evidence, the demo and the bench.
This module needs no torch, so that commands which only read stored edits start fast.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from .samples import plain_unicode

FIRING_THRESHOLD: Final = 0.01
"""An edit *fired* for an answer if its weight is at least this. Smaller weights, which every expert that passes hard
routing has, are not shown, not counted and no collision."""

_ARTICLES: Final = frozenset({"a", "an", "the"})
_EDGES: Final = ".,;:!?\"'`()[]{}«»¿¡、。"
_GROUPED_NUMBER: Final = re.compile(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?!\d)")
_SAME_CHARACTER: Final = str.maketrans(
    {"\ufeff": "", "\u200b": ""}
    | dict.fromkeys("‘’‚‛′", "'")
    | dict.fromkeys("“”„‟″", '"')
    | dict.fromkeys("‐‑‒–—―−", "-")
)


@dataclass(frozen=True)
class Fired:
    """An edit that took part in an answer.

    weight: its share of the residual, 0 to 1. margin: by how much its similarity exceeded the threshold that would
    have kept it out, in the units of the editor's router.
    """

    edit_id: str
    weight: float
    margin: float


def above_threshold(fired: Sequence[Fired] | None) -> tuple[Fired, ...]:
    """The edits whose weight is at least `FIRING_THRESHOLD`."""
    return tuple(one for one in fired or () if one.weight >= FIRING_THRESHOLD)


@dataclass(frozen=True)
class Answer:
    """A greedy answer.

    fired: every edit that took part, whatever its weight (`above_threshold` selects those that fired), or None if
    the editor does not report it. tokens: the generated token ids, padding after the end included, or None if a
    substitute model answered. withheld: the edits that fired for an edited answer in doubt, in whose place this is the
    unedited model's answer.
    """

    text: str
    fired: tuple[Fired, ...] | None = ()
    tokens: tuple[int, ...] | None = None
    withheld: tuple[Fired, ...] = ()

    @property
    def found(self) -> tuple[Fired, ...] | None:
        """The edits that the question found: those that took part, or that fired for an answer which was withheld."""
        return None if self.fired is None else (*self.fired, *self.withheld)

    def weight_of(self, edit_id: str) -> float | None:
        """The weight with which the question found an edit, 0 if it did not; None if the editor does not report it."""
        return None if self.found is None else sum(one.weight for one in self.found if one.edit_id == edit_id)

    def margin_of(self, edit_id: str) -> float | None:
        """The margin of an edit that the question found; None if it did not, or if that is not known."""
        return next((one.margin for one in self.found or () if one.edit_id == edit_id), None)

    def to_dict(self) -> dict[str, Any]:
        """The text, the fired edits and the withheld ones, for JSON."""
        return {
            "text": self.text,
            "fired": [vars(one) for one in self.fired or ()],
            "withheld": [vars(one) for one in self.withheld],
        }


def same_answer(answer: str, expected: str) -> bool:
    """Whether two answers are equal after `normalize_answer`."""
    return normalize_answer(answer) == normalize_answer(expected)


def is_broken(answer: str, acceptable: Iterable[str]) -> bool:
    """Whether an answer is none of the acceptable ones, compared as in `same_answer`.

    acceptable: the edit's answer, the unedited model's answer to the same question, and other labels of the case. A
    broken answer is worse than an old wrong one: often it mixes two answers, or is no word at all.
    """
    given = normalize_answer(answer)
    return all(given != normalize_answer(one) for one in acceptable)


def normalize_answer(text: str) -> str:
    """Return the form in which two answers are compared.

    1. Unicode NFKC, but superscripts and fractions stay (`plain_unicode`).
       Curly quotes, dashes and the minus sign become the ASCII ones; invisible marks go.
    2. Lower case (Unicode case folding), white space folded, thousands separators removed (1,000 is 1000).
    3. From each word, quotes, brackets and sentence marks are trimmed at both ends only. What is inside a
       word or carries meaning stays: 3.5, .5, -5, 50%, $5, #1, C++, U.S, don't. A word of nothing but such
       marks is dropped; other words without a letter or digit (:-), ->) stay as they are.
    4. "a", "an" and "the" are dropped, except as the last word, which is no article: "vitamin A", option "A".

    An answer that would vanish (such as "?") is compared as it stands after step 2.

    Source: the SQuAD script's `normalize_answer` (Rajpurkar et al. 2016) and the VQA script's
    `processPunctuation` and `processDigitArticle` (Antol et al. 2015). Deviation: SQuAD removes every
    punctuation mark, so that 3.5 equals 35 and C++ equals C, and VQA reads "none" as 0 and "two" as 2; an
    edit that changes exactly such a thing could then not be measured.
    """
    return " ".join(answer_words(text, drop_articles=True))


def answer_words(text: str, *, drop_articles: bool) -> list[str]:
    """The normalised words of an answer, with or without its articles; see `normalize_answer`."""
    folded = _fold(text).split()
    words = [word for word in map(_trim, folded) if word]
    if drop_articles:
        words = [word for word in words[:-1] if word not in _ARTICLES] + words[-1:]
    return words or folded


def _fold(text: str) -> str:
    plain = plain_unicode(text.translate(_SAME_CHARACTER))
    return _GROUPED_NUMBER.sub(lambda number: number[0].replace(",", ""), plain.casefold())


def _trim(word: str) -> str:
    """The word without quotes, brackets and sentence marks at its ends."""
    start = word.lstrip(_EDGES)
    core = start.rstrip(_EDGES)
    if not core:
        return ""
    if core.isascii() and not any(map(str.isalnum, core)):
        return word
    lead = word[: len(word) - len(start)]
    decimal_point = core[0].isdigit() and lead.endswith(".") and not lead.endswith("..")
    return f".{core}" if decimal_point else core
