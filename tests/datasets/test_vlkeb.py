import json
import os
from pathlib import Path

import pytest

from liveedit.datasets import RowError, read
from liveedit.datasets.vlkeb import VLKEB
from liveedit.samples import GENERALITY, Probe, Question, edited_scopes

DATA = Path(os.environ.get("LIVEEDIT_DATA", Path(__file__).parents[2] / ".." / "shared" / "data"))

ROW = {
    "src": "What  city is featured in the image?",
    "rephrase": "Can you identify the city?",
    "pred": "Wichita_Falls,_Texas",
    "alt": "Fort Smith, Arkansas",
    "image": "m.010bxh/bing_0.jpg",
    "image_rephrase": "m.010bxh/bing_3.jpg",
    "loc": "who ordered the attack",
    "loc_ans": "Emperor Hirohito",
    "m_loc": "m.0d9z_y/yahoo_0.jpg",
    "m_loc_q": "Which city is it?",
    "m_loc_a": "Texarkana",
}
HOP = {
    "port_edit_q": "What timezone does Fort Smith, Arkansas follow?",
    "port_edit_a": "Central Time Zone",
    "port_q": "What is the time zone  of the location?",
    "port_a": "Central Time Zone.",
}


def write(folder: Path, *rows: object) -> Path:
    file = folder / "eval.json"
    file.write_text(json.dumps(rows), encoding="utf-8")
    return file


def test_port_new_becomes_portability_about_the_edited_picture(tmp_path):
    second = {**HOP, "port_q": "Which year?", "port_a": 1817}
    (case,) = VLKEB.read(write(tmp_path, {**ROW, "port_new": [HOP, second]}))
    picture = tmp_path / "m.010bxh/bing_0.jpg"
    assert case.named("portability") == (
        Probe(
            "portability",
            Question("What is the time zone of the location?", picture, "m.010bxh"),
            "Central Time Zone.",
        ),
        Probe("portability", Question("Which year?", picture, "m.010bxh"), "1817"),
    )


def test_files_without_port_new_have_the_six_probes(tmp_path):
    (case,) = VLKEB.read(write(tmp_path, ROW))
    assert [probe.name for probe in case.probes] == [
        *GENERALITY, "text_locality", "modal_locality", "cross_modal",
    ]  # fmt: skip
    assert (case.edit.answer, case.answer_before) == ("Fort Smith, Arkansas", "Wichita_Falls,_Texas")
    assert case.answer_type == "entity"


def test_the_folder_of_a_picture_is_the_subject(tmp_path):
    (case,) = VLKEB.read(write(tmp_path, ROW), images="photographs")
    scope = ("m.010bxh", "what city is featured in the image")
    assert case.edit.scope == scope
    assert [probe.question.scope for probe in case.named(*GENERALITY)] == [scope] * 3
    assert case.named("modal_locality")[0].question.scope == ("m.0d9z_y", "which city is it")
    assert case.named("text_locality")[0].question.subject is None
    assert case.named("cross_modal")[0].question.subject is None


def test_a_given_scope_is_kept_and_a_flat_folder_names_no_subject(tmp_path):
    row = {**ROW, "subject": "Fort Smith", "relation": "name", "answer_type": "city"}
    (case,) = VLKEB.read(write(tmp_path, row))
    assert case.answer_type == "city"
    assert {probe.question.scope for probe in case.named(*GENERALITY)} == {("Fort Smith", "name")}
    flat = {**ROW, "image": "one.jpg", "image_rephrase": "two.jpg"}
    (case,) = VLKEB.read(write(tmp_path, flat))
    assert case.edit.question.subject is None


@pytest.mark.parametrize(
    ("port_new", "key"),
    [
        ({"port_q": "?"}, "port_new"),
        (["?"], "port_new[0]"),
        ([HOP, {"port_a": "x"}], "port_new[1].port_q"),
        ([{"port_q": "?"}], "port_new[0].port_a"),
        ([{"port_q": "?", "port_a": None}], "port_new[0].port_a"),
    ],
)
def test_a_wrong_port_new_names_row_and_key(tmp_path, port_new, key):
    with pytest.raises(RowError) as caught:
        read("vlkeb", write(tmp_path, ROW, {**ROW, "port_new": port_new}))
    assert (caught.value.row, caught.value.key) == (1, key)


@pytest.mark.parametrize(
    ("name", "rows", "portability"),
    [("train.json", 5000, 0), ("eval.json", 3174, 0), ("eval_edit_onehop.json", 1278, 1278)],
)
def test_every_row_of_the_real_files(name, rows, portability):
    file = DATA / "vlkeb" / name
    if not file.is_file():
        pytest.skip(f"vlkeb/{name} is not under LIVEEDIT_DATA ({DATA})")
    raw = json.loads(file.read_text(encoding="utf-8"))
    cases = read("vlkeb", file, images="/pictures")
    assert len(cases) == len(raw) == rows
    assert sum(len(case.named("portability")) for case in cases) == portability
    scopes = edited_scopes(cases)
    for row, case in zip(raw, cases, strict=True):
        assert (case.edit.answer, case.answer_before) == (row["alt"], row["pred"])
        assert {probe.answer for probe in case.named(*GENERALITY)} == {row["alt"]}
        (text_locality,), (modal_locality,) = case.named("text_locality"), case.named("modal_locality")
        assert (text_locality.answer, modal_locality.answer) == (row["loc_ans"], row["m_loc_a"])
        assert [probe.answer for probe in case.named("portability")] == [
            hop["port_a"] for hop in row.get("port_new", [])
        ]
        assert {probe.question.scope for probe in case.named(*GENERALITY)} == {case.edit.scope}
        assert modal_locality.question.scope not in scopes
