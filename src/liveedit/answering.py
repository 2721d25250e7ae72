"""Ask a backbone: encode questions, generate answers, report which edits fired. The one way to ask."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

from .answers import Answer
from .backbones import Backbone
from .backbones.tokens import TokenBatch
from .editors.base import Editor
from .progress import Progress, no_progress
from .samples import Question

NEW_TOKENS: Final = 32
"""Default limit on the length of an answer, in tokens."""

BATCH: Final = 16
"""Default number of questions asked at once."""


class Answering:
    """Asks a backbone, with the edits of the editor that is attached to it, if any.

    Several threads may ask at once.
    """

    def __init__(self, backbone: Backbone, editor: Editor | None = None):
        self.backbone, self.editor = backbone, editor

    def encode(self, questions: Sequence[Question]) -> TokenBatch:
        """Questions as one left-padded batch, ready for `generate`. Raises as `Backbone.encode` does."""
        return self.backbone.encode(questions, padding="left")

    def generate(self, inputs: TokenBatch, max_new_tokens: int = NEW_TOKENS, **options: Any) -> list[Answer]:
        """Answers to an encoded batch; options are passed on to the model's own generate().

        `Answer.fired` is None if no editor is attached, or if the editor does not report it.
        """
        answers = self.backbone.generate_tokens(inputs, max_new_tokens, **options)
        fired = None if self.editor is None else self.editor.fired()
        if fired is None:
            return [Answer(text, None, tokens) for text, tokens in answers]
        edits = fired or [()] * len(answers)
        return [Answer(text, one, tokens) for (text, tokens), one in zip(answers, edits, strict=True)]

    def ask(self, questions: Sequence[Question], max_new_tokens: int = NEW_TOKENS) -> list[Answer]:
        """Answers to several questions in one batch: the same as one by one."""
        return self.generate(self.encode(questions), max_new_tokens)

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
