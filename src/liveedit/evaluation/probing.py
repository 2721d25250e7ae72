"""Asking probes: batches of questions, scored teacher-forced and by free generation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from ..answers import Fired
from ..backbones import Backbone, TokenBatch
from ..editors.base import Editor
from ..samples import Probe, Question

Progress = Callable[[int], None]
"""Called with how many more probes are done."""


Tokens = tuple[int, ...]


@dataclass(frozen=True)
class Reply:
    """What a model said to one probe.

    `text` is its free answer. `forced` are the tokens it would choose, one by one, along the expected answer.
    """

    text: str
    forced: Tokens


@dataclass(frozen=True)
class FreeAnswer:
    """A greedy answer, its tokens where the model itself gave it, and the edits that fired where the editor tells."""

    text: str
    tokens: Tokens | None
    fired: tuple[Fired, ...] | None


def ask_freely(
    backbone: Backbone,
    probes: Sequence[Probe],
    max_new_tokens: int,
    batch: int,
    editor: Editor | None,
    progress: Progress,
) -> list[FreeAnswer]:
    """Greedy answers through `generate()`."""
    found: list[FreeAnswer] = []
    for part in _parts(probes, batch):
        inputs = backbone.encode([probe.question for probe in part], padding="left")
        answers = backbone.generate_tokens(inputs, max_new_tokens)
        fired = editor.fired() if editor is not None else None
        unfired = None if fired is None else ()
        rows = zip(answers, fired or [unfired] * len(part), strict=True)
        found += [FreeAnswer(text, tokens, edits) for (text, tokens), edits in rows]
        progress(len(part))
    return found


def choose_along(
    backbone: Backbone,
    probes: Sequence[Probe],
    answers: Sequence[str],
    free: Sequence[FreeAnswer],
    batch: int,
    progress: Progress,
) -> list[tuple[Tokens, Tokens]]:
    """Per probe: the tokens of its expected answer, and those the model chooses in their place (teacher-forced).

    The end-of-sequence token behind an answer is not counted, as in the field; free generation counts it. Where the
    free answer is the expected one token by token, each of them was chosen behind the ones before it: teacher forcing
    would ask the same once more, and is left out.
    """
    wanted = [
        _counted(tokens) for tokens in backbone.answer_tokens([probe.question for probe in probes], list(answers))
    ]
    said = [answer.tokens and answer.tokens[: len(tokens)] for answer, tokens in zip(free, wanted, strict=True)]
    open_places = [place for place, tokens in enumerate(wanted) if said[place] != tokens]
    found = [(tokens, tokens) for tokens in wanted]
    progress(len(probes) - len(open_places))
    for part in _parts(open_places, batch):
        questions = [probes[place].question for place in part]
        forced = _forced(backbone, questions, [str(answers[place]) for place in part])
        for place, pair in zip(part, forced, strict=True):
            found[place] = pair
        progress(len(part))
    return found


@torch.inference_mode()
def _forced(backbone: Backbone, questions: Sequence[Question], answers: Sequence[str]) -> list[tuple[Tokens, Tokens]]:
    inputs = backbone.encode(questions, answers)
    chosen = backbone.logits(inputs).argmax(-1)
    return [_along(inputs, chosen, row) for row in range(len(questions))]


def token_accuracy(chosen: Sequence[int], wanted: Sequence[int]) -> float:
    """Share of equal tokens, in percent."""
    return 100 * sum(a == b for a, b in zip(chosen, wanted, strict=True)) / len(wanted)


def _along(inputs: TokenBatch, chosen: torch.Tensor, row: int) -> tuple[Tokens, Tokens]:
    positions = inputs.answer_mask[row].nonzero().flatten()
    if len(positions) > 1:
        positions = positions[:-1]
    return tuple(inputs.input_ids[row, positions].tolist()), tuple(chosen[row, positions - 1].tolist())


def _counted(tokens: Sequence[int]) -> Tokens:
    """Tokens of an answer without the one that ends it; an empty answer is its end."""
    return tuple(tokens[:-1] if len(tokens) > 1 else tokens)


def _parts(items: Sequence, size: int) -> list[Sequence]:
    return [items[start : start + size] for start in range(0, len(items), size)]
