"""Edits as text before a query."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ...backbones import Backbone
from ...samples import Edit, Question
from .config import PAPER_EDIT, PAPER_QUERY, PLAIN_EDIT, PLAIN_QUERY, LearningToEditConfig


def with_edits(config: LearningToEditConfig, question: Question, edits: Sequence[Edit]) -> Question:
    """The question after these edits, the nearest next to it, with its image; unchanged if there are none."""
    if not edits:
        return question
    texts = [
        config.edit_template.format(question=edit.question.prompt, answer=edit.answer.strip())
        for edit in reversed(edits)
    ]
    return replace(question, prompt=config.query_template.format(edits="".join(texts), question=question.prompt))


def fitting_templates(backbone: Backbone) -> tuple[str, str]:
    """The paper's templates, or plain ones if the tokenizer has no words for them.

    The built-in backbones spell "[Updated Information]" letter by letter, in 22 tokens: two edits' worth of context.
    """
    tokens = len(backbone.tokenizer("[Updated Information]", add_special_tokens=False)["input_ids"])
    return (PAPER_EDIT, PAPER_QUERY) if tokens <= 10 else (PLAIN_EDIT, PLAIN_QUERY)
