"""Which of the edits that contradict each other hold, on measurements written by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from liveedit.answers import Fired
from liveedit.evaluation.protocol import AskedProbe, Measurement
from liveedit.evaluation.recurring import recurring_edits
from liveedit.evaluation.scoring import ProbeScore
from liveedit.samples import Edit, EditCase, Question, normalize_prompt

Asked = tuple[Question, str, str]
"""Question, the edit's answer, the model's answer."""


def about(subject: str | None, prompt: str, relation: str | None = None) -> Question:
    return Question(prompt, None, subject, relation or normalize_prompt(prompt))


def measured(*asked: Asked) -> Measurement:
    scores = []
    for number, (question, wanted, answer) in enumerate(asked):
        case = EditCase(str(number), Edit(question, wanted))
        score = ProbeScore.of("reliability", "other", wanted, answer, 100.0)
        scores.append((AskedProbe(case, case.reliability, -1), score))
    fired: tuple[tuple[AskedProbe, tuple[Fired, ...]], ...] = ()
    return Measurement(tuple(scores), (), fired)


def test_the_latest_edit_of_a_subject_and_the_others_are_counted_apart() -> None:
    first = measured(
        (about("Lyon", "Which twin city?"), "Manila", "Manila"),
        (about("Lyon", "Twin city of Lyon?"), "Toronto", "karachi."),
        (about("Oslo", "Where is Oslo?"), "Peru", "Norway"),
        (about("Lyon", "What is its twin?"), "Karachi", "Karachi"),
    )
    second = measured((about("Rome", "Who built it?"), "Ann", "Bob"), (about("Rome", "Built by?"), "Bob", "Cid"))
    assert recurring_edits([first, second]) == {
        "subjects": 2,
        "edits": 5,
        "latest_right": 50.0,
        "earlier_right": pytest.approx(100 / 3),
        "earlier_overruled": pytest.approx(200 / 3),
    }


def test_the_same_answer_again_another_relation_and_another_group_contradict_nothing() -> None:
    same = measured((about("Lyon", "A?"), "Manila", "x"), (about("Lyon", "B?"), "manila.", "x"))
    relations = measured((about("Lyon", "A?", "P1"), "Manila", "x"), (about("Lyon", "B?", "P2"), "Karachi", "x"))
    groups = [measured((about("Lyon", "A?"), "Manila", "x")), measured((about("Lyon", "B?"), "Karachi", "x"))]
    assert recurring_edits([same]) is None
    assert recurring_edits([relations]) is None
    assert recurring_edits(groups) is None


def test_without_a_subject_and_with_an_image_the_scope_decides() -> None:
    bare = measured((Question("A?"), "one", "one"), (Question("a"), "two", "one"), (Question("B?"), "three", "three"))
    found = recurring_edits([bare])
    assert found is not None
    assert (found["subjects"], found["latest_right"], found["earlier_right"]) == (1, 0.0, 100.0)
    shown = Path("scene.png")
    passages = measured((Question("P", None, "Ann"), "one", "x"), (Question("P one", None, "Ann"), "two", "x"))
    assert recurring_edits([passages]) is None
    images = measured((Question("A?", shown, "scene"), "one", "x"), (Question("B?", shown, "scene"), "two", "x"))
    assert recurring_edits([images]) is None
