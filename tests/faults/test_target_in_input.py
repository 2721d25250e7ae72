"""Free answers are asked without the target: with another target the model is given the same, and answers the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from liveedit.backbones import Backbone, TokenBatch
from liveedit.editors.none import NoEditor
from liveedit.evaluation.protocol import UneditedAnswers, measure, probes_of
from liveedit.samples import Edit, EditCase, Probe, Question


def case_with(targets: Sequence[str], asked: Sequence[Question]) -> EditCase:
    first, second, third = (replace(question, subject=str(place)) for place, question in enumerate(asked))
    probes = (
        Probe("text_generality", replace(first, prompt=f"Please answer: {first.prompt}"), targets[0]),
        Probe("portability", second, targets[1]),
        Probe("text_locality", third, targets[2]),
    )
    return EditCase("case", Edit(first, targets[0]), probes)


def test_free_answers_know_nothing_of_the_targets(
    family_backbone: Backbone, asked: list[Question], monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[list[list[int]]] = []
    generate = Backbone.generate_tokens

    def noted(self: Backbone, inputs: TokenBatch, *arguments: Any, **options: Any) -> Any:
        given[-1] += inputs.input_ids.tolist()
        return generate(self, inputs, *arguments, **options)

    monkeypatch.setattr(Backbone, "generate_tokens", noted)
    answers = []
    for targets in (("red", "the deep well", "four"), ("a very long answer that nobody expects", "blue", "")):
        given.append([])
        case = case_with(targets, asked)
        unedited = UneditedAnswers(family_backbone, 8, 4)
        unedited.ask(probes_of([case])[0])
        with NoEditor(family_backbone) as editor:
            found = measure(family_backbone, editor, [case], unedited)
        answers.append([score.answer for _, score in found.scores])
    assert len(answers[0]) == 4 and answers[0] == answers[1]
    assert given[0] == given[1] != []
