"""EasyEdit's requests: what each key becomes, and the way back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from liveedit.datasets.easyedit import EASYEDIT, row_of
from liveedit.datasets.row_files import write_rows
from liveedit.samples import Edit, EditCase, Probe, Question

ROW: dict[str, Any] = {
    "prompt": "What breed is  it?\n",
    "target_new": "a collie",
    "ground_truth": "a dog",
    "subject": "the dog",
    "image": "dog.png",
    "rephrase_prompt": "Which breed?",
    "image_rephrase": "again.png",
    "locality_inputs": {
        "text": {"prompt": ["Who wrote Emma?", "And Ulysses?"], "ground_truth": ["Austen", "Joyce"]},
        "vision": {"prompt": "What is it?", "ground_truth": "a cat", "image": "cat.png"},
        "own": {"prompt": ["Where?", None], "ground_truth": [["a", "b"]], "image": ["dog.png"]},
    },
    "portability_inputs": {"hop": {"prompt": "From which country?", "ground_truth": "Scotland"}},
}


def read(folder: Path, *rows: dict[str, Any]) -> tuple[EditCase, ...]:
    (folder / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
    return EASYEDIT.read(folder / "rows.json", "")


def test_a_request_becomes_an_edit_with_its_probes(tmp_path: Path) -> None:
    dog, again = Path("dog.png"), Path("again.png")

    def edited(prompt: str, image: Path = dog) -> Question:
        return Question(prompt, image, "the dog", "what breed is it")

    (case,) = read(tmp_path, {**ROW, "locality_inputs": {**ROW["locality_inputs"], "own": {"prompt": None}}})
    assert case == EditCase(
        "rows-0",
        Edit(edited("What breed is  it?\n"), "a collie"),
        (
            Probe("text_generality", edited("Which breed?"), "a collie"),
            Probe("modal_generality", edited("What breed is  it?\n", again), "a collie"),
            Probe("joint_generality", edited("Which breed?", again), "a collie"),
            Probe("text_locality", Question("Who wrote Emma?"), "Austen"),
            Probe("text_locality", Question("And Ulysses?"), "Joyce"),
            Probe("modal_locality", Question("What is it?", Path("cat.png")), "a cat"),
            Probe("portability", Question("From which country?", dog, "the dog"), "Scotland"),
        ),
        "other",
        "a dog",
    )


def test_other_spellings_mean_the_same(tmp_path: Path) -> None:
    first = read(tmp_path, {**ROW, "locality_inputs": None})
    spelled = {**ROW, "rephrase_image": "again.png", "rephrase_prompt": ["Which breed?"], "locality_inputs": {}}
    del spelled["image_rephrase"]
    assert read(tmp_path, spelled) == first


def test_alternatives_are_no_label_and_the_own_image_has_its_name(tmp_path: Path) -> None:
    inputs = {"own": {"prompt": ["Where?"], "ground_truth": [["a", "b"]], "image": ["dog.png"]}}
    (case,) = read(tmp_path, {**ROW, "ground_truth": ["x", "y"], "locality_inputs": inputs})
    assert case.answer_before is None
    assert case.named("same_image_locality") == (
        Probe("same_image_locality", Question("Where?", Path("dog.png")), None),
    )


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"target_new": None}, "target_new"),
        ({"rephrase_prompt": 3}, "rephrase_prompt"),
        ({"locality_inputs": {"text": "?"}}, "locality_inputs.text"),
        ({"locality_inputs": {"text": {"prompt": ["a", 3]}}}, "locality_inputs.text.[1].prompt"),
        ({"portability_inputs": {"hop": {"prompt": "a", "image": 3}}}, "portability_inputs.hop.image"),
    ],
)
def test_a_wrong_value_names_its_place(tmp_path: Path, changes: dict[str, Any], key: str) -> None:
    problems = []
    (tmp_path / "rows.json").write_text(json.dumps([{**ROW, "locality_inputs": None, **changes}]), encoding="utf-8")
    assert EASYEDIT.read(tmp_path / "rows.json", on_error=problems.append) == ()
    assert [problem.key for problem in problems] == [key]


@pytest.mark.parametrize("name", ["rows.json", "rows.csv"])
def test_the_way_back_loses_nothing_that_an_edit_holds(tmp_path: Path, name: str) -> None:
    """Several rephrasings and locality questions of every kind; also without any."""
    edited = Question(" What?\n", Path("a.png"), "s", "what")
    probes = (
        Probe("text_generality", Question("Which?", Path("a.png"), "s", "what"), "x"),
        Probe("text_generality", Question("5", Path("a.png"), "s", "what"), "x"),
        Probe("text_locality", Question("Who?"), "she"),
        Probe("same_image_locality", Question("Where?", Path("a.png")), "here"),
        Probe("modal_locality", Question("Where?", Path("b.png")), None),
    )
    cases = (
        EditCase("rows-0", Edit(edited, "x"), probes, "other", "y"),
        EditCase("rows-1", Edit(edited, "x"), (probes[1], probes[4]), "other"),
        EditCase("rows-2", Edit(Question("Who?", relation="who"), "3"), (), "number"),
    )
    write_rows(tmp_path / name, [row_of(case) for case in cases])
    assert EASYEDIT.read(tmp_path / name, "") == cases
