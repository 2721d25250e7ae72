"""Decoding the answers of one batch, each row with its own length, temperature, seed, stop strings and callback."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import LogitsProcessor, StoppingCriteria

from ..backbones import Backbone
from ..errors import WaitedTooLongError

FinishReason = Literal["stop", "length"]
TextCallback = Callable[[str], None]
"""Receives the text of an answer piece by piece, on a worker thread."""

_UNFINISHED_CHARACTER = "\ufffd"
_MIN_TEMPERATURE = 1e-5
"""Below this temperature the noise has no effect, and scaled scores would overflow."""


@dataclass(frozen=True)
class SamplingParams:
    """How one answer is decoded.

    temperature: 0 decodes greedily; above 0, tokens are drawn from softmax(logits / temperature) with a generator of
    this seed. stop: the answer ends before the first of these strings.
    """

    new_tokens: int
    temperature: float = 0.0
    seed: int = 0
    stop: tuple[str, ...] = ()


class DecodingState:
    """The state of one answer while it is decoded.

    tokens: all generated tokens, including the end token. finish: why the answer ended; None while it is being
    decoded, and if it was abandoned or is late. deadline: in `time.monotonic` seconds; decoding stops after it.
    is_held: called while the answer is decoded; as long as it is True, no text is sent before `close`.
    """

    def __init__(
        self,
        backbone: Backbone,
        params: SamplingParams,
        on_text: TextCallback | None = None,
        is_abandoned: Callable[[], bool] = lambda: False,
        deadline: float = float("inf"),
        is_held: Callable[[], bool] = lambda: False,
    ):
        self.params, self._is_held = params, is_held
        self.tokens: list[int] = []
        self.finish: FinishReason | None = None
        self.is_late = False
        self._backbone, self._on_text, self._is_abandoned, self._deadline = backbone, on_text, is_abandoned, deadline
        self._ends = backbone.end_token_ids
        turn = backbone.next_turn
        self._stops = params.stop if turn is None else (*params.stop, turn)
        self._sent = ""
        self._noise = torch.Generator().manual_seed(params.seed) if params.temperature > 0 else None

    def perturbed(self, scores: Tensor) -> Tensor:
        """Scores whose argmax is a draw from softmax(scores / temperature), by the Gumbel-max trick.

        scores: (vocabulary,). Each answer has its own noise, so the other rows of a batch do not affect it.
        """
        if self._noise is None:
            return scores
        noise = -torch.empty(scores.shape, dtype=torch.float64).exponential_(generator=self._noise).log()
        return (scores.double() / max(self.params.temperature, _MIN_TEMPERATURE) + noise.to(scores.device)).to(
            scores.dtype
        )

    def take(self, token: int) -> bool:
        """Append a token. Returns whether the answer is done."""
        self.tokens.append(token)
        if token in self._ends:
            self.finish = "stop"
        elif self._stops or self._on_text is not None:
            self._read()
        if self.finish is None and len(self.tokens) >= self.params.new_tokens:
            self.finish = "length"
        self.is_late = self.finish is None and time.monotonic() > self._deadline
        return self.finish is not None or self.is_late or self._is_abandoned()

    def close(self) -> str:
        """The whole text; the callback receives the rest of it. Raises `WaitedTooLongError` if the answer is late."""
        if self.is_late:
            raise WaitedTooLongError(
                "The answer did not finish within the time limit. Ask for fewer tokens, or raise --answer-seconds."
            )
        text = self._cut(self._backbone.spoken(self._decoded()))
        self._send(text)
        return text

    def _decoded(self) -> str:
        return self._backbone.decode(self.tokens)

    def _read(self) -> None:
        decoded = self._decoded()
        text = self._backbone.spoken(decoded)
        if any(stop in decoded.lstrip() for stop in self._stops):
            self.finish = "stop"
            return
        if not self._is_held():
            self._send(text[: len(text) - self._held_back(text)])

    def _cut(self, text: str) -> str:
        found = [place for place in (text.find(stop) for stop in self.params.stop) if place >= 0]
        return text[: min(found)] if found else text

    def _held_back(self, text: str) -> int:
        """How many of the last characters may still change: an unfinished character, or the start of a stop string."""
        if text.endswith(_UNFINISHED_CHARACTER):
            return len(text) - len(text.rstrip(_UNFINISHED_CHARACTER))
        longest = max((len(stop) for stop in self._stops), default=1) - 1
        for length in range(min(longest, len(text)), 0, -1):
            if any(stop.startswith(text[-length:]) for stop in self._stops):
                return length + len(text[:-length]) - len(text[:-length].rstrip())
        return 0

    def _send(self, text: str) -> None:
        if self._on_text is not None and len(text) > len(self._sent) and text.startswith(self._sent):
            self._on_text(text[len(self._sent) :])
            self._sent = text


class SamplingProcessor(LogitsProcessor):
    """Perturbs the scores of each row by that row's temperature and seed."""

    def __init__(self, rows: Sequence[DecodingState]):
        self._rows = rows

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        """scores: (batch, vocabulary). `input_ids` is not used."""
        if all(row.params.temperature == 0 for row in self._rows):
            return scores
        return torch.stack([row.perturbed(given) for row, given in zip(self._rows, scores, strict=True)])


class RowStoppingCriteria(StoppingCriteria):
    """Ends each row of a batch on its own."""

    def __init__(self, rows: Sequence[DecodingState]):
        self._rows, self._done = rows, [False] * len(rows)

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        """input_ids: (batch, length so far). Returns (batch,) booleans: which rows are done."""
        for place, token in enumerate(input_ids[:, -1].tolist()):
            self._done[place] = self._done[place] or self._rows[place].take(token)
        return torch.tensor(self._done, device=input_ids.device)
