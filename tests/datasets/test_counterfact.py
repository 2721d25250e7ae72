import json
import os
from pathlib import Path

import pytest

from liveedit.datasets import RowError, check, read
from liveedit.datasets.counterfact import COUNTERFACT
from liveedit.evaluation.protocol import probes_of
from liveedit.samples import Edit, EditCase, Probe, Question

DATA = Path(os.environ.get("LIVEEDIT_DATA", Path(__file__).parents[2] / ".." / "shared" / "data"))

FLAT = {
    "case_id": 7,
    "prompt": "The mother tongue of Danielle  Darrieux is ",
    "target_new": "English",
    "subject": "Danielle Darrieux",
    "ground_truth": "French",
    "rephrase_prompt": "It rained.\n\nDanielle Darrieux, a native",
    "locality_prompt": "Michel Rocard is a native speaker of",
    "locality_ground_truth": "French",
}

ROME = {
    "case_id": 7,
    "pararel_idx": 2796,
    "requested_rewrite": {
        "prompt": "The mother tongue of {} is",
        "relation_id": "P103",
        "target_new": {"str": "English", "id": "Q1860"},
        "target_true": {"str": "French", "id": "Q150"},
        "subject": "Danielle Darrieux",
    },
    "paraphrase_prompts": ["It rained.\nDanielle Darrieux, a native", "Danielle Darrieux spoke the language"],
    "neighborhood_prompts": ["Michel Rocard is a native speaker of", "Robert Schuman spoke the language", " "],
    "attribute_prompts": ["Julia Roberts's mother tongue is"],
    "generation_prompts": ["Danielle Darrieux was born in"],
}


def write(folder: Path, *rows: object) -> Path:
    file = folder / "rows.json"
    file.write_text(json.dumps(rows), encoding="utf-8")
    return file


def test_a_flat_row_becomes_an_edit_and_two_probes_with_its_white_space(tmp_path):
    relation = "the mother tongue of danielle darrieux is"

    def about_her(prompt: str) -> Question:
        return Question(prompt, None, "Danielle Darrieux", relation)

    assert COUNTERFACT.read(write(tmp_path, FLAT)) == (
        EditCase(
            id="7",
            edit=Edit(about_her("The mother tongue of Danielle  Darrieux is"), "English"),
            probes=(
                Probe("text_generality", about_her("It rained.\n\nDanielle Darrieux, a native"), "English"),
                Probe("text_locality", Question("Michel Rocard is a native speaker of"), "French"),
            ),
            answer_type="other",
        ),
    )


def test_a_row_of_rome_becomes_an_edit_with_a_probe_for_each_prompt(tmp_path):
    def about_her(prompt: str) -> Question:
        return Question(prompt, None, "Danielle Darrieux", "P103")

    assert COUNTERFACT.read(write(tmp_path, ROME)) == (
        EditCase(
            id="7",
            edit=Edit(about_her("The mother tongue of Danielle Darrieux is"), "English"),
            probes=(
                Probe("text_generality", about_her("It rained.\nDanielle Darrieux, a native"), "English"),
                Probe("text_generality", about_her("Danielle Darrieux spoke the language"), "English"),
                Probe("text_locality", Question("Michel Rocard is a native speaker of"), "French"),
                Probe("text_locality", Question("Robert Schuman spoke the language"), "French"),
            ),
            answer_type="other",
        ),
    )


def test_both_forms_in_one_file_and_ids_where_there_are_none(tmp_path):
    bare = {key: value for key, value in FLAT.items() if key != "case_id"}
    cases = COUNTERFACT.read(write(tmp_path, FLAT, {**ROME, "case_id": 8}, bare, {**FLAT, "id": "mine"}))
    assert [case.id for case in cases] == ["7", "8", "rows-2", "mine"]


def test_a_neighbour_that_another_row_edits_is_left_out_and_any_other_stays(tmp_path):
    other = {**FLAT, "case_id": 8, "prompt": "michel rocard is a native speaker of", "subject": "Michel Rocard"}
    other["locality_prompt"] = "Robert Schuman spoke the language"
    cases = COUNTERFACT.read(write(tmp_path, FLAT, other))
    asked, left_out = probes_of(cases)
    assert [item.probe.name for item in left_out] == ["text_locality"]
    kept = [item.probe.question.prompt for item in asked if item.probe.name == "text_locality"]
    assert kept == ["Robert Schuman spoke the language"]


@pytest.mark.parametrize(
    ("row", "change", "key"),
    [
        (FLAT, {"target_new": None}, "target_new"),
        (FLAT, {"locality_prompt": 3}, "locality_prompt"),
        (ROME, {"requested_rewrite": "text"}, "requested_rewrite"),
        (ROME, {"paraphrase_prompts": [3]}, "paraphrase_prompts"),
        (ROME, {"requested_rewrite": {**ROME["requested_rewrite"], "prompt": "no place"}}, "requested_rewrite.prompt"),
        (ROME, {"requested_rewrite": {**ROME["requested_rewrite"], "target_new": "x"}}, "requested_rewrite.target_new"),
        (
            ROME,
            {"requested_rewrite": {**ROME["requested_rewrite"], "target_new": {"id": "Q1"}}},
            "requested_rewrite.target_new.str",
        ),
    ],
)
def test_what_is_wrong_names_row_and_key(tmp_path, row, change, key):
    with pytest.raises(RowError) as caught:
        read("counterfact", write(tmp_path, {**row, "case_id": 1}, {**row, **change}))
    assert (caught.value.row, caught.value.key) == (1, key)


def test_check_knows_every_key_of_both_forms(tmp_path):
    report = check("counterfact", write(tmp_path, FLAT, {**ROME, "case_id": 8}))
    assert (report.ok, report.rows_read, report.unused_keys) == (True, 2, {})
    assert report.probes == {"text_generality": 3, "text_locality": 3}


@pytest.mark.parametrize("name", ["counterfact-edit.json", "counterfact-train.json"])
def test_every_row_of_the_real_files(name):
    file = DATA / "counterfact" / name
    if not file.is_file():
        pytest.skip(f"counterfact/{name} is not under LIVEEDIT_DATA ({DATA})")
    raw = json.loads(file.read_text(encoding="utf-8"))
    cases = read("counterfact", file)
    assert len(cases) == len(raw) == 10_000
    for row, case in zip(raw, cases, strict=True):
        rephrased, neighbour = case.probes
        assert (case.id, case.edit.question.prompt) == (str(row["case_id"]), row["prompt"].strip())
        assert case.edit.answer == rephrased.answer == row["target_new"] != row["ground_truth"]
        assert (rephrased.question.prompt, rephrased.question.scope) == (
            row["rephrase_prompt"].strip(),
            case.edit.scope,
        )
        assert (neighbour.question.prompt, neighbour.answer) == (row["locality_prompt"], row["locality_ground_truth"])
        assert row["subject"] in case.edit.question.prompt
