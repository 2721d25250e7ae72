import json
import os
from pathlib import Path

import pytest

from liveedit.datasets import RowError, check, read
from liveedit.datasets.zsre import ZSRE
from liveedit.samples import Edit, EditCase, Probe, Question, edited_scopes

DATA = Path(os.environ.get("LIVEEDIT_DATA", Path(__file__).parents[2] / ".." / "shared" / "data"))

ROW = {
    "subject": "Watts Humphrey",
    "src": "What university did  Watts Humphrey attend?",
    "pred": "Trinity College",
    "rephrase": "What university did Watts Humphrey take part in?",
    "alt": "University of Michigan",
    "answers": ["Illinois Institute of Technology"],
    "loc": "nq question: who played desmond doss father in hacksaw ridge",
    "loc_ans": "Hugo Weaving",
    "cond": "Trinity College >> University of Michigan || What university did Watts Humphrey attend?",
}


def write(folder: Path, *rows: object) -> Path:
    file = folder / "rows.json"
    file.write_text(json.dumps(rows), encoding="utf-8")
    return file


def test_a_row_becomes_an_edit_to_alt_and_its_two_probes(tmp_path):
    relation = "what university did watts humphrey attend"
    edited = Question("What university did Watts Humphrey attend?", None, "Watts Humphrey", relation)
    rephrased = Question("What university did Watts Humphrey take part in?", None, "Watts Humphrey", relation)
    assert ZSRE.read(write(tmp_path, ROW)) == (
        EditCase(
            id="rows-0",
            edit=Edit(edited, "University of Michigan"),
            probes=(
                Probe("text_generality", rephrased, "University of Michigan"),
                Probe("text_locality", Question("who played desmond doss father in hacksaw ridge"), "Hugo Weaving"),
            ),
            answer_type="other",
            answer_before="Trinity College",
        ),
    )


def test_the_rephrasing_is_in_the_scope_of_the_edit_and_other_subjects_are_not(tmp_path):
    other = {**ROW, "subject": "Denny Herzig", "src": "What role does Denny Herzig play?"}
    one, two = ZSRE.read(write(tmp_path, ROW, other))
    assert edited_scopes([one]) == {
        ("Watts Humphrey", "what university did watts humphrey attend"),
        ("", "what university did watts humphrey attend"),
        ("", "what university did watts humphrey take part in"),
    }
    assert ("Denny Herzig", "what role does denny herzig play") in edited_scopes([two])
    assert "Watts Humphrey" not in {subject for subject, _ in edited_scopes([two])}
    assert not edited_scopes([one, two]) & {case.named("text_locality")[0].question.scope for case in (one, two)}


def test_further_keys_are_those_of_mmedit(tmp_path):
    further = {
        "id": "x",
        "relation": "attended",
        "answer_type": "place",
        "tags": ["known"],
        "loc_subject": "Hacksaw Ridge",
        "loc_relation": "cast",
        "probes": [{"name": "text_locality", "prompt": "Who?", "answer": "he", "subject": "A", "relation": "b"}],
    }
    (case,) = ZSRE.read(write(tmp_path, {**ROW, **further}))
    assert (case.id, case.answer_type, case.tags) == ("x", "place", ("known",))
    assert case.edit.scope == ("Watts Humphrey", "attended")
    first, second = case.named("text_locality")
    assert first.question.scope == ("Hacksaw Ridge", "cast")
    assert second == Probe("text_locality", Question("Who?", None, "A", "b"), "he")


@pytest.mark.parametrize(
    ("change", "key"),
    [({"alt": None}, "alt"), ({"rephrase": 3}, "rephrase"), ({"answers": "one"}, "answers"), ({"loc": None}, "loc")],
)
def test_what_is_wrong_names_row_and_key(tmp_path, change, key):
    with pytest.raises(RowError) as caught:
        read("zsre", write(tmp_path, ROW, {**ROW, **change}))
    assert (caught.value.row, caught.value.key) == (1, key)


def test_check_knows_every_key_of_the_format(tmp_path):
    report = check("zsre", write(tmp_path, ROW, {**ROW, "pred": None, "loc_ans": None}))
    assert (report.ok, report.rows, report.rows_read) == (True, 2, 2)
    assert (report.unused_keys, report.empty_fields, report.unique_images) == ({}, {}, 0)
    assert report.probes == {"text_generality": 2, "text_locality": 2}


def test_every_row_of_the_real_file():
    file = DATA / "zsre" / "zsre_mend_eval.sample.json"
    if not file.is_file():
        pytest.skip(f"{file.name} is not under LIVEEDIT_DATA ({DATA})")
    raw = json.loads(file.read_text(encoding="utf-8"))
    cases = read("zsre", file)
    assert len(cases) == len(raw) == 16
    for row, case in zip(raw, cases, strict=True):
        rephrased, unrelated = case.probes
        # The file says itself which answer is the edit's: "pred >> alt || src".
        assert row["cond"] == f"{case.answer_before} >> {case.edit.answer} || {row['src']}"
        assert case.edit.answer not in row["answers"]
        assert (rephrased.question.prompt, rephrased.answer) == (row["rephrase"], row["alt"])
        assert f"nq question: {unrelated.question.prompt}" == row["loc"]
        assert unrelated.answer == row["loc_ans"]
        assert case.edit.question.subject == row["subject"]
    assert all(probe.question.image is None for case in cases for probe in (case.reliability, *case.probes))
