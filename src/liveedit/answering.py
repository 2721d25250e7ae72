"""Ask a backbone: encode questions, generate answers, report which edits fired. The one way to ask."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Final

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from .answers import Answer, above_threshold
from .backbones import Backbone
from .backbones.tokens import TokenBatch
from .editors.base import Editor
from .progress import Progress, no_progress
from .samples import Question

NEW_TOKENS: Final = 32
"""Default limit on the length of an answer, in tokens."""

BATCH: Final = 16
"""Default number of questions asked at once."""

AskAgain = Callable[["Answering", list[int]], Sequence[Answer]]
"""Asks the unedited model for other answers, by their places."""


class Answering:
    """Asks a backbone, with the edits of the editor that is attached to it, if any.

    Several threads may ask at once. An edited answer in doubt (`Editor.answer_confidence`, `Editor.answer_length`) is
    not given: the unedited model answers in its place.
    """

    def __init__(self, backbone: Backbone, editor: Editor | None = None):
        self.backbone, self.editor = backbone, editor

    def encode(self, questions: Sequence[Question]) -> TokenBatch:
        """Questions as one left-padded batch, ready for `generate`. Raises as `Backbone.encode` does."""
        return self.backbone.encode(questions, padding="left")

    def generate(self, inputs: TokenBatch, max_new_tokens: int = NEW_TOKENS, **options: Any) -> list[Generated]:
        """Answers to an encoded batch, and whether they are in doubt; options are passed on to the model's own
        generate().

        `Answer.fired` is None if no editor is attached, or if the editor does not report it.
        """
        watched = self._watched()
        if watched is not None:
            others = options.pop("logits_processor", ())
            options["logits_processor"] = LogitsProcessorList([watched, *others])
        answers = self.backbone.generate_tokens(inputs, max_new_tokens, **options)
        fired = None if self.editor is None else self.editor.fired()
        if fired is None:
            return [Generated(Answer(text, None, tokens), None) for text, tokens in answers]
        edits = fired or [()] * len(answers)
        found = [Answer(text, one, tokens) for (text, tokens), one in zip(answers, edits, strict=True)]
        if watched is None:
            return [Generated(answer, None) for answer in found]
        doubts = zip(found, watched.doubts(), strict=True)
        return [Generated(answer, self._doubt(answer, unsure)) for answer, unsure in doubts]

    def ask(self, questions: Sequence[Question], max_new_tokens: int = NEW_TOKENS) -> list[Answer]:
        """Answers to several questions in one batch: the same as one by one."""
        inputs = self.encode(questions)
        if len(questions) > 1 and self.backbone.answer_room(inputs, max_new_tokens) < max_new_tokens:
            # The positions that the longest question leaves would cut the answers to the others.
            return [self.ask([question], max_new_tokens)[0] for question in questions]
        generated = self.generate(inputs, max_new_tokens)
        return self.settled(
            generated, lambda plain, places: plain.ask([questions[place] for place in places], max_new_tokens)
        )

    def settled(
        self, generated: Sequence[Generated], ask_again: AskAgain, lengths: Sequence[int | None] | None = None
    ) -> list[Answer]:
        """The answers that are given: for those in doubt, the unedited model's to the same questions.

        ask_again: asks them, by their places. lengths: how many tokens of each answer count, None for all of them; by
        default those before the next turn of the chat.
        """
        answers = [one.answer for one in generated]
        if lengths is None:
            lengths = [self._given_tokens(answer) for answer in answers]
        doubtful = [place for place, one in enumerate(generated) if one.is_in_doubt(lengths[place])]
        if doubtful:
            with self.unedited() as plain:
                instead = ask_again(plain, doubtful)
            for place, answer in zip(doubtful, instead, strict=True):
                answers[place] = replace(answer, fired=(), withheld=above_threshold(answers[place].fired))
        return answers

    @contextmanager
    def unedited(self) -> Iterator[Answering]:
        """Inside the block, this thread's questions reach the unedited model; ask them of what this yields."""
        with nullcontext() if self.editor is None else self.editor.paused():
            yield Answering(self.backbone)

    def ask_all(
        self,
        questions: Sequence[Question],
        max_new_tokens: int = NEW_TOKENS,
        *,
        batch: int = BATCH,
        progress: Progress = no_progress,
    ) -> Iterator[Answer]:
        """Answers to any number of questions, `batch` at a time, in their order."""
        for start in range(0, len(questions), batch):
            yield from self.ask(questions[start : start + batch], max_new_tokens)
            progress(min(start + batch, len(questions)), len(questions))

    def tokens_for(self, answer: str) -> int:
        """The limit to set for a question whose answer is expected to be this one, in tokens."""
        return max(NEW_TOKENS, 2 + len(self.backbone.tokenize([answer])[0]))

    def _given_tokens(self, answer: Answer) -> int | None:
        """How many of the generated tokens belong to the answer; None for all, unless it was cut before the next turn
        of the chat."""
        if self.backbone.next_turn is None:
            return None
        return len(self.backbone.tokenize([answer.text])[0]) + 1

    def _doubt(self, answer: Answer, unsure: int | None) -> int | None:
        """`Generated.doubt`. unsure: the first token of which the model was not sure."""
        fired = above_threshold(answer.fired)
        if not fired:
            return None
        places = unsure, self._other_length(answer, fired[0].edit_id) if len(fired) == 1 else None
        return min((place for place in places if place is not None), default=None)

    def _other_length(self, answer: Answer, edit_id: str) -> int | None:
        """The first token at which an answer is shorter or longer than the edit's; None if it is neither."""
        wanted = None if self.editor is None else self.editor.answer_length(edit_id)
        if wanted is None or answer.tokens is None:
            return None
        ends = (place for place, token in enumerate(answer.tokens) if token in self.backbone.end_token_ids)
        end = next(ends, len(answer.tokens))
        was_cut = end == len(answer.tokens) <= wanted
        return None if was_cut or end == wanted - 1 else min(wanted, end)

    def _watched(self) -> ConfidenceProcessor | None:
        """Watches the confidence of an edited model; None if the editor does not ask for it."""
        if self.editor is None or not self.editor.answer_confidence:
            return None
        return ConfidenceProcessor(self.editor.answer_confidence, self.backbone.end_token_ids)


@dataclass(frozen=True)
class Generated:
    """An answer as it was generated.

    doubt: if edits fired, the place of the first token, counted from 0, of which the model was less sure than
    `Editor.answer_confidence`, or at which the answer is shorter or longer than the edit's; None if there is none, or
    if no edit fired.
    """

    answer: Answer
    doubt: int | None

    def is_in_doubt(self, tokens: int | None = None) -> bool:
        """Whether the unedited model answers instead. tokens: the length that the answer was cut to."""
        return self.doubt is not None and (tokens is None or self.doubt < tokens)


class ConfidenceProcessor(LogitsProcessor):
    """Changes no score, and notes for each row where the most likely token was first less likely than `least`."""

    def __init__(self, least: float, ends: frozenset[int]):
        self._least, self._ends = math.log(least), ends
        self._steps = 0
        self._doubts: Tensor | None = None
        """(batch,): the first step in doubt, -1 before there is one."""
        self._ended: Tensor | None = None

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        """input_ids: (batch, length so far). scores: (batch, vocabulary)."""
        precise = scores.float()
        unsure = precise.amax(-1) - precise.logsumexp(-1) < self._least
        if self._doubts is None or self._ended is None:
            self._doubts, self._ended = torch.full_like(unsure, -1, dtype=torch.long), torch.zeros_like(unsure)
        else:
            last = input_ids[:, -1].to(unsure.device)
            self._ended = self._ended | torch.isin(last, torch.tensor(sorted(self._ends), device=last.device))
        self._doubts = torch.where(unsure & ~self._ended & (self._doubts < 0), self._steps, self._doubts)
        self._steps += 1
        return scores

    def doubts(self) -> list[int | None]:
        """Of each row, the place of its first token in doubt."""
        return [] if self._doubts is None else [None if place < 0 else place for place in self._doubts.tolist()]
