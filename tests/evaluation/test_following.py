"""Cases that belong together, and facts that are edited more than once, worked by hand."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from liveedit.answers import Answer, Fired
from liveedit.backbones import Backbone
from liveedit.datasets import read
from liveedit.datasets.world import HarderShares, write_world
from liveedit.editors.none import NoEditor
from liveedit.evaluation.bench import Bench, BenchConfig
from liveedit.evaluation.following import edit_groups, overruled
from liveedit.evaluation.protocol import (
    Measurement,
    UneditedAnswers,
    measure,
    probes_of,
    raw_cases,
    scored_again,
    summarize_measurements,
)
from liveedit.evaluation.provenance import Provenance
from liveedit.evaluation.recurring import recurring_edits
from liveedit.samples import Edit, EditCase, Probe, ProbeName, Question


def about(relation: str, prompt: str = "") -> Question:
    return Question(prompt or f"What {relation}?", None, "cat", relation)


def case_of(case_id: str, relation: str, answer: str, follows: str | None = None, *probes: ProbeName) -> EditCase:
    question = replace(about(relation), prompt=f"{case_id} {relation}?")
    found = tuple(Probe(name, about(relation, f"{case_id} {name}?"), answer) for name in probes)
    return EditCase(case_id, Edit(question, answer), found, follows=follows)


ALONE = [case_of(f"alone{number}", f"r{number}", "x") for number in range(6)]
FIRST = case_of("first", "color", "red", None, "text_generality", "portability", "cross_modal")
SECOND = case_of("second", "color", "blue", "first", "text_generality")
THIRD = case_of("third", "color", "green", "second")
OTHER_FACT = case_of("other", "size", "big", "first")


def ids(groups: Sequence[Sequence[EditCase]]) -> list[list[str]]:
    return [[case.id for case in group] for group in groups]


def test_without_cases_that_follow_the_groups_are_as_they_always_were() -> None:
    assert ids(edit_groups(ALONE, 4, 5, seed=3)) == [["alone0", "alone1", "alone2", "alone3"], ["alone4"]]
    assert ids(edit_groups(ALONE, 6, 1, seed=3)) == [[case.id for case in ALONE]]
    assert ids(edit_groups(ALONE, 1, 2, seed=3)) == [["alone0"], ["alone1"]]


def test_cases_that_follow_each_other_are_chosen_together_and_edited_in_order() -> None:
    cases = [SECOND, *ALONE[:3], THIRD, FIRST, *ALONE[3:]]  # However they are permuted.
    orders = set()
    for seed in range(30):
        (group,) = edit_groups(cases, 6, 1, seed)
        chosen = [case.id for case in group]
        assert set(chosen) == {"alone0", "alone1", "alone2", "first", "second", "third"}
        places = [chosen.index(one) for one in ("first", "second", "third")]
        assert places == sorted(places)
        orders.add(tuple(places))
        assert edit_groups(cases, 6, 1, seed) == [group]
    assert len(orders) > 5
    assert any(second - first > 1 for first, second, _ in orders)  # Not always one right after the other.


def test_a_group_with_too_little_room_leaves_out_the_last_ones() -> None:
    cases = [FIRST, SECOND, THIRD, *ALONE]
    (group,) = edit_groups(cases, 2, 1, seed=0)
    assert [case.id for case in group] == ["first", "second"]
    assert [len(group) for group in edit_groups(cases, 2, 5, seed=0)] == [2, 2, 1]
    assert ids(edit_groups(cases, 1, 3, seed=0)) == [["first"], ["alone0"], ["alone1"]]
    (everything,) = edit_groups(cases, len(cases), 1, seed=0)
    assert len(everything) == len(cases)
    assert ids(edit_groups([SECOND, ALONE[0]], 2, 1, seed=0)) in ([["second", "alone0"]], [["alone0", "second"]])


def test_the_last_edit_of_a_fact_overrules_all_earlier_ones() -> None:
    found = overruled([FIRST, ALONE[0], SECOND, THIRD])
    assert {name: case.id for name, case in found.items()} == {"first": "third", "second": "third"}
    assert not overruled([SECOND, FIRST])  # Made in the other order.
    assert not overruled([FIRST, OTHER_FACT])
    assert not overruled([FIRST, replace(SECOND, follows=None)])  # One scope alone is no statement of the data.


def test_the_last_edits_answer_is_expected_of_all_edits_of_a_fact() -> None:
    asked, left_out = probes_of([FIRST, SECOND, OTHER_FACT], ("text_generality", "portability", "cross_modal"))
    expected = {(item.case.id, item.probe.name): item.probe.answer for item in asked}
    assert expected == {
        ("first", "reliability"): "blue",
        ("first", "text_generality"): "blue",
        ("first", "cross_modal"): "blue",
        ("second", "reliability"): "blue",
        ("second", "text_generality"): "blue",
        ("other", "reliability"): "big",
    }
    assert [(item.case.id, item.probe.name) for item in left_out] == [("first", "portability")]
    assert {item.case.id: item.right_edit for item in asked} == {
        "first": "second",
        "second": "second",
        "other": "other",
    }


class Unedited:
    """Stands where a backbone is needed and nothing is asked of it."""


class Firing(NoEditor):
    """Does nothing."""

    def __init__(self) -> None:
        pass

    def paused(self) -> Any:
        from contextlib import nullcontext

        return nullcontext()


def measured(
    monkeypatch: pytest.MonkeyPatch, cases: list[EditCase], said: dict[str, str], fired: str
) -> tuple[Any, str]:
    """Ask with these answers by prompt, otherwise "unknown"; the edit `fired` fires for all of them."""

    def ask_freely(answering: Any, probes: Sequence[Probe], *further: Any) -> list[Answer]:
        texts = [said.get(probe.question.prompt, "unknown") for probe in probes]
        return [Answer(text, (Fired(fired, 1.0, 0.0),)) for text in texts]

    def choose_along(backbone: Any, probes: Sequence[Probe], *further: Any) -> list[Any]:
        return [((1,), (1,)) for _ in probes]

    monkeypatch.setattr("liveedit.evaluation.protocol.ask_freely", ask_freely)
    monkeypatch.setattr("liveedit.evaluation.protocol.choose_along", choose_along)
    monkeypatch.setattr("liveedit.evaluation.protocol.Answering", lambda *given: None)
    monkeypatch.setattr("liveedit.evaluation.protocol.was_cut", lambda *given: False)
    raw, backbone = io.StringIO(), Unedited()
    unedited = UneditedAnswers(backbone, 4, 4)  # type: ignore[arg-type]
    monkeypatch.setattr(UneditedAnswers, "ask_texts", lambda self, asked, progress=None: unedited_texts(self, asked))
    found = measure(backbone, Firing(), cases, unedited, raw=raw)  # type: ignore[arg-type]
    return found, raw.getvalue()


def unedited_texts(unedited: UneditedAnswers, asked: Sequence[Any]) -> None:
    from liveedit.evaluation.protocol import UneditedAnswer

    unedited._answers |= {item.key: UneditedAnswer("plain") for item in asked}


@pytest.mark.parametrize(
    ("said", "right", "broken", "overruling"),
    [
        ({"first color?": "blue", "second color?": "blue"}, 100.0, 0.0, (100.0, 0.0, 100.0)),
        ({"first color?": "red", "second color?": "red"}, 0.0, 0.0, (0.0, 100.0, 0.0)),
        ({"first color?": "red", "second color?": "blue"}, 50.0, 0.0, (100.0, 100.0, 0.0)),
        ({"first color?": "blured", "second color?": "plain"}, 0.0, 50.0, (0.0, 0.0, 0.0)),
    ],
)
def test_the_bench_scores_by_the_last_edit_and_so_does_verifying(
    monkeypatch: pytest.MonkeyPatch,
    said: dict[str, str],
    right: float,
    broken: float,
    overruling: tuple[float, float, float],
) -> None:
    portability = FIRST.named("portability")  # What follows from an edit that is overruled is not known.
    first, second = replace(FIRST, probes=portability), replace(SECOND, probes=())
    found, raw = measured(monkeypatch, [first, second], said, "second")
    again = scored_again(raw_cases([json.loads(line) for line in raw.splitlines()]))
    for measurement in (found, again):
        assert [item.probe.name for item in measurement.left_out] == ["portability"]
        check_scores(measurement, right, broken, overruling)
    assert summarize_measurements([found]) == summarize_measurements([again])


def check_scores(measurement: Measurement, right: float, broken: float, overruling: tuple[float, float, float]) -> None:
    summary = summarize_measurements([measurement])
    assert summary["metrics"]["reliability"]["exact_match"] == right
    assert summary["metrics"]["reliability"]["broken"] == broken
    assert summary["by_answer_type"]["overruled edit"]["reliability"]["count"] == 1
    assert summary["routing"] == {"recall": 100.0, "precision": 100.0}  # The edit that fired is the last one.
    recurring = recurring_edits([measurement])
    assert recurring is not None
    held = (recurring["latest_right"], recurring["earlier_right"], recurring["earlier_overruled"])
    assert held == overruling


def test_an_edit_that_is_overruled_has_no_right_to_fire(monkeypatch: pytest.MonkeyPatch) -> None:
    cases = [replace(FIRST, probes=()), replace(SECOND, probes=())]
    found, _ = measured(monkeypatch, cases, {}, "first")
    assert summarize_measurements([found])["routing"] == {"recall": 0.0, "precision": 0.0}


@pytest.mark.parametrize("kind", ["conflicts", "combined"])
def test_the_bench_makes_pairs_in_their_order(random_backbone: Backbone, tmp_path: Path, kind: str) -> None:
    write_world(tmp_path, seed=3, train=0, eval=12, harder=HarderShares.parse(kind))
    cases = read("mmedit", tmp_path / "eval.json")
    edited: list[str] = []

    class Noting(NoEditor):
        def _edit_one(self, edit_id: str, edit: Edit) -> dict[str, Any]:
            edited.append(edit_id)
            return {}

    config = BenchConfig(
        backbone="tiny-random", data="world", edits=(6,), few_edits_cases=6, max_new_tokens=2, batch=64
    )
    provenance = Provenance("abc", False, "b" * 64, "d" * 64)
    (row,) = Bench(random_backbone, cases, config, tmp_path / "out", provenance).run([("none", Noting)])
    follows = {case.id: case.follows for case in cases}
    assert len(edited) == 6
    later = [one for one in edited if follows[one] is not None]
    assert len(later) == 3
    assert all(edited.index(str(follows[one])) < edited.index(one) for one in later)
    if kind == "conflicts":
        assert row["recurring"]["subjects"] == 3 and row["recurring"]["edits"] == 6
    else:
        assert row["recurring"] is None
