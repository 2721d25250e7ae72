"""Perplexity and agreement as columns of the bench."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from liveedit.backbones import Backbone
from liveedit.editors.ft import FineTuneLast
from liveedit.editors.none import NoEditor
from liveedit.evaluation.bench import Bench, BenchConfig
from liveedit.evaluation.provenance import Provenance
from liveedit.evaluation.report import write_report
from liveedit.samples import Edit, EditCase, Probe, Question

CASES = tuple(
    EditCase(
        f"passage-{number}",
        Edit(Question(f"Say something of number {number}"), answer),
        (Probe("text_locality", Question(f"Say {other}"), other),),
        "sentence",
    )
    for number, (answer, other) in enumerate([("the well is deep", "red hat"), ("a red star", "teal bread")])
)


def rows_of(backbone: Backbone, folder: Path, *editors: type) -> list[dict]:
    config = BenchConfig(backbone="tiny-llava", data="passages", edits=(2,), few_edits_cases=2, passages=True)
    bench = Bench(backbone, CASES, config, folder, Provenance(None, None, "b", "d"))
    return bench.run([(kind.name, kind) for kind in editors])


def test_the_unedited_model_agrees_with_itself_and_its_perplexity_is_that_of_its_logits(
    tiny_llava: Backbone, tmp_path: Path
) -> None:
    (row,) = rows_of(tiny_llava, tmp_path, NoEditor)
    expected = []
    for case in CASES:
        inputs = tiny_llava.encode([case.edit.question], [case.edit.answer])
        with torch.no_grad():
            logits = tiny_llava.logits(inputs)[0].double().log_softmax(-1)
        places = inputs.answer_mask[0].nonzero().flatten()[:-1]
        nats = -torch.stack([logits[place - 1, inputs.input_ids[0, place]] for place in places])
        expected.append(nats.mean().exp().item())
    assert row["agreement"] == 100
    assert row["perplexity"]["mean"] == pytest.approx(sum(expected) / 2, rel=1e-4)


def test_edits_lower_it_and_the_report_has_a_table_of_its_own(tiny_llava: Backbone, tmp_path: Path) -> None:
    before, after = rows_of(tiny_llava, tmp_path, NoEditor, FineTuneLast)
    assert after["perplexity"]["corpus"] < before["perplexity"]["corpus"] / 2
    assert after["agreement"] <= 100
    report = write_report([before, after], tmp_path / "report").read_text(encoding="utf-8")
    assert "Passages" in report and "Corpus perplexity" in report
