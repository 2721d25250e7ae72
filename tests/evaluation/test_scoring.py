import math

import pytest

from liveedit.answers import same_answer
from liveedit.errors import InvalidInputError
from liveedit.evaluation.scoring import (
    PROBE_NAMES,
    ProbeScore,
    Spread,
    contains,
    normalize_answer,
    student_t,
    summarize,
    summarize_by_answer_type,
    token_f1,
)


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("  The Red   Car. ", "red car"),
        ("A man, holding an umbrella!", "man holding umbrella"),
        ("“Yes”", "yes"),
        ("Ｔｏｋｙｏ", "tokyo"),  # full-width letters: NFKC
        ("Straße", "strasse"),
        ("don’t", "don't"),
        ("\ufeffcat\u200b", "cat"),
        ("cat , dog", "cat dog"),
        ("no answer …", "no answer"),
    ],
)
def test_what_is_only_form_is_taken_off(text, normal):
    assert normalize_answer(text) == normal


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("3.5", "3.5"),
        (".5.", ".5"),
        ("...5", "5"),
        ("−5", "-5"),
        ("1,000", "1000"),
        ("1,234,567.8", "1234567.8"),
        ("1,2,3", "1,2,3"),
        ("10²", "10²"),
        ("2½", "2½"),
        ("50%", "50%"),
        ("$5", "$5"),
        ("#1", "#1"),
        ("2.50", "2.50"),
        ("10:30", "10:30"),
        ("C++", "c++"),
        (":-)", ":-)"),
        ("->", "->"),
        ("none", "none"),
        ("two", "two"),
    ],
)
def test_numbers_and_odd_strings_survive(text, normal):
    assert normalize_answer(text) == normal


@pytest.mark.parametrize(
    ("text", "normal"),
    [("A", "a"), ("the", "the"), ("Vitamin A", "vitamin a"), ("?", "?"), ("The A Team", "team"), ("", "")],
)
def test_no_answer_vanishes(text, normal):
    assert normalize_answer(text) == normal


def test_what_differs_in_value_does_not_match():
    assert same_answer("The cat.", "cat")
    assert same_answer("1,000", "1000")
    assert same_answer("", "")
    for answer, expected in [
        ("3.5", "35"),
        ("-5", "5"),
        ("10²", "102"),
        ("C++", "C"),
        ("A", "B"),
        ("none", "0"),
        ("Vitamin A", "Vitamin"),
        ("", "cat"),
    ]:
        assert not same_answer(answer, expected)


@pytest.mark.parametrize("text", ["The A. Team", "1,000 (of 2,000)", ":-) .5", "İstanbul", "x² + ½", "?!", "a the a"])
def test_normalisation_is_idempotent(text):
    once = normalize_answer(text)
    assert normalize_answer(once) == once


def test_contains_looks_for_whole_words_side_by_side():
    assert contains("It is a red car.", "the red car")
    assert contains("vitamin A is good", "Vitamin A")
    assert contains("", "")
    assert not contains("concatenate", "cat")
    assert not contains("10", "1")
    assert not contains("red or blue car", "red car")
    assert not contains("car red", "red car")
    assert not contains("anything", "")
    assert not contains("", "cat")


@pytest.mark.parametrize(
    ("answer", "expected", "percent"),
    [
        ("red car", "red car", 100.0),
        ("blue", "red", 0.0),
        # 1 word in common; P = 1/3, R = 1/2; F1 = 2 * (1/6) / (5/6) = 2/5
        ("big red truck", "red car", 40.0),
        # words count as often as they occur: 1 in common of 3 given, 1 expected; P = 1/3, R = 1; F1 = 1/2
        ("red red red", "red", 50.0),
        ("car red", "red car", 100.0),
        ("", "", 100.0),
        ("", "red", 0.0),
        ("red", "", 0.0),
    ],
)
def test_token_f1(answer, expected, percent):
    assert token_f1(answer, expected) == pytest.approx(percent)


def test_probe_score_scores_the_answer():
    score = ProbeScore.of("reliability", "colour", "red car", "A big red car", 75.0)
    # big, red, car against red, car: P = 2/3, R = 1, F1 = 4/5
    assert (score.exact, score.contains, score.f1) == (False, True, pytest.approx(80.0))
    assert score.teacher_forced == 75.0


@pytest.mark.parametrize(
    ("answer", "broken"),
    [("Red.", False), ("blue", False), ("the green", False), ("red blue", True), ("bl", True), ("", True)],
)
def test_an_answer_that_is_neither_expected_nor_acceptable_is_broken(answer: str, broken: bool):
    assert ProbeScore.of("reliability", "colour", "red", answer, None, ["Blue", "green"]).broken is broken


@pytest.mark.parametrize("teacher_forced", [-1.0, 100.5, math.nan])
def test_probe_score_refuses_what_is_no_percent(teacher_forced):
    with pytest.raises(InvalidInputError, match="teacher_forced"):
        ProbeScore.of("reliability", "colour", "red", "red", teacher_forced)


def scores() -> list[ProbeScore]:
    return [
        ProbeScore.of("text_locality", "name", "Bob", "Bob", None),
        ProbeScore.of("reliability", "colour", "red", "red", 100.0),
        ProbeScore.of("reliability", "colour", "red", "dark red", 50.0),
        ProbeScore.of("reliability", "name", "Ann", "Bob", 0.0, ("the bob",)),
    ]


def test_summary_is_the_mean_of_each_metric():
    summary = summarize(scores(), {"text_locality": 2, "modal_locality": 3, "cross_modal": 0})
    assert list(summary) == ["reliability", "text_locality", "modal_locality"]
    assert summary["reliability"] == {
        "teacher_forced": pytest.approx(50.0),
        "exact_match": pytest.approx(100 / 3),
        "contains": pytest.approx(200 / 3),
        "f1": pytest.approx((100 + 200 / 3 + 0) / 3),
        "broken": pytest.approx(100 / 3),
        "count": 3,
        "left_out": 0,
    }
    assert summary["text_locality"]["teacher_forced"] is None
    assert summary["text_locality"]["exact_match"] == 100.0
    assert (summary["text_locality"]["count"], summary["text_locality"]["left_out"]) == (1, 2)
    assert summary["modal_locality"] == {
        "teacher_forced": None,
        "exact_match": None,
        "contains": None,
        "f1": None,
        "broken": None,
        "count": 0,
        "left_out": 3,
    }
    assert summarize([]) == {}


def test_summary_refuses_unknown_probes():
    with pytest.raises(InvalidInputError, match="t_loc"):
        summarize([], {"t_loc": 1})


def test_summary_by_answer_type():
    summary = summarize_by_answer_type(scores(), {"number": {"modal_locality": 4}})
    assert list(summary) == ["colour", "name", "number"]
    assert summary["colour"]["reliability"]["teacher_forced"] == 75.0
    assert summary["colour"]["reliability"]["count"] == 2
    assert summary["name"]["reliability"]["exact_match"] == 0.0
    assert summary["number"] == {"modal_locality": summarize([], {"modal_locality": 4})["modal_locality"]}


def test_probe_names_are_those_of_the_samples():
    assert PROBE_NAMES[0] == "reliability"
    assert len(PROBE_NAMES) == 11


@pytest.mark.parametrize(
    # The column for 95 %, two-sided, of any printed table of Student's t.
    ("freedom", "critical"),
    [
        (1, 12.706),
        (2, 4.303),
        (3, 3.182),
        (4, 2.776),
        (5, 2.571),
        (9, 2.262),
        (10, 2.228),
        (29, 2.045),
        (30, 2.042),
        (120, 1.980),
    ],
)
def test_student_t_is_that_of_the_printed_table(freedom, critical):
    assert student_t(freedom) == pytest.approx(critical, abs=5.1e-4)


def test_spread_of_three_seeds():
    spread = Spread.of([90.0, 92.0, 97.0])
    # mean 93; deviations -3, -1, 4; variance (9 + 1 + 16) / 2 = 13; half width 4.303 * sqrt(13 / 3) = 8.957
    assert spread.mean == pytest.approx(93.0)
    assert spread.std == pytest.approx(math.sqrt(13))
    assert (spread.low, spread.high) == (pytest.approx(84.043, abs=2e-3), pytest.approx(101.957, abs=2e-3))
    assert spread.seeds == 3


def test_one_seed_says_nothing_of_the_spread():
    assert Spread.of([90.0]) == Spread(90.0, None, None, None, 1)
    with pytest.raises(InvalidInputError):
        Spread.of([])
    with pytest.raises(InvalidInputError):
        student_t(0)
