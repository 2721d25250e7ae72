"""How answers of one batch are written, each in its own way: length, temperature, seed, stop strings, listeners."""

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

Finish = Literal["stop", "length"]
Listener = Callable[[str], None]
"""Takes the answer's text piece by piece, on a thread of the model."""

_UNFINISHED_CHARACTER = "\ufffd"
_COLDEST = 1e-5
"""Below this temperature the noise no longer matters, and scores would leave the range of floats."""


@dataclass(frozen=True)
class Style:
    """How one answer is to be written.

    temperature: 0 for the likeliest token, above 0 for one drawn from softmax(logits / temperature) by a generator
    of this seed. stop: strings before which the answer ends.
    """

    new_tokens: int
    temperature: float = 0.0
    seed: int = 0
    stop: tuple[str, ...] = ()


class Writing:
    """One answer on its way.

    tokens: every token that was generated, the one that ends the answer included. finish: why it ended; None while it
    has not, or where it was abandoned or late. deadline: by `time.monotonic`, when it is stopped.
    """

    def __init__(
        self,
        backbone: Backbone,
        style: Style,
        listener: Listener | None = None,
        is_abandoned: Callable[[], bool] = lambda: False,
        deadline: float = float("inf"),
    ):
        self.style = style
        self.tokens: list[int] = []
        self.finish: Finish | None = None
        self.is_late = False
        self._backbone, self._listener, self._is_abandoned, self._deadline = backbone, listener, is_abandoned, deadline
        self._ends = _end_tokens(backbone)
        turn = backbone.next_turn
        self._stops = style.stop if turn is None else (*style.stop, turn)
        self._told = ""
        self._noise = torch.Generator().manual_seed(style.seed) if style.temperature > 0 else None

    def drawn(self, scores: Tensor) -> Tensor:
        """Scores whose greatest is a draw from softmax(scores / temperature): Gumbel noise is added to them.

        scores: (vocabulary,). Every answer has noise of its own, so that its neighbours in a batch do not matter.
        """
        if self._noise is None:
            return scores
        noise = -torch.empty(scores.shape, dtype=torch.float64).exponential_(generator=self._noise).log()
        return (scores.double() / max(self.style.temperature, _COLDEST) + noise.to(scores.device)).to(scores.dtype)

    def take(self, token: int) -> bool:
        """One more token; returns whether the answer is done."""
        self.tokens.append(token)
        if token in self._ends:
            self.finish = "stop"
        elif self._stops or self._listener is not None:
            self._read()
        if self.finish is None and len(self.tokens) >= self.style.new_tokens:
            self.finish = "length"
        self.is_late = self.finish is None and time.monotonic() > self._deadline
        return self.finish is not None or self.is_late or self._is_abandoned()

    def close(self) -> str:
        """The whole text; what the listener has not heard of it is told. Raises `WaitedTooLongError` where late."""
        if self.is_late:
            raise WaitedTooLongError(
                "The answer was not written within the time limit. Ask for fewer tokens, or raise --answer-seconds."
            )
        text = self._cut(self._backbone.spoken(self._decoded()))
        self._tell(text)
        return text

    def _decoded(self) -> str:
        return self._backbone.decode(self.tokens)

    def _read(self) -> None:
        decoded = self._decoded()
        text = self._backbone.spoken(decoded)
        if any(stop in decoded.lstrip() for stop in self._stops):
            self.finish = "stop"
            return
        self._tell(text[: len(text) - self._held_back(text)])

    def _cut(self, text: str) -> str:
        found = [place for place in (text.find(stop) for stop in self.style.stop) if place >= 0]
        return text[: min(found)] if found else text

    def _held_back(self, text: str) -> int:
        """How many of the last characters may still change: half a character, or the beginning of a stop string."""
        if text.endswith(_UNFINISHED_CHARACTER):
            return len(text) - len(text.rstrip(_UNFINISHED_CHARACTER))
        longest = max((len(stop) for stop in self._stops), default=1) - 1
        for length in range(min(longest, len(text)), 0, -1):
            if any(stop.startswith(text[-length:]) for stop in self._stops):
                return length + len(text[:-length]) - len(text[:-length].rstrip())
        return 0

    def _tell(self, text: str) -> None:
        if self._listener is not None and len(text) > len(self._told) and text.startswith(self._told):
            self._listener(text[len(self._told) :])
            self._told = text


class Sampling(LogitsProcessor):
    """Every row of a batch draws its next token in its own way."""

    def __init__(self, rows: Sequence[Writing]):
        self._rows = rows

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        """scores: (batch, vocabulary); `input_ids` do not matter."""
        if all(row.style.temperature == 0 for row in self._rows):
            return scores
        return torch.stack([row.drawn(given) for row, given in zip(self._rows, scores, strict=True)])


class Stopping(StoppingCriteria):
    """Every row of a batch ends in its own time."""

    def __init__(self, rows: Sequence[Writing]):
        self._rows, self._done = rows, [False] * len(rows)

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        """input_ids: (batch, length so far). Returns (batch,) booleans: which rows are done."""
        for place, token in enumerate(input_ids[:, -1].tolist()):
            self._done[place] = self._done[place] or self._rows[place].take(token)
        return torch.tensor(self._done, device=input_ids.device)


def _end_tokens(backbone: Backbone) -> frozenset[int]:
    stops = getattr(backbone.model.generation_config, "eos_token_id", None)
    stops = [] if stops is None else [stops] if isinstance(stops, int) else list(stops)
    return frozenset((*stops, backbone.end_token_id, int(backbone.pad_token_id)))
