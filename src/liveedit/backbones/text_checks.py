"""Texts that a model would not read as text: image markers, and control tokens of its tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from ..errors import InvalidInputError

_IMAGE_WORDS: Final = ("image", "img", "vision", "video", "<row_")


def image_markers(tokenizer: Any, image_token_id: int | None) -> frozenset[str]:
    """The special tokens of a tokenizer that stand for images."""
    special = (token.content for token in tokenizer.added_tokens_decoder.values() if token.special)
    found = {token for token in special if any(part in token.lower() for part in _IMAGE_WORDS)}
    if image_token_id is not None and image_token_id < len(tokenizer):
        found.add(tokenizer.convert_ids_to_tokens(image_token_id))
    return frozenset(found)


def check_markers(texts: Sequence[str], markers: frozenset[str], model: str) -> None:
    """Raise `InvalidInputError` for a text with an image marker of this model."""
    for text in texts:
        for marker in markers:
            if marker in text:
                raise InvalidInputError(
                    f"The text {text!r} contains {marker}, which stands for an image in {model}. Remove it: "
                    "a question's image is placed automatically."
                )


def check_is_text(name: str, text: object) -> None:
    """Raise `InvalidInputError` unless this is a string. name: what the text is, for the message."""
    if not isinstance(text, str):
        received = "None" if text is None else f"a {type(text).__name__}"
        raise InvalidInputError(
            f"The {name} is {received}. Give its text (str). In `ask` and `edit`, the image comes before it."
        )


def check_control_tokens(tokenizer: Any, name: str, text: str, ids: Sequence[int]) -> None:
    """Raise `InvalidInputError` if a text of an edit is read as a control token anywhere.

    Control tokens are the tokenizer's special tokens. That of unknown characters counts only if the text spells it.

    name: which text of the edit it is, for the message. ids: the tokens of the text.
    """
    control = {place for place, token in tokenizer.added_tokens_decoder.items() if token.special}
    control.update(tokenizer.all_special_ids)
    if tokenizer.unk_token is not None and tokenizer.unk_token not in text:
        control.discard(tokenizer.unk_token_id)
    found = next((token for token in ids if token in control), None)
    if found is not None:
        raise InvalidInputError(
            f"The {name} {text!r} contains {tokenizer.convert_ids_to_tokens(found)!r}, which the tokenizer reads as a "
            "control token and not as text. Remove it: no model could learn the edit as it is written."
        )
