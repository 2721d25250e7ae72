"""A request in progress: what has been read of its prompt, and the experts that were decided for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..answers import Fired
from ..backbones import HiddenTokens, TokenBatch
from ..backbones.tokens import TokenRole
from ..editors.shared.routing import Routing, changed_tokens
from .repositories import Repository
from .slots import ExpertSlots

AskedQuestion = tuple[TokenBatch, Mapping[int, Tensor]]
"""A question as tokens, and its hidden states by layer, (1, tokens, width)."""


@dataclass
class EditedRequest:
    """A request that uses a repository.

    prompt: token ids, those of images included. It is decided once, when the last token of the prompt has reached the
    edit layer; the decision holds until the request ends, also if vLLM preempts it and computes it again.
    """

    repository: Repository
    slots: ExpertSlots
    prompt: Sequence[int]
    is_decided: bool = False
    slot: int | None = None
    changed: Tensor | None = None
    """(prompt,) booleans: the tokens of the prompt that experts change."""
    fired: tuple[Fired, ...] = ()
    revision: int = 0
    _states: dict[int, list[Tensor]] = field(default_factory=dict)
    _read: int = 0

    def starts(self, position: int) -> None:
        """A step begins with the token at this position. If the beginning is computed again, it is read again."""
        if position == 0:
            self._states = {}

    def keep(self, layer: int, states: Tensor) -> None:
        """Keep the next hidden states of the prompt at one layer, (tokens, width)."""
        self._states.setdefault(layer, []).append(states.float())

    def question(self) -> AskedQuestion:
        """The prompt and its hidden states. Raises `RuntimeError` if vLLM has not computed all of it."""
        states = {layer: torch.cat(parts) for layer, parts in self._states.items()}
        found = {layer: len(part) for layer, part in states.items()}
        if any(count != len(self.prompt) for count in found.values()):
            raise RuntimeError(f"a prompt of {len(self.prompt)} tokens was read in part (tokens by layer: {found})")
        ids = torch.tensor([self.prompt])
        roles = torch.where(self.repository.editor.backbone.is_image(ids), TokenRole.IMAGE, TokenRole.PROMPT)
        return TokenBatch(roles, ids), {layer: part[None] for layer, part in states.items()}

    def decided(self, question: AskedQuestion | None, routing: Routing | None) -> None:
        """From now on the request has these experts; None for none."""
        self.is_decided, self._states, self.revision = True, {}, self.repository.revision
        if question is not None and routing is not None:
            (tokens, states), editor = question, self.repository.editor
            self.slot, self.fired = self.slots.take(routing), routing.fired[0]
            self.changed = changed_tokens(HiddenTokens.of(tokens, states[editor.layer]), editor.form)[0]

    def end(self) -> None:
        """Free the slot."""
        if self.slot is not None:
            self.slots.release(self.slot)
            self.slot = None

    def to_dict(self) -> dict[str, Any]:
        """For the answer: the edits that fired, and the revision."""
        edits = [{"id": one.edit_id, "weight": one.weight, "margin": one.margin} for one in self.fired]
        return {"edits": edits, "revision": self.revision}


@dataclass(frozen=True)
class ScheduledTokens:
    """The tokens of one request in a step: rows `start` to `stop` of the batch, from `position` of the request on."""

    request: EditedRequest
    start: int
    stop: int
    position: int

    @property
    def of_prompt(self) -> int:
        """How many of the tokens belong to the prompt."""
        return max(0, min(self.stop - self.start, len(self.request.prompt) - self.position))

    @property
    def ends_prompt(self) -> bool:
        """Whether the last token of the prompt is among them."""
        return 0 < self.of_prompt == len(self.request.prompt) - self.position

    def changed_rows(self) -> Tensor:
        """Rows of the batch that the request's experts change."""
        assert self.request.changed is not None
        of_prompt = self.request.changed[self.position : self.position + self.of_prompt]
        generated = of_prompt.new_ones(self.stop - self.start - self.of_prompt)
        return torch.cat([of_prompt, generated]).nonzero().flatten() + self.start
