"""Edits that are passages of text: scored by perplexity and by agreement along unrelated text, as WISE and GRACE do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from ..backbones import Backbone
from ..samples import EditCase
from .perplexity import AnswerLikelihood, PerplexityFigures, agreement, answer_likelihoods, greedy_tokens
from .protocol import AskedProbe, probes_of


class PassageScores:
    """Figures of all groups of edits of one row of the bench."""

    def __init__(self, backbone: Backbone):
        self.backbone = backbone
        self._unedited: dict[tuple[str, int], tuple[int, ...]] = {}
        self._likelihoods: list[AnswerLikelihood] = []
        self._before: list[tuple[int, ...]] = []
        self._after: list[tuple[int, ...]] = []

    def ask_unedited(self, cases: Sequence[EditCase]) -> None:
        """What the model would choose along unrelated texts. No edit may be in force."""
        missing = [item for item in _along_texts(cases) if item.key not in self._unedited]
        found = self._greedy(missing)
        self._unedited |= {item.key: tokens for item, tokens in zip(missing, found, strict=True)}

    def add(self, cases: Sequence[EditCase]) -> None:
        """Measure these edits, which are in force."""
        edits = [case.edit for case in cases]
        questions, answers = [edit.question for edit in edits], [edit.answer for edit in edits]
        self._likelihoods += answer_likelihoods(self.backbone, questions, answers)
        texts = _along_texts(cases)
        self._before += [self._unedited[item.key] for item in texts]
        self._after += self._greedy(texts)

    def summary(self) -> dict[str, Any]:
        """`perplexity` of the answers, and `agreement` with the unedited model in percent (None without texts)."""
        shared = agreement(self._before, self._after) if self._before else None
        return {"perplexity": asdict(PerplexityFigures.of(self._likelihoods)), "agreement": shared}

    def _greedy(self, texts: Sequence[AskedProbe]) -> list[tuple[int, ...]]:
        answers = [str(item.probe.answer) for item in texts]
        return greedy_tokens(self.backbone, [item.probe.question for item in texts], answers) if texts else []


def _along_texts(cases: Sequence[EditCase]) -> list[AskedProbe]:
    """The locality probes with a text to go along, out of every edit's scope."""
    asked, _, _ = probes_of(cases, ("text_locality",))
    return [item for item in asked if item.probe.name == "text_locality" and (item.probe.answer or "").strip()]
