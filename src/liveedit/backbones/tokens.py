"""A batch of questions as tokens. Every token has a role: prompt, image, answer, soft prompt or padding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from enum import IntEnum
from typing import Final, Protocol, Self, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..errors import InvalidInputError
from ..samples import Question

UNKNOWN_TOKEN: Final = -1
"""In place of a token id that is not known: generated text that reached the decoder as embeddings."""


class TokenRole(IntEnum):
    """What a token stands for."""

    PADDING = -1
    PROMPT = 0
    """Text before the answer. The tokens of the chat template are part of it."""
    IMAGE = 1
    ANSWER = 2
    """The answer, and the end-of-sequence token that follows it."""
    PREFIX = 3
    """A soft prompt."""


@dataclass(frozen=True)
class TokenBatch:
    """A batch of questions, with or without answers.

    roles: the `TokenRole` of each token. All masks are computed from it.
    input_ids: token ids. `UNKNOWN_TOKEN` marks ids that are not known.
    positions: position ids, for families whose positions are not a plain count; None if the decoder counts.
    extras: further inputs of the model, by the model's own names: pixels, image sizes, token types.
    prepared: how each question reaches the model; empty if no prompt transform is set.
    """

    roles: Int[Tensor, "batch tokens"]
    input_ids: Int[Tensor, "batch tokens"]
    _: KW_ONLY
    positions: Int[Tensor, "axes batch tokens"] | None = None
    extras: Mapping[str, Tensor] = field(default_factory=dict)
    prepared: tuple[PreparedQuestion, ...] = ()

    @property
    def image_mask(self) -> Bool[Tensor, "batch tokens"]:
        """Which tokens belong to an image."""
        return self.roles == TokenRole.IMAGE

    @property
    def prompt_mask(self) -> Bool[Tensor, "batch tokens"]:
        """Which tokens are text before the answer."""
        return self.roles == TokenRole.PROMPT

    @property
    def answer_mask(self) -> Bool[Tensor, "batch tokens"]:
        """Which tokens belong to the answer."""
        return self.roles == TokenRole.ANSWER

    @property
    def prefix_mask(self) -> Bool[Tensor, "batch tokens"]:
        """Which tokens belong to a soft prompt."""
        return self.roles == TokenRole.PREFIX

    @property
    def text_mask(self) -> Bool[Tensor, "batch tokens"]:
        """Which tokens are prompt or answer."""
        return self.prompt_mask | self.answer_mask

    @property
    def attention_mask(self) -> Int[Tensor, "batch tokens"]:
        """1 at tokens, 0 at padding, as models take it."""
        return (self.roles != TokenRole.PADDING).long()

    @property
    def predicting(self) -> Bool[Tensor, "batch tokens"]:
        """The position before each answer token: its logits predict that token."""
        return before_each(self.answer_mask)

    @property
    def has_image(self) -> Bool[Tensor, " batch"]:
        """Which rows have an image."""
        return self.image_mask.any(1)

    @property
    def targets(self) -> Int[Tensor, " answer_tokens"]:
        """Ids of all answer tokens, row by row."""
        return self.input_ids[self.answer_mask]

    @property
    def pixel_values(self) -> Tensor | None:
        """Pixels in the shape of the family's image processor; None if no row has an image."""
        return self.extras.get("pixel_values")

    def check_generation(self) -> None:
        """Raise `InvalidInputError` unless these are questions alone, padded on the left, so that answers follow."""
        if bool(self.answer_mask.any()):
            raise InvalidInputError("Questions with answers were given to generate(). Encode the questions alone.")
        if bool((self.roles[:, -1] == TokenRole.PADDING).any()):
            raise InvalidInputError(
                "A right-padded batch was given to generate(): padding would stand between a question and its answer. "
                "Encode the questions with padding='left'."
            )

    def model_inputs(self) -> dict[str, Tensor]:
        """Keyword arguments of the model's own forward and generate."""
        return {"input_ids": self.input_ids, "attention_mask": self.attention_mask, **self.extras}

    def to(self, device: torch.device) -> Self:
        """The same batch on another device."""
        moved = {name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **moved, extras={name: value.to(device) for name, value in self.extras.items()})

    def continued(self, sequences: int, length: int) -> TokenBatch:
        """Each row `sequences` times in a row, followed by generated tokens up to `length`.

        Generated tokens are answer, and their ids are unknown. Extras, positions and prepared questions are dropped.
        """
        roles, ids = (part.repeat_interleave(sequences, 0) for part in (self.roles, self.input_ids))
        shape = len(roles), length - roles.shape[1]
        return TokenBatch(
            roles=torch.cat([roles, roles.new_full(shape, TokenRole.ANSWER)], 1),
            input_ids=torch.cat([ids, ids.new_full(shape, UNKNOWN_TOKEN)], 1),
        )

    def __len__(self) -> int:
        return len(self.roles)


@dataclass(frozen=True)
class HiddenTokens(TokenBatch):
    """A batch of tokens with their hidden states at one layer.

    hidden_states: the output of that layer.
    word_embeddings: the input embeddings of the same tokens; None if nothing reads them.
    prompts: the text of each row's prompt; empty if nothing reads it.
    """

    _: KW_ONLY
    hidden_states: Float[Tensor, "batch tokens width"]
    word_embeddings: Float[Tensor, "batch tokens width"] | None = None
    prompts: tuple[str, ...] = ()

    @property
    def embeddings(self) -> Float[Tensor, "batch tokens width"]:
        """`word_embeddings`. Raises `InvalidInputError` if there are none."""
        if self.word_embeddings is None:
            raise InvalidInputError(
                "Tokens without word embeddings were given. Give HiddenTokens with word_embeddings."
            )
        return self.word_embeddings

    @classmethod
    def of(
        cls,
        tokens: TokenBatch,
        hidden_states: Float[Tensor, "batch tokens width"],
        word_embeddings: Float[Tensor, "batch tokens width"] | None = None,
        prompts: Sequence[str] = (),
    ) -> HiddenTokens:
        """These tokens with their hidden states, on the device of the hidden states."""
        device = hidden_states.device
        return HiddenTokens(
            roles=tokens.roles.to(device),
            input_ids=tokens.input_ids.to(device),
            positions=None if tokens.positions is None else tokens.positions.to(device),
            hidden_states=hidden_states,
            word_embeddings=None if word_embeddings is None else word_embeddings.to(device),
            prompts=tuple(prompts),
        )


@runtime_checkable
class SubstituteModel(Protocol):
    """Another model, which answers in place of the backbone."""

    def generate(self, questions: Sequence[Question], max_new_tokens: int) -> list[str]:
        """Greedy answers."""
        ...

    def logits(self, questions: Sequence[Question], inputs: TokenBatch, rows: Sequence[int]) -> Tensor:
        """(rows, tokens, vocabulary) logits of these rows of `inputs`; only those at `inputs.predicting` are used."""
        ...


@dataclass(frozen=True)
class PreparedQuestion:
    """How one question reaches the model.

    question: what the model is asked. It has an image exactly if the original question has one.
    prefix: (tokens, width) embeddings before the first token.
    substitute: the model that answers instead of the backbone.
    """

    question: Question
    prefix: Tensor | None = None
    substitute: SubstituteModel | None = None

    @property
    def prefix_tokens(self) -> int:
        """Number of tokens of the prefix."""
        return 0 if self.prefix is None else len(self.prefix)


def before_each(mask: Bool[Tensor, "batch tokens"]) -> Bool[Tensor, "batch tokens"]:
    """The positions one before those of a mask."""
    return torch.cat([mask[:, 1:], torch.zeros_like(mask[:, :1])], 1)


def pad(rows: Sequence[Sequence[int]], fill: int, side: str) -> Int[Tensor, "rows longest"]:
    """Integer rows of different lengths as one tensor, filled on the "left" or "right"."""
    longest = max(len(row) for row in rows)
    fills = [[fill] * (longest - len(row)) for row in rows]
    padded = [[*gap, *row] if side == "left" else [*row, *gap] for row, gap in zip(rows, fills, strict=True)]
    return torch.tensor(padded)


def batch_rows(
    prompts: Sequence[list[int]],
    answers: Sequence[list[int]],
    image_token_id: int | None,
    prefix_id: int,
    prepared: Sequence[PreparedQuestion] = (),
) -> list[tuple[list[int], list[TokenRole]]]:
    """Of each prompt with its answer, the token ids and their `TokenRole`s, not padded.

    prefix_id: in place of the tokens of a soft prompt. prepared: how each prompt reaches the model, if transformed.
    """
    prefixes = [item.prefix_tokens for item in prepared] or [0] * len(prompts)
    return [
        (
            [prefix_id] * prefix + prompt + answer,
            [TokenRole.PREFIX] * prefix
            + [TokenRole.IMAGE if token == image_token_id else TokenRole.PROMPT for token in prompt]
            + [TokenRole.ANSWER] * len(answer),
        )
        for prefix, prompt, answer in zip(prefixes, prompts, answers, strict=True)
    ]
