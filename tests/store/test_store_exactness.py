"""The benchmark of 10,000 edits, small: restarted, moved and travelled in time, logits are the same bits."""

from __future__ import annotations

from pathlib import Path

import pytest

from liveedit.backbones import Backbone

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def test_edits_come_back_to_the_bit(tiny_llava: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import ten_thousand

    given = ten_thousand.settings(["--edits", "200", "--revisions", "10", "--questions", "12", "--seed", "3"])
    figures = ten_thousand.measure(tiny_llava, tmp_path, given)
    assert ten_thousand.all_well(figures), figures
    assert set(figures["bit_equal"]) == {"restart", "host", "bundle"}
    assert figures["revisions"] > figures["edits"] > figures["active"] > 100, "nothing was undone"
    assert figures["questions_with_other_logits_than_unedited"] >= 3, "hardly an edit fires: the test is vacuous"
    assert figures["time_travel"]["different_logits_among_them"] >= 3


def test_the_benchmark_would_notice_an_edit_that_does_not_come_back(
    tiny_llava: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import ten_thousand

    edited, _ = ten_thousand.fill(tiny_llava, tmp_path / "edits.db", 20, 12, 3)
    edit_id = min(edited.ledger.active)
    edited.ledger.active.discard(edit_id)
    assert not ten_thousand.opened(edited, tmp_path / "edits.db")[0]
    edited.ledger.active.add(edit_id)
    assert ten_thousand.opened(edited, tmp_path / "edits.db")[0]
    last = len(edited.ledger.changes)
    edited.experts.update(dict.fromkeys(edited.experts, edited.experts[edit_id]))
    assert last in ten_thousand.time_travel(edited, last + 1, 3)["differing"]
