"""A free answer that goes on after the expected one is not right, wherever the length limit cuts it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from liveedit.answering import Answering
from liveedit.answers import Answer
from liveedit.backbones import Backbone
from liveedit.editors.none import NoEditor
from liveedit.evaluation.probing import was_cut
from liveedit.evaluation.protocol import UneditedAnswers, measure, probes_of
from liveedit.samples import Edit, EditCase, Probe, Question

QUESTION = Question("What is the capital of Coraland?")


def measured(backbone: Backbone, answer: str, limit: int) -> dict[str, tuple[str, bool]]:
    """The answer to each probe of an edit, and whether it is an exact match; nothing is edited."""
    other = replace(QUESTION, subject="another", relation="one")
    case = EditCase("case", Edit(QUESTION, answer), (Probe("text_locality", other, "not used"),))
    unedited = UneditedAnswers(backbone, limit, 4)
    unedited.ask(probes_of([case])[0])
    with NoEditor(backbone) as editor:
        found = measure(backbone, editor, [case], unedited)
    return {item.probe.name: (score.answer, score.exact) for item, score in found.scores}


@pytest.fixture
def whole(tiny_llava: Backbone) -> Answer:
    """The model's own answer, of several tokens."""
    (answer,) = Answering(tiny_llava).ask([QUESTION])
    assert answer.tokens is not None and answer.tokens[-1] == tiny_llava.end_token_id and len(answer.tokens) > 3
    return answer


def test_a_longer_answer_is_not_right_when_it_is_cut_to_the_expected_one(tiny_llava: Backbone, whole: Answer) -> None:
    assert whole.tokens is not None
    for length in range(1, len(whole.tokens) - 1):
        beginning = tiny_llava.decode(whole.tokens[:length]).strip()
        for limit in (length, 32):
            found = measured(tiny_llava, beginning, limit)
            assert found["reliability"] == (beginning if limit == length else whole.text, False)
            assert found["text_locality"][1], "the unedited model's answer is cut at the same length"
    assert measured(tiny_llava, whole.text, len(whole.tokens))["reliability"] == (whole.text, True)
    assert measured(tiny_llava, whole.text, 32)["reliability"] == (whole.text, True)


def test_the_mark_of_the_next_turn_ends_an_answer(language_model: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some models write it in place of an end token."""
    monkeypatch.setattr(type(language_model), "next_turn", "###")
    said, further = (tuple(language_model.tokenize([text])[0][1:]) for text in ("red###Human", "red and"))
    assert not was_cut(language_model, Answer("red", (), said))
    assert was_cut(language_model, Answer("red and", (), further))
    assert not was_cut(language_model, Answer("red and", (), (*further, language_model.end_token_id)))
    assert not was_cut(language_model, Answer("red and")), "a substitute model, whose tokens are not known"
