"""Asking probes, scored in two ways: by free generation and teacher-forced."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from ..answering import Answering
from ..answers import Answer
from ..backbones import Backbone, TokenBatch
from ..samples import Probe, Question

Tokens = tuple[int, ...]


def ask_freely(
    answering: Answering, probes: Sequence[Probe], max_new_tokens: int, batch: int, count: Callable[[int], None]
) -> list[Answer]:
    """Greedy answers through `generate()`. `count` is called with the number of further probes that are done."""
    found: list[Answer] = []
    questions = [probe.question for probe in probes]
    for answer in answering.ask_all(questions, max_new_tokens, batch=batch):
        found.append(answer)
        count(1)
    return found


def choose_along(
    backbone: Backbone,
    probes: Sequence[Probe],
    answers: Sequence[str],
    free: Sequence[Answer],
    batch: int,
    count: Callable[[int], None],
) -> list[tuple[Tokens, Tokens]]:
    """Per probe: the tokens of its expected answer, and those that the model chooses in their place (teacher-forced).

    The end-of-sequence token after an answer is not counted, as in the field; free generation counts it. If the free
    answer is the expected one token by token, each token was chosen after the ones before it: teacher forcing would
    ask the same again and is skipped.
    """
    expected = [
        _counted(tokens) for tokens in backbone.answer_tokens([probe.question for probe in probes], list(answers))
    ]
    generated = [answer.tokens and answer.tokens[: len(tokens)] for answer, tokens in zip(free, expected, strict=True)]
    different = [place for place, tokens in enumerate(expected) if generated[place] != tokens]
    found = [(tokens, tokens) for tokens in expected]
    count(len(probes) - len(different))
    for start in range(0, len(different), batch):
        part = different[start : start + batch]
        questions = [probes[place].question for place in part]
        forced = _forced(backbone, questions, [str(answers[place]) for place in part])
        for place, pair in zip(part, forced, strict=True):
            found[place] = pair
        count(len(part))
    return found


@torch.inference_mode()
def _forced(backbone: Backbone, questions: Sequence[Question], answers: Sequence[str]) -> list[tuple[Tokens, Tokens]]:
    inputs = backbone.encode(questions, answers)
    chosen = backbone.logits(inputs).argmax(-1)
    return [_along(inputs, chosen, row) for row in range(len(questions))]


def was_cut(backbone: Backbone, answer: Answer) -> bool:
    """Whether an answer was cut at the length limit. Not known, and False, if a substitute model answered."""
    if answer.tokens is None or not backbone.end_token_ids.isdisjoint(answer.tokens):
        return False
    return backbone.next_turn is None or backbone.next_turn not in backbone.decode(answer.tokens)


def token_accuracy(chosen: Sequence[int], expected: Sequence[int]) -> float:
    """Share of equal tokens, in percent."""
    return 100 * sum(a == b for a, b in zip(chosen, expected, strict=True)) / len(expected)


def _along(inputs: TokenBatch, chosen: torch.Tensor, row: int) -> tuple[Tokens, Tokens]:
    """The answer's tokens of a row, and the tokens chosen at the positions that predict them."""
    positions = inputs.answer_mask[row].nonzero().flatten()
    if len(positions) > 1:
        positions = positions[:-1]
    return tuple(inputs.input_ids[row, positions].tolist()), tuple(chosen[row, positions - 1].tolist())


def _counted(tokens: Sequence[int]) -> Tokens:
    """The tokens of an answer without its end-of-sequence token; of an empty answer that token."""
    return tuple(tokens[:-1] if len(tokens) > 1 else tokens)
