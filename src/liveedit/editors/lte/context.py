"""Edits in front of a query, as text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ...backbones import Backbone
from ...samples import Edit, Question
from .config import PAPER_EDIT, PAPER_QUERY, PLAIN_EDIT, PLAIN_QUERY, LearningToEditConfig


def with_edits(config: LearningToEditConfig, question: Question, edits: Sequence[Edit]) -> Question:
    """The question behind these edits, the nearest next to it; as it is where there are none. Its image stays."""
    if not edits:
        return question
    told = [
        config.edit_template.format(question=edit.question.prompt, answer=edit.answer.strip())
        for edit in reversed(edits)
    ]
    return replace(question, prompt=config.query_template.format(edits="".join(told), question=question.prompt))


def fitting_templates(backbone: Backbone) -> tuple[str, str]:
    """The paper's templates, or plain ones where the tokenizer has no words for them.

    The built-in backbones spell "[Updated Information]" letter by letter, in 22 tokens: two edits' worth of context.
    """
    tokens = len(backbone.tokenizer("[Updated Information]", add_special_tokens=False)["input_ids"])
    return (PAPER_EDIT, PAPER_QUERY) if tokens <= 10 else (PLAIN_EDIT, PLAIN_QUERY)
