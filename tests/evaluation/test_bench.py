"""The bench: groups of T edits, rows on disk that are not measured twice."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from liveedit.backbones import Backbone
from liveedit.editors.base import Editor
from liveedit.editors.none import NoEditor
from liveedit.errors import ConfigError
from liveedit.evaluation.bench import Bench, BenchConfig, Provenance, backbone_name
from liveedit.samples import Edit, EditCase

PROVENANCE = Provenance("abc", False, "b" * 64, "d" * 64)


class Counting(NoEditor):
    """Does nothing, and notes which edits it was given after which reset."""

    groups: list[list[str]] = []  # noqa: RUF012

    def reset(self) -> None:
        self.groups.append([])

    def _edit_one(self, edit_id: str, edit: Edit) -> dict[str, Any]:
        self.groups[-1].append(edit_id)
        return {}


@pytest.fixture(autouse=True)
def no_groups() -> None:
    Counting.groups = []


def bench_of(
    backbone: Backbone,
    cases: Sequence[EditCase],
    folder: Path,
    provenance: Provenance = PROVENANCE,
    **values: Any,
) -> Bench:
    settings: dict[str, Any] = {
        "edits": (4,),
        "few_edits_cases": 6,
        "max_new_tokens": 2,
        "batch": 64,
        **values,
    }
    config = BenchConfig(backbone="tiny-random", data="world", **settings)
    return Bench(backbone, cases, config, folder, provenance)


def groups() -> list[int]:
    return [len(group) for group in Counting.groups if group]


def make(backbone: Backbone) -> Editor:
    return Counting(backbone)


def test_small_numbers_of_edits_are_measured_in_groups(
    random_backbone: Backbone, eval_cases: tuple[EditCase, ...], tmp_path: Path
) -> None:
    (row,) = bench_of(random_backbone, eval_cases[:6], tmp_path).run([("none", make)])
    assert groups() == [4, 2]  # The incomplete last group is measured and counted.
    assert row["metrics"]["reliability"]["count"] == 6
    assert row["status"] == "complete"
    assert row["provenance"]["git_sha"] == "abc" and row["provenance"]["dirty"] is False
    answers = (tmp_path / "results" / "none-4-seed0.answers.jsonl").read_text(encoding="utf-8").splitlines()
    asked = sum(metric["count"] for metric in row["metrics"].values())
    assert len(answers) == asked
    assert json.loads((tmp_path / "results" / "none-4-seed0.json").read_text(encoding="utf-8")) == row


def test_seeds_choose_the_order(random_backbone: Backbone, eval_cases: tuple[EditCase, ...], tmp_path: Path) -> None:
    bench_of(random_backbone, eval_cases[:3], tmp_path, edits=(3,), few_edits_cases=3, seeds=(0, 1, 0)).run(
        [("none", make)]
    )
    first, second = (group for group in Counting.groups if group)  # Seed 0 is read back the second time.
    assert sorted(first) == sorted(second)
    assert first != second


def test_rows_are_measured_once_and_again_where_anything_differs(
    random_backbone: Backbone, eval_cases: tuple[EditCase, ...], tmp_path: Path
) -> None:
    cases = eval_cases[:2]
    first = bench_of(random_backbone, cases, tmp_path, edits=(2,)).run([("none", make)])
    assert groups() == [2]
    assert bench_of(random_backbone, cases, tmp_path, edits=(2,)).run([("none", make)]) == first
    assert groups() == [2]
    bench_of(random_backbone, cases, tmp_path, edits=(2,), max_new_tokens=3).run([("none", make)])
    assert groups() == [2, 2]
    other = Provenance("abc", False, "b" * 64, "e" * 64)
    bench_of(random_backbone, cases, tmp_path, other, edits=(2,), max_new_tokens=3).run([("none", make)])
    assert groups() == [2, 2, 2]


def test_the_length_limit_follows_the_longest_answer(
    random_backbone: Backbone, eval_cases: tuple[EditCase, ...], tmp_path: Path
) -> None:
    """So that no right answer is cut off and counted as broken."""
    short = bench_of(random_backbone, eval_cases[:2], tmp_path, edits=(2,), max_new_tokens=None)
    assert short.config.max_new_tokens == short.unedited.max_new_tokens == 16
    passage = "red and green and blue " * 8
    longest = replace(eval_cases[1], edit=replace(eval_cases[1].edit, answer=passage))
    long = bench_of(random_backbone, [eval_cases[0], longest], tmp_path, edits=(2,), max_new_tokens=None)
    assert long.config.max_new_tokens == 2 + len(random_backbone.tokenize([passage])[0]) > 40
    (row,) = long.run([("none", make)])
    assert row["provenance"]["config"]["max_new_tokens"] == long.config.max_new_tokens


def test_more_edits_than_cases_are_refused(
    random_backbone: Backbone, eval_cases: tuple[EditCase, ...], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="13 edits were requested and the data holds 12"):
        bench_of(random_backbone, eval_cases, tmp_path, edits=(13,))


def test_a_folder_names_its_backbone_by_its_last_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "my-llava"
    folder.mkdir()
    monkeypatch.chdir(folder)
    assert backbone_name(".") == backbone_name(str(folder)) == backbone_name(f"{folder}/") == "my-llava"
    assert backbone_name("tiny-llava") == "tiny-llava"
    assert backbone_name("organisation/model") == "organisation/model"
