"""Asking probes: batches of questions, scored teacher-forced and by free generation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from ..backbones import Backbone, Inputs
from ..editors.base import Editor, Fired
from ..samples import Probe

Progress = Callable[[int], None]
"""Called with how many more probes are done."""


@dataclass(frozen=True)
class Reply:
    """What a model said to one probe.

    `text` is its free answer. `forced` are the tokens it would choose, one by one, along the expected answer.
    """

    text: str
    forced: tuple[int, ...]
    fired: tuple[Fired, ...] | None = None


def ask_freely(
    backbone: Backbone,
    probes: Sequence[Probe],
    max_new_tokens: int,
    batch: int,
    editor: Editor | None,
    progress: Progress,
) -> list[tuple[str, tuple[Fired, ...] | None]]:
    """Greedy answers through `generate()`, with the edits that fired where the editor tells."""
    found: list[tuple[str, tuple[Fired, ...] | None]] = []
    for part in _parts(probes, batch):
        inputs = backbone.encode([probe.question for probe in part], padding="left")
        texts = backbone.generate(inputs, max_new_tokens)
        fired = editor.fired() if editor is not None else None
        unfired = None if fired is None else ()
        found += zip(texts, fired or [unfired] * len(part), strict=True)
        progress(len(part))
    return found


@torch.inference_mode()
def choose_along(
    backbone: Backbone, probes: Sequence[Probe], answers: Sequence[str], batch: int, progress: Progress
) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Per probe: the tokens of its expected answer, and those the model chooses in their place (teacher-forced).

    The end-of-sequence token behind an answer is not counted, as in the field; free generation counts it.
    """
    found = []
    for part in _parts(list(zip(probes, answers, strict=True)), batch):
        inputs = backbone.encode([probe.question for probe, _ in part], [answer for _, answer in part])
        chosen = backbone.logits(inputs).argmax(-1)
        found += [_along(inputs, chosen, row) for row in range(len(part))]
        progress(len(part))
    return found


def token_accuracy(chosen: Sequence[int], wanted: Sequence[int]) -> float:
    """Share of equal tokens, in percent."""
    return 100 * sum(a == b for a, b in zip(chosen, wanted, strict=True)) / len(wanted)


def _along(inputs: Inputs, chosen: torch.Tensor, row: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    positions = inputs.answer_mask[row].nonzero().flatten()
    if len(positions) > 1:
        positions = positions[:-1]
    return tuple(inputs.input_ids[row, positions].tolist()), tuple(chosen[row, positions - 1].tolist())


def _parts(items: Sequence, size: int) -> list[Sequence]:
    return [items[start : start + size] for start in range(0, len(items), size)]
