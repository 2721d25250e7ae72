"""The positions of a model: how long a question and its answer may be together."""

from __future__ import annotations

from ..errors import InvalidInputError


def check_length(model: str, positions: int | None, tokens: int) -> None:
    """Raise `InvalidInputError` for more tokens than positions. None: the model states no limit."""
    if positions is not None and tokens > positions:
        raise InvalidInputError(
            f"Question and answer take {tokens} tokens, and {model} takes {positions} at most. Shorten them."
        )


def answer_room(positions: int | None, question: int, wanted: int) -> int:
    """How many of `wanted` answer tokens have a position after a question of this many tokens.

    Raises `InvalidInputError` if none has.
    """
    if positions is None or question + wanted <= positions:
        return wanted
    if question >= positions:
        raise InvalidInputError(
            f"The question takes {question} tokens and the model has {positions} positions, so none is left for an "
            "answer. Shorten the question."
        )
    return positions - question
