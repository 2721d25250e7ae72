"""Runs do not see each other: two models in one process, groups of a bench, and what is measured before editing."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from liveedit.backbones import Backbone, load_backbone
from liveedit.edited.model import EditedModel
from liveedit.editors.base import Editor
from liveedit.editors.ft import FineTuneConfig, FineTuneLast
from liveedit.errors import InvalidInputError
from liveedit.evaluation.bench import Bench, BenchConfig, Provenance
from liveedit.evaluation.robustness.measuring import Robustness, RobustnessConfig
from liveedit.samples import EditCase, Question

PROVENANCE = Provenance(None, None, "b" * 64, "d" * 64)
PROMPT = "What is this creature called?"


def test_two_models_in_one_process_do_not_see_each_other(
    tiny_llava: Backbone, picture: Callable[[int], Image.Image]
) -> None:
    other = load_backbone("tiny-llava", device="cpu")

    def logits_of(backbone: Backbone) -> torch.Tensor:
        with torch.no_grad():
            return backbone.logits(backbone.encode([Question(PROMPT, picture(1))]))

    before = logits_of(other)
    with EditedModel.load(tiny_llava) as first, EditedModel.load(other) as second:
        first.edit(picture(1), PROMPT, "Bruvak")
        assert torch.equal(logits_of(other), before) and len(second) == 0
        second.edit(picture(1), PROMPT, "Helmodin")
        assert [model.ask(picture(1), PROMPT).text for model in (first, second)] == ["Bruvak", "Helmodin"]
    assert torch.equal(logits_of(other), before) and torch.equal(logits_of(tiny_llava), before)


def config_of(**values: Any) -> BenchConfig:
    return BenchConfig(backbone="tiny-random", data="world", max_new_tokens=4, **values)


@pytest.mark.parametrize("measuring", [Bench, Robustness])
def test_nothing_is_measured_on_a_model_that_is_edited(
    tiny_llava: Backbone, eval_cases: tuple[EditCase, ...], tmp_path: Path, measuring: Any
) -> None:
    """The answers of the unedited model would be edited ones."""
    configs = {Bench: config_of(edits=(1,)), Robustness: RobustnessConfig(backbone="tiny", data="world", edits=1)}
    given = (tiny_llava, eval_cases[:2], configs[measuring], tmp_path / "out", PROVENANCE)
    with EditedModel.load(tiny_llava), pytest.raises(InvalidInputError, match="already has an edited model"):
        measuring(*given)
    measuring(*given)


def test_a_group_of_edits_does_not_see_the_groups_before_it(
    random_backbone: Backbone, eval_cases: tuple[EditCase, ...], tmp_path: Path
) -> None:
    """With edits that change the weights of the model."""

    def make(backbone: Backbone) -> Editor:
        return FineTuneLast(backbone, FineTuneConfig(rate=1e-2, steps=3))

    def rows_of(cases: Sequence[EditCase], folder: Path) -> list[dict[str, Any]]:
        bench = Bench(random_backbone, cases, config_of(edits=(1,), few_edits_cases=len(cases)), folder, PROVENANCE)
        bench.run([("editor", make)])
        lines = (folder / "results" / "editor-1-seed0.answers.jsonl").read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines]

    cases = eval_cases[:3]
    together = rows_of(cases, tmp_path / "together")
    alone = [row for case in cases for row in rows_of([case], tmp_path / case.id)]
    assert sorted(together, key=str) == sorted(alone, key=str)
    assert any(row["answer"] != row["unedited"] for row in together if row["unedited"]), "no edit changes an answer"
