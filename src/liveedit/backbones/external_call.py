"""A call of the model by others: what its arguments say about where the question ends and the answer begins."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Self

import torch
from jaxtyping import Bool
from torch import Tensor

from ..errors import InvalidInputError

_UNLABELLED: Final = -100
"""The label of tokens that transformers leaves out of the loss."""

WHERE_IS_THE_ANSWER: Final = (
    "The model was called while edits are active, and the call does not say where an answer begins: all of its text "
    "counts as the question that edits are found by. Give labels (-100 at the question), or logits_to_keep (one more "
    "than the tokens of the answer), or ask through EditedModel or Backbone."
)
"""The warning for a call whose text may hold an answer."""


@dataclass(frozen=True)
class ExternalCall:
    """The arguments of a call of the model; all None if a part of it was called by itself.

    ids, mask: token ids and attention mask. labels: (batch, tokens), -100 at tokens that are not learned.
    logits_to_keep: how many of the last positions have their logits returned, or which; None or 0: all. use_cache:
    whether the model returns a cache. fills_cache: whether it was given one.
    """

    ids: Tensor | None = None
    mask: Any = None
    labels: Tensor | None = None
    logits_to_keep: int | Tensor | None = None
    use_cache: bool | None = None
    fills_cache: bool | None = None

    @classmethod
    def of(cls, arguments: tuple[Any, ...], keywords: Mapping[str, Any]) -> Self:
        """The call with these arguments. Token ids may come by position."""
        given = [value for value in arguments if isinstance(value, Tensor) and not value.is_floating_point()]
        return cls(
            ids=keywords.get("input_ids", given[0] if given else None),
            mask=keywords.get("attention_mask"),
            labels=keywords.get("labels"),
            logits_to_keep=keywords.get("logits_to_keep"),
            use_cache=keywords.get("use_cache"),
            fills_cache=keywords.get("past_key_values") is not None,
        )

    def reaching(self, ids: Tensor | None, keywords: Mapping[str, Any]) -> Self:
        """What is known when the decoder is reached, which was given `keywords` and reads these token ids.

        Some models make a cache on the way if they were given none: what the model itself was given counts.
        """
        mask = keywords.get("attention_mask") if self.mask is None else self.mask
        with_cache = keywords.get("past_key_values") is not None
        return replace(
            self, ids=ids, mask=mask, fills_cache=with_cache if self.fills_cache is None else self.fills_cache
        )

    def answer_mask(self, present: Bool[Tensor, "batch tokens"]) -> Bool[Tensor, "batch tokens"] | None:
        """The tokens of the answer; None if the arguments do not say where it begins. present: false at padding.

        - `labels`: the first labelled token and all that follow. Raises `InvalidInputError` if no question is left.
        - `logits_to_keep`: those after the first position whose logits are returned. A question alone returns one.
        - An empty cache, as generate() gives: there is no answer yet.

        One returned position without a cache says nothing: generate() calls so for every token that it generates.
        """
        if self.labels is not None:
            return self._labelled(self.labels, present)
        last = present.shape[1] - 1
        first = self._first_returned(last + 1)
        if first is not None and not (first == last and self.use_cache is False):
            return present & (torch.arange(last + 1, device=present.device) > first)
        return torch.zeros_like(present) if self.fills_cache else None

    def continues_answer(self) -> bool:
        """Whether the tokens after a filled cache were generated: one, or the candidates of assisted generation.

        The logits of all candidates are returned, those of a piece of a prompt are not.
        """
        length = 1 if self.ids is None else self.ids.shape[1]
        return length == 1 or self._first_returned(length) == 0

    def _labelled(self, labels: Tensor, present: Tensor) -> Tensor:
        if labels.shape != present.shape:
            raise InvalidInputError(
                f"Labels of shape {tuple(labels.shape)} were given for tokens of shape {tuple(present.shape)}. "
                "Give one label for each token."
            )
        labelled = present & (labels.to(present.device) != _UNLABELLED)
        answer = present & (labelled.cumsum(1) > 0)
        if not bool((present & ~answer).any(1).all()):
            raise InvalidInputError(
                "Labels were given for every token of a text while edits are active: no question is left to find edits "
                f"by. Set the labels of the question to {_UNLABELLED}."
            )
        return answer

    def _first_returned(self, length: int) -> int | None:
        """The first position whose logits are returned; None if all are."""
        kept = self.logits_to_keep
        if isinstance(kept, Tensor):
            return int(kept.min()) if kept.numel() else None
        return length - kept if kept else None
