"""The bench: groups of T edits, rows on disk that are not measured twice."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from liveedit.backbones import Backbone
from liveedit.editors.base import Editor
from liveedit.editors.none import NoEditor
from liveedit.errors import ConfigError
from liveedit.evaluation import kept_edits
from liveedit.evaluation.bench import Bench, BenchConfig, backbone_name
from liveedit.evaluation.kept_edits import KeptEdits
from liveedit.evaluation.protocol import probes_of
from liveedit.evaluation.provenance import Provenance
from liveedit.samples import Edit, EditCase, Probe, Question

PROVENANCE = Provenance("abc", False, "b" * 64, "d" * 64)


class Counting(NoEditor):
    """Does nothing, and notes which edits it was given after which reset."""

    made_by: list[list[str]] = []  # noqa: RUF012

    def reset(self) -> None:
        self.made_by.append([])

    def _edit_one(self, edit_id: str, edit: Edit) -> dict[str, Any]:
        self.made_by[-1].append(edit_id)
        return {}


@pytest.fixture(autouse=True)
def no_groups() -> None:
    Counting.made_by = []


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
    return [len(group) for group in Counting.made_by if group]


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
    first, second = (group for group in Counting.made_by if group)  # Seed 0 is read back the second time.
    assert sorted(first) == sorted(second)
    assert first != second


def test_rows_are_measured_once_and_again_where_anything_differs(
    random_backbone: Backbone, eval_cases: tuple[EditCase, ...], tmp_path: Path
) -> None:
    cases = eval_cases[:2]
    first = bench_of(random_backbone, cases, tmp_path, edits=(2,)).run([("none", make)])
    assert groups() == [2]
    later = replace(PROVENANCE, git_sha="def", command="typed later", threads=99, versions={"torch": "9.9"})
    assert bench_of(random_backbone, cases, tmp_path, later, edits=(2,)).run([("none", make)]) == first
    assert groups() == [2]
    bench_of(random_backbone, cases, tmp_path, edits=(2,), max_new_tokens=3).run([("none", make)])
    assert groups() == [2, 2]
    other = Provenance("abc", False, "b" * 64, "e" * 64)
    bench_of(random_backbone, cases, tmp_path, other, edits=(2,), max_new_tokens=3).run([("none", make)])
    assert groups() == [2, 2, 2]


@pytest.mark.parametrize(
    ("later", "asked_again"),
    [
        ({"command": "typed later", "threads": 99}, False),
        ({"git_sha": "def"}, True),
        ({"dirty": True}, True),
        ({"versions": {"torch": "9.9"}}, True),
        ({"load": {"dtype": "bfloat16"}}, True),
    ],
)
def test_unedited_answers_are_those_of_this_code_and_these_packages(
    random_backbone: Backbone,
    eval_cases: tuple[EditCase, ...],
    tmp_path: Path,
    later: dict[str, Any],
    asked_again: bool,
) -> None:
    cases = eval_cases[:2]
    bench_of(random_backbone, cases, tmp_path, edits=(2,)).run([("none", make)])
    again = bench_of(random_backbone, cases, tmp_path, replace(PROVENANCE, **later), edits=(2,))
    asked, _ = probes_of(cases)
    assert bool(again.unedited.missing(asked)) == asked_again


def test_edited_facts_are_asked_for_without_the_image_on_request(
    random_backbone: Backbone, eval_cases: tuple[EditCase, ...], tmp_path: Path
) -> None:
    cases = [
        replace(
            case,
            probes=(*case.probes, Probe("cross_modal", replace(case.edit.question, image=None), case.edit.answer)),
        )
        for case in eval_cases[:2]
    ]
    (plain,) = bench_of(random_backbone, cases, tmp_path, edits=(2,)).run([("none", make)])
    (row,) = bench_of(random_backbone, cases, tmp_path, edits=(2,), cross_modal=True).run([("none", make)])
    assert "cross_modal" not in plain["metrics"] and "cross_modal" not in plain["provenance"]["config"]
    assert row["metrics"]["cross_modal"]["count"] >= 2 and row["provenance"]["config"]["cross_modal"] is True
    assert {name: figures for name, figures in row["metrics"].items() if name != "cross_modal"} == plain["metrics"]


class Remembering(NoEditor):
    """Makes no difference, remembers its edits, and is interrupted before the edit number `stop_at`."""

    stop_at = 0

    def __init__(self, backbone: Backbone):
        super().__init__(backbone)
        self.active: list[str] = []
        self.made: list[str] = []

    def reset(self) -> None:
        self.active = []

    def _edit_one(self, edit_id: str, edit: Edit) -> dict[str, Any]:
        if len(self.made) + 1 == self.stop_at:
            raise KeyboardInterrupt
        self.active.append(edit_id)
        self.made.append(edit_id)
        return {"refine_steps": len(self.active)}

    def edited_state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return {"count": torch.tensor(len(self.active))}, {"ids": self.active}

    def restore(self, tensors: dict[str, Tensor], note: dict[str, Any]) -> None:
        assert int(tensors["count"]) == len(note["ids"])
        self.active = list(note["ids"])


@pytest.mark.parametrize("changed", [False, True])
def test_an_interrupted_run_resumes_from_the_last_saved_edit(
    random_backbone: Backbone,
    eval_cases: tuple[EditCase, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    changed: bool,
) -> None:
    """With other settings its edits are not those of this run: it starts again."""
    monkeypatch.setattr(kept_edits, "_SECONDS", 0.0)
    monkeypatch.setattr(kept_edits, "_MOST_SHARE", 1e9)
    cases, editors = eval_cases[:5], [Remembering(random_backbone) for _ in range(3)]
    editors[0].stop_at = 4
    with pytest.raises(KeyboardInterrupt):
        bench_of(random_backbone, cases, tmp_path, edits=(5,)).run([("none", lambda backbone: editors[0])])
    assert len(editors[0].made) == 3
    now = replace(PROVENANCE, backbone_digest="e" * 64) if changed else replace(PROVENANCE, command="2", threads=99)
    bench = bench_of(random_backbone, cases, tmp_path, now, edits=(5,))
    (row,) = bench.run([("none", lambda backbone: editors[1])])
    assert len(editors[1].made) == (5 if changed else 2)
    (whole,) = bench_of(random_backbone, cases, tmp_path / "whole", edits=(5,)).run([("none", lambda _: editors[2])])
    restored = [value["provenance"]["restored_edits"] for value in (row, whole)]
    assert restored == [0 if changed else 3, 0]
    for value in (row, whole):  # Times, and the provenance that was changed.
        for name in ("milliseconds_per_edit", "seconds", "provenance", "row_digest"):
            del value[name]
    assert row == whole and row["refine_steps"]["mean"] == 3
    assert not list(tmp_path.rglob("*.edits.safetensors"))


def test_what_an_editor_makes_together_is_made_and_restored_as_a_whole(
    random_backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept_edits, "_SECONDS", 0.0)
    monkeypatch.setattr(kept_edits, "_MOST_SHARE", 1e9)

    class InPairs(Remembering):
        def groups(self, edits: Sequence[Edit]) -> list[list[int]]:
            return [[1, 4], [0, 3], [2]]

    file, edits = tmp_path / "kept.safetensors", [(name, Edit(Question("?"), "red")) for name in "abcde"]
    first, second = InPairs(random_backbone), InPairs(random_backbone)
    first.stop_at = 4
    with pytest.raises(KeyboardInterrupt):
        KeptEdits(file, {}).make(first, edits)
    assert first.made == list("bea")  # The second pair is not whole, and not kept.
    kept, seen = KeptEdits(file, {}), list[int]()
    records = kept.make(second, edits, lambda done, total: seen.append(done))
    assert [record.edit_id for record in records] == list("abcde")
    assert (kept.restored, second.made, seen) == (2, list("adc"), [1, 2, 3, 4, 5])


def test_damaged_kept_edits_are_made_again(random_backbone: Backbone, tmp_path: Path) -> None:
    file = tmp_path / "kept.safetensors"
    file.write_bytes(b"not tensors")
    editor = Remembering(random_backbone)
    edits = [(name, Edit(Question("?"), "red")) for name in "abc"]
    assert [record.edit_id for record in KeptEdits(file, {}).make(editor, edits)] == list("abc") == editor.made


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
