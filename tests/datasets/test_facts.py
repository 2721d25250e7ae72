"""Made-up facts: the same cases for the same seed, and probes that measure what they say."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path

import pytest

from liveedit.datasets import check, read
from liveedit.datasets.facts import catalog, fact_cases, questions, write_facts
from liveedit.datasets.sources import open_data
from liveedit.errors import InvalidInputError
from liveedit.samples import EditCase, edited_scopes

COUNT = 400
KNOWN = {subject.name: subject for subject in catalog.known_subjects()}


@pytest.fixture(scope="module")
def training() -> tuple[EditCase, ...]:
    return fact_cases("train", 3, COUNT)


@pytest.fixture(scope="module")
def evaluation() -> tuple[EditCase, ...]:
    return fact_cases("eval", 3, COUNT)


def core_of(prompt: str, subject: str) -> str:
    """The wording of a question, without the subject and whatever stands before the question."""
    return prompt.replace(subject, "{}").split(": ")[-1].removeprefix("Hello. ")


def all_questions(cases: tuple[EditCase, ...]) -> list:
    return [probe.question for case in cases for probe in (case.reliability, *case.probes)]


def test_cases_depend_on_seed_and_part_and_the_cases_before_them(evaluation: tuple[EditCase, ...]) -> None:
    assert fact_cases("eval", 3, COUNT) == evaluation
    assert fact_cases("eval", 3, 60) == evaluation[:60]
    assert fact_cases("eval", 4, 60) != evaluation[:60]
    assert fact_cases("train", 3, 60) != evaluation[:60]
    assert fact_cases("eval", 3, 0) == ()


@pytest.mark.parametrize("arguments", [("eval", -1, 1), ("eval", 0, -1), ("test", 0, 1)])
def test_impossible_draws_are_refused(arguments: tuple) -> None:
    with pytest.raises(InvalidInputError):
        fact_cases(*arguments)


def test_the_catalogue_never_changes() -> None:
    """What the built-in language models were taught: another catalogue would want other weights."""
    subjects = catalog.known_subjects()
    assert len(KNOWN) == len(subjects) == 440
    assert (subjects[0].name, subjects[-1].name) == ("Emil Barnak", "Garton")
    assert sum(len(subject.relations) for subject in subjects) == 2520
    assert len(questions.vocabulary()) == 446
    facts = "\n".join(f"{subject.name}: {', '.join(subject.answers)}" for subject in subjects)
    assert hashlib.sha256(facts.encode()).hexdigest().startswith("e62bff24567c80c7")


def test_question_types_have_many_answers_and_distinct_wordings() -> None:
    relations = [relation for kind in catalog.RELATIONS.values() for relation in kind]
    known = {
        relation: {subject.answer(relation) for subject in KNOWN.values() if relation in subject.relations}
        for relation in relations
    }
    assert min(map(len, known.values())) >= 20
    every = [
        core
        for relation in relations
        for wording in ("train", "unseen_by_editor", "unseen")
        for core in questions.wordings(relation, wording)
    ]
    assert len(set(every)) == len(every) == 7 * len(relations)


def test_two_thousand_edits_without_a_conflict() -> None:
    cases = fact_cases("eval", 0, 2_500)
    assert len({case.edit.scope for case in cases}) == len({case.id for case in cases}) == 2_500
    assert Counter(case.tags[0] for case in cases)["known"] > 700


def test_generality_stays_in_the_scope_and_locality_outside(
    training: tuple[EditCase, ...], evaluation: tuple[EditCase, ...]
) -> None:
    for case in (*training, *evaluation):
        (rephrased,) = case.named("text_generality")
        assert rephrased.question.scope == case.edit.scope
        assert rephrased.question.prompt != case.edit.question.prompt
        assert rephrased.answer == case.edit.answer
        assert all(probe.question.scope != case.edit.scope for probe in case.named("text_locality"))
        assert len(case.probes) == 3 + ("known" in case.tags)


def test_questions_name_their_subject_and_ask_for_their_relation(
    training: tuple[EditCase, ...], evaluation: tuple[EditCase, ...]
) -> None:
    for question in all_questions((*training, *evaluation)):
        assert question.subject in question.prompt
        asked = core_of(question.prompt, question.subject)
        groups = ("train", "unseen_by_editor", "unseen")
        assert asked in {core for group in groups for core in questions.wordings(question.relation, group)}


def test_locality_asks_for_known_facts_of_both_kinds(evaluation: tuple[EditCase, ...]) -> None:
    for case in evaluation:
        probes = case.named("text_locality")
        for probe in probes:
            assert probe.answer == KNOWN[probe.question.subject].answer(probe.question.relation)
        assert probes[0].question.relation == case.edit.question.relation
        assert [probe.question.subject == case.edit.question.subject for probe in probes] == [
            False,
            False,
            *([True] if "known" in case.tags else []),
        ]


def test_known_facts_are_changed_and_unknown_subjects_are_strangers(
    training: tuple[EditCase, ...], evaluation: tuple[EditCase, ...]
) -> None:
    for case in (*training, *evaluation):
        question = case.edit.question
        if "known" in case.tags:
            assert case.answer_before == KNOWN[question.subject].answer(question.relation) != case.edit.answer
        else:
            assert question.subject not in KNOWN and case.answer_before is None
    assert 0.25 < sum("known" in case.tags for case in evaluation) / COUNT < 0.45


def test_editors_are_trained_on_nothing_that_they_are_measured_on(
    training: tuple[EditCase, ...], evaluation: tuple[EditCase, ...]
) -> None:
    held_out = {subject.name for subject in catalog.held_out_subjects()}
    assert len(held_out) == 165
    asked = all_questions(training)
    assert not held_out & {question.subject for question in asked}
    assert held_out >= {case.edit.question.subject for case in evaluation if "known" in case.tags}
    for question in asked:
        assert core_of(question.prompt, question.subject) in questions.wordings(question.relation, "train")
    for case in evaluation:
        (rephrased,) = case.named("text_generality")
        core = core_of(rephrased.question.prompt, rephrased.question.subject)
        assert core not in questions.wordings(rephrased.question.relation, "train")
    assert not {case.edit.answer for case in training} & catalog.HELD_OUT_ANSWERS
    tagged = [case for case in evaluation if "unseen answer" in case.tags]
    assert tagged and tagged == [case for case in evaluation if case.edit.answer in catalog.HELD_OUT_ANSWERS]


def test_a_written_file_is_read_back_whole(tmp_path: Path, evaluation: tuple[EditCase, ...]) -> None:
    file = write_facts(tmp_path / "deep" / "facts.json", "eval", 3, COUNT)
    assert read("zsre", file) == evaluation
    report = check("zsre", file)
    assert report.ok and not report.unused_keys and not report.empty_fields
    again = write_facts(tmp_path / "again.json", "eval", 3, COUNT)
    assert again.read_bytes() == file.read_bytes()
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["again.json", "deep", "facts.json"]


def test_facts_are_a_source_of_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIVEEDIT_CACHE", str(tmp_path))
    plain, seeded = open_data("facts", 10, fewest=5), open_data("facts:3", 10, fewest=20)
    assert (plain.name, seeded.name) == ("facts", "facts:3")
    assert plain.cases == fact_cases("eval", 0, 12)
    assert seeded.cases == fact_cases("eval", 3, 20)
    assert all(file.is_file() for file in (*plain.files, *seeded.files))
    assert len(open_data("facts", 100).cases) == 3_000
    assert not edited_scopes(plain.cases) & edited_scopes(seeded.cases)
    with pytest.raises(InvalidInputError, match="facts:SEED"):
        open_data("facts:x")


def test_rows_without_an_answer_to_edit_to_are_left_out_and_counted(tmp_path: Path) -> None:
    file = write_facts(tmp_path / "facts.json", "eval", 3, 6)
    rows = json.loads(file.read_text(encoding="utf-8"))
    rows[1]["alt"] = " "
    file.write_text(json.dumps(rows), encoding="utf-8")
    found = open_data(f"zsre:{file}")
    assert (len(found.cases), found.left_out) == (5, 1)
    assert rows[1]["id"] not in {case.id for case in found.cases}
