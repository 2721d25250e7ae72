"""What is known of a KV cache: with which edits it was filled, and what was decided for its prompt.

A note on the cache itself, so that copies of the cache (`copy.deepcopy`) have it as well. A cache without a note was
filled by the unedited model.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any, Final

_NOTES: Final = "_liveedit_filled"
"""The attribute of a cache: the notes of each hook by its number."""

_numbers: Final = itertools.count(1)


def next_number() -> int:
    """A number that nothing else has in this process."""
    return next(_numbers)


@dataclass(frozen=True)
class Filled:
    """How a cache was filled.

    edits: the number of the edits that were active, 0 for none. decision: what a hook decided at prefill.
    """

    edits: int = 0
    decision: Any = None


def how_filled(cache: Any, hook: int) -> Filled:
    """How a cache was filled, as the hook of this number noted it."""
    return getattr(cache, _NOTES, {}).get(hook, Filled())


def note_filled(cache: Any, hook: int, how: Filled) -> None:
    """Note on a cache how it was filled."""
    if how.edits or hasattr(cache, _NOTES):
        setattr(cache, _NOTES, {**getattr(cache, _NOTES, {}), hook: how})
