"""Bootstrap intervals over cases, and figures by place in the sequence."""

from __future__ import annotations

import math

import numpy as np
import pytest

from liveedit.evaluation.by_order import edit_order
from liveedit.evaluation.case_intervals import case_intervals, interval_of_means
from liveedit.evaluation.lines import lines_of
from liveedit.evaluation.plots import draw_forgetting
from liveedit.evaluation.protocol import AskedProbe, Measurement
from liveedit.evaluation.report_tables import case_interval_table, ends_table
from liveedit.evaluation.scoring import ProbeScore
from liveedit.samples import Edit, EditCase, Probe, Question


def measurement(right: list[bool], locality: int = 0) -> Measurement:
    """Edits in order, each right or wrong, with wrong locality probes."""
    scores = []
    for place, exact in enumerate(right):
        edit = Edit(Question(f"q{place}"), "yes")
        case = EditCase(f"c{place}", edit)
        answer = "yes" if exact else "no"
        item = AskedProbe(case, case.reliability, -1)
        scores.append((item, ProbeScore.of("reliability", "answer", "yes", answer, 100.0 * exact)))
        for number in range(locality):
            probe = AskedProbe(case, Probe("text_locality", Question("other")), number)
            scores.append((probe, ProbeScore.of("text_locality", "answer", "yes", "no", None)))
    return Measurement(tuple(scores), (), ())


def test_equal_cases_have_an_interval_without_width() -> None:
    assert interval_of_means([[40.0, 60.0]] * 5) == [50.0, 50.0]


def test_the_interval_is_that_of_the_normal_approximation() -> None:
    values = np.random.default_rng(0).normal(50.0, 10.0, 400)
    low, high = interval_of_means([[value] for value in values])
    half = 1.96 * values.std() / math.sqrt(400)
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.15)
    assert [low, high] == interval_of_means([[value] for value in values]), "the same draws each time"


def test_whole_cases_are_drawn() -> None:
    """Ten equal probes of a case are one observation: the interval is as wide as with one probe each."""
    cases = [[100.0 * (number % 2)] for number in range(50)]
    assert interval_of_means([case * 10 for case in cases]) == interval_of_means(cases)


def test_intervals_are_by_metric_and_score() -> None:
    found = case_intervals([measurement([True] * 6 + [False] * 6, locality=2)])
    low, high = found["reliability"]["exact_match"]
    assert 0 < low < 50 < high < 100
    assert found["text_locality"] == {"exact_match": [0.0, 0.0], "broken": [100.0, 100.0]}, "none teacher-forced"
    assert case_intervals([measurement([True])]) == {}


def test_the_first_edits_against_the_last() -> None:
    found = edit_order([measurement([False] * 20 + [True] * 20)])
    assert found is not None
    assert found["first_edits"] == {"first": 1, "last": 10, "teacher_forced": 0.0, "exact_match": 0.0, "broken": 100.0}
    assert (found["last_edits"]["first"], found["last_edits"]["exact_match"]) == (31, 100.0)
    assert [one["exact_match"] for one in found["curve"]] == [0.0] * 5 + [100.0] * 5
    assert [one["last"] for one in found["curve"]] == list(range(4, 41, 4))


def test_short_sequences_and_several_groups_have_no_order() -> None:
    assert edit_order([measurement([True] * 10)]) is None
    assert edit_order([measurement([True] * 30)] * 2) is None


def test_both_are_in_the_report() -> None:
    measured = [measurement([False] * 20 + [True] * 20)]
    row = {
        "editor": "e",
        "backbone": "b",
        "data": "d",
        "edits": 40,
        "seed": 0,
        "status": "complete",
        "metrics": {"reliability": {"exact_match": 50.0, "count": 40}},
        "intervals": case_intervals(measured),
        "order": edit_order(measured),
    }
    lines = lines_of([row])
    intervals, ends = case_interval_table(lines), ends_table(lines)
    assert intervals is not None and ends is not None
    assert intervals.rows[0][-1].count("[") == 3
    assert ends.rows[0][-4:] == ("10", "0.0 / 0.0 / 100.0", "100.0 / 100.0 / 0.0", "+100.0")
    older = lines_of([{key: value for key, value in row.items() if key not in ("intervals", "order")}])
    assert case_interval_table(older) is None and ends_table(older) is None
    assert draw_forgetting(older, "t") is None
    pytest.importorskip("matplotlib")
    figure = draw_forgetting(lines, "t")
    assert figure is not None
    (line,) = figure.axes[1].get_lines()
    assert list(line.get_xdata()) == list(range(4, 41, 4))
    assert list(line.get_ydata()) == [0.0] * 5 + [100.0] * 5
