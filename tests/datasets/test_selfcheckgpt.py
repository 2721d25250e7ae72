import json
import os
from pathlib import Path

import pytest

from liveedit.datasets import RowError, check, read
from liveedit.datasets.selfcheckgpt import SELFCHECKGPT
from liveedit.samples import Edit, EditCase, Probe, Question

DATA = Path(os.environ.get("LIVEEDIT_DATA", Path(__file__).parents[2] / ".." / "shared" / "data"))

ROW = {
    "prompt": "This is a Wikipedia passage about choi jae-bong. ",
    "target_new": "Choi Jae-bong (Korean: 최재봉, born 19 June 1980) is a South Korean speed skater.",
    "subject": "choi jae-bong",
    "locality_prompt": "Description Map of South America.\nThis map has  a small scratch, historica",
    "locality_ground_truth": "l print or plan?",
}


def write(folder: Path, *rows: object) -> Path:
    file = folder / "rows.json"
    file.write_text(json.dumps(rows), encoding="utf-8")
    return file


def test_a_row_becomes_an_edit_and_one_probe_with_its_line_breaks(tmp_path):
    assert SELFCHECKGPT.read(write(tmp_path, ROW)) == (
        EditCase(
            id="rows-0",
            edit=Edit(
                Question("This is a Wikipedia passage about choi jae-bong.", None, "choi jae-bong"),
                ROW["target_new"],
            ),
            probes=(
                Probe(
                    "text_locality",
                    Question("Description Map of South America.\nThis map has  a small scratch, historica"),
                    "l print or plan?",
                ),
            ),
            answer_type="sentence",
        ),
    )


def test_two_sentences_of_one_passage_are_two_scopes(tmp_path):
    longer = {**ROW, "prompt": f"{ROW['prompt']}He is a skater."}
    one, two = SELFCHECKGPT.read(write(tmp_path, ROW, longer))
    assert one.edit.question.subject == two.edit.question.subject
    assert one.edit.scope != two.edit.scope


@pytest.mark.parametrize(
    ("change", "key"), [({"prompt": 3}, "prompt"), ({"target_new": None}, "target_new"), ({"subject": 3}, "subject")]
)
def test_what_is_wrong_names_row_and_key(tmp_path, change, key):
    with pytest.raises(RowError) as caught:
        read("selfcheckgpt", write(tmp_path, ROW, {**ROW, **change}))
    assert (caught.value.row, caught.value.key) == (1, key)


def test_check_counts_blank_labels_and_knows_every_key(tmp_path):
    report = check("hallucination", write(tmp_path, ROW, {**ROW, "locality_ground_truth": ""}))
    assert (report.ok, report.format) == (True, "selfcheckgpt")
    assert (report.empty_fields, report.unused_keys) == ({"locality_ground_truth": 1}, {})


@pytest.mark.parametrize(("name", "rows"), [("hallucination-edit.json", 600), ("hallucination-train.json", 306)])
def test_every_row_of_the_real_files(name, rows):
    file = DATA / "selfcheckgpt" / name
    if not file.is_file():
        pytest.skip(f"selfcheckgpt/{name} is not under LIVEEDIT_DATA ({DATA})")
    raw = json.loads(file.read_text(encoding="utf-8"))
    cases = read("selfcheckgpt", file)
    assert len(cases) == len(raw) == rows
    assert len({case.edit.scope for case in cases}) == rows
    for row, case in zip(raw, cases, strict=True):
        (unrelated,) = case.probes
        assert case.edit.answer == row["target_new"]
        assert case.edit.question.prompt == row["prompt"].strip()
        assert case.edit.question.subject == " ".join(row["subject"].split())
        assert unrelated.question.prompt == row["locality_prompt"].strip()
        assert unrelated.answer == row["locality_ground_truth"]
