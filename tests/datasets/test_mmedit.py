import json
import os
import pickle
from pathlib import Path

import pytest

from liveedit.datasets import RowError, format_names, read, reader_named
from liveedit.datasets.mmedit import MMEDIT, answer_type
from liveedit.errors import DatasetError, NotFoundError
from liveedit.samples import Edit, EditCase, Probe, Question

DATA = Path(os.environ.get("LIVEEDIT_DATA", Path(__file__).parents[2] / ".." / "shared" / "data"))

ROW = {
    "src": "How many tennis balls are in the picture?",
    "pred": "no",
    "rephrase": "What is the number of tennis balls?",
    "alt": "2",
    "image": "val2014/a.jpg",
    "image_rephrase": "redrawn/a.png",
    "loc": "nq question: who wrote the winter's tale",
    "loc_ans": "William Shakespeare",
    "m_loc": "val2014/b.jpg",
    "m_loc_q": "What sport can you use this for?",
    "m_loc_a": "motocross",
}


def write(folder: Path, *rows: object, name: str = "rows.json") -> Path:
    file = folder / name
    file.write_text(json.dumps(rows), encoding="utf-8")
    return file


def without(key: str) -> dict[str, object]:
    return {name: value for name, value in ROW.items() if name != key}


def test_a_row_becomes_the_edit_and_its_six_probes(tmp_path):
    a, redrawn, b = tmp_path / "val2014/a.jpg", tmp_path / "redrawn/a.png", tmp_path / "val2014/b.jpg"
    src, rephrase = ROW["src"], ROW["rephrase"]
    assert MMEDIT.read(write(tmp_path, ROW)) == (
        EditCase(
            id="rows-0",
            edit=Edit(Question(src, a), "2"),
            probes=(
                Probe("text_generality", Question(rephrase, a), "2"),
                Probe("modal_generality", Question(src, redrawn), "2"),
                Probe("joint_generality", Question(rephrase, redrawn), "2"),
                Probe("text_locality", Question("who wrote the winter's tale"), "William Shakespeare"),
                Probe("modal_locality", Question("What sport can you use this for?", b), "motocross"),
                Probe("cross_modal", Question(src), "2"),
            ),
            answer_type="number",
            answer_before="no",
        ),
    )


def test_the_keys_of_a_drawn_world(tmp_path):
    row = {
        **ROW,
        "id": "creature 7",
        "answer_type": "home",
        "subject": "creature-7",
        "relation": "home",
        "loc_subject": "Oslo",
        "loc_relation": "country",
        "m_loc_subject": "creature-9",
        "m_loc_relation": "food",
        "probes": [
            {
                "name": "same_image_locality",
                "prompt": "What  is on its head?",
                "image": "val2014/a.jpg",
                "answer": None,
                "subject": "creature-7",
                "relation": "hat",
            },
            {"name": "portability", "prompt": "Which river?", "image": None, "answer": 3, "subject": None},
            {"name": "near_duplicate_locality", "prompt": "Where is it?"},
        ],
    }
    (case,) = MMEDIT.read(write(tmp_path, row), images=tmp_path / "images")
    assert (case.id, case.answer_type) == ("creature 7", "home")
    assert case.edit.scope == ("creature-7", "home")
    for probe in case.named("text_generality", "modal_generality", "joint_generality"):
        assert probe.question.scope == ("creature-7", "home")
    (cross,) = case.named("cross_modal")
    assert (cross.question.subject, cross.question.relation) == (None, "home")
    assert [probe.question.scope for probe in case.named("text_locality", "modal_locality")] == [
        ("Oslo", "country"),
        ("creature-9", "food"),
    ]
    picture = tmp_path / "images" / "val2014/a.jpg"
    assert case.probes[6:] == (
        Probe("same_image_locality", Question("What is on its head?", picture, "creature-7", "hat")),
        Probe("portability", Question("Which river?"), "3"),
        Probe("near_duplicate_locality", Question("Where is it?")),
    )


def test_prompts_are_folded_and_nothing_else(tmp_path):
    row = {
        **ROW,
        "src": "  How\tmany  CATS\u00a0are\nthere ? ",
        "rephrase": '"What is it?"\n\nRewritten:\n"What is THAT?"',
        "loc": "NQ question:  \ufeffwho\u200b is it ",
        "m_loc_q": "nq question: is kept here",
    }
    (case,) = MMEDIT.read(write(tmp_path, row))
    assert case.edit.question.prompt == "How many CATS are there ?"
    prompts = [probe.question.prompt for probe in case.probes]
    assert prompts[0] == '"What is it?" Rewritten: "What is THAT?"'
    assert prompts[3] == "who is it"
    assert prompts[4] == "nq question: is kept here"


@pytest.mark.parametrize(
    ("written", "text"),
    [
        ("2", "2"),
        ("-0", "-0"),
        ("2.50", "2.50"),
        ("1e3", "1e3"),
        ("12345678901234567890123", "12345678901234567890123"),
        ('"0"', "0"),
        ('"2"', "2"),
        ("true", "true"),
        ("false", "false"),
        ('""', ""),
        ('" a trailing blank \\n"', " a trailing blank \n"),
        ('"Benito Ju\\u00e1rez"', "Benito Juárez"),
        ('"日本 🙂 \\u200b\\ufeff"', "日本 🙂 \u200b\ufeff"),
        ('"nq question: 5"', "nq question: 5"),
        ('"null"', "null"),
    ],
)
def test_answers_become_exact_text(tmp_path, written, text):
    file = tmp_path / "rows.json"
    plain = json.dumps({**ROW, "alt": "@", "loc_ans": "@", "m_loc_a": "@", "pred": "@"})
    file.write_text(f"[{plain.replace(json.dumps('@'), written)}]", encoding="utf-8")
    (case,) = MMEDIT.read(file)
    answers = [case.edit.answer, case.answer_before, *(probe.answer for probe in case.probes)]
    assert answers == [text] * 8
    assert {type(answer) for answer in answers} == {str}


def test_labels_may_be_null_but_the_answer_may_not(tmp_path):
    (case,) = MMEDIT.read(write(tmp_path, {**ROW, "pred": None, "loc_ans": None, "m_loc_a": None}))
    assert case.answer_before is None
    assert [probe.answer for probe in case.named("text_locality", "modal_locality")] == [None, None]
    with pytest.raises(DatasetError, match=r"key 'alt': holds null\. Give text, a number, true or false"):
        MMEDIT.read(write(tmp_path, {**ROW, "alt": None}))


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        ("yes", "yes/no"),
        ("No", "yes/no"),
        ("2", "number"),
        ("1,200.5", "number"),
        ("-3", "number"),
        ("two", "other"),
        ("12:30", "other"),
        ("yes please", "other"),
        ("", "other"),
        ("on the left side again", "other"),
        ("a man on the left side", "caption"),
    ],
)
def test_answer_type(answer, kind):
    assert answer_type(answer) == kind


def test_picture_paths_are_resolved_and_never_opened(tmp_path):
    row = {**ROW, "image": "../elsewhere/ä b.jpg", "m_loc": str(tmp_path / "absolute.jpg")}
    (case,) = read("e-vqa", str(write(tmp_path, row)), images=str(tmp_path / "images"))
    assert case.edit.question.image == tmp_path / "images" / "../elsewhere/ä b.jpg"
    assert case.probes[4].question.image == tmp_path / "absolute.jpg"


@pytest.mark.parametrize("key", list(ROW))
def test_a_missing_key_names_file_row_and_key(tmp_path, key):
    with pytest.raises(RowError, match="is missing") as caught:
        MMEDIT.read(write(tmp_path, ROW, without(key)))
    error = caught.value
    assert (error.file, error.row, error.key) == (tmp_path / "rows.json", 1, key)
    assert isinstance(error, DatasetError)
    assert str(error).startswith(f"{tmp_path / 'rows.json'}, row 1 (counted from 0), key {key!r}: is missing")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("src", 3, r"a number \(3\)"),
        ("src", None, "null"),
        ("rephrase", ["a"], r'a list \(\["a"\]\)'),
        ("loc", True, r"a boolean \(true\)"),
        ("image", 5, "Give the path of an image"),
        ("image", None, "Give the path of an image"),
        ("image_rephrase", " ", "is empty"),
        ("alt", ["2"], "Give text, a number, true or false"),
        ("alt", {"a": 1}, "an object"),
        ("alt", float("nan"), "NaN"),
        ("alt", "\ud800", "half a character"),
        ("subject", 3, "text or null"),
        ("probes", "x", "a list of objects"),
        ("id", [], "a list"),
    ],
)
def test_a_wrong_type_names_row_and_key(tmp_path, key, value, message):
    with pytest.raises(RowError, match=message) as caught:
        MMEDIT.read(write(tmp_path, {**ROW, key: value}))
    assert (caught.value.row, caught.value.key) == (0, key)


@pytest.mark.parametrize(
    ("probe", "key"),
    [
        ("x", "probes[1]"),
        ({"prompt": "?"}, "probes[1].name"),
        ({"name": "text_localty", "prompt": "?"}, "probes[1].name"),
        ({"name": "portability"}, "probes[1].prompt"),
        ({"name": "portability", "prompt": "?", "image": 3}, "probes[1].image"),
    ],
)
def test_a_wrong_probe_names_its_place(tmp_path, probe, key):
    good = {"name": "portability", "prompt": "?"}
    with pytest.raises(RowError) as caught:
        MMEDIT.read(write(tmp_path, {**ROW, "probes": [good, probe]}))
    assert (caught.value.row, caught.value.key) == (0, key)
    if "localty" in str(probe):
        assert "'text_localty', which is no name of a probe" in str(caught.value)
        assert "near_duplicate_locality" in str(caught.value)


def test_collecting_goes_on_and_keeps_the_good_rows(tmp_path):
    twice_wrong = {**without("alt"), "image": 3}
    problems: list[RowError] = []
    file = write(tmp_path, ROW, twice_wrong, "no object", {**ROW, "alt": "3"}, without("pred"))
    cases = MMEDIT.read(file, on_error=problems.append)
    assert [(case.id, case.edit.answer) for case in cases] == [("rows-0", "2"), ("rows-3", "3")]
    found = [(problem.row, problem.key) for problem in problems]
    assert sorted(found[:2]) == [(1, "alt"), (1, "image")]
    assert found[2:] == [(2, None), (4, "pred")]


def test_equal_ids_are_a_problem(tmp_path):
    rows = [{**ROW, "id": 7}, {**ROW, "id": "8"}, {**ROW, "id": "7"}]
    with pytest.raises(RowError, match="'7' is already the id of row 0") as caught:
        MMEDIT.read(write(tmp_path, *rows))
    assert (caught.value.row, caught.value.key) == (2, "id")


@pytest.mark.parametrize(
    ("text", "row", "whole", "message"),
    [
        ("[{row}, {row}, {{\"src\": \"cut", 2, 2, "not valid JSON at line 1"),
        ("[{row}, ]", 1, 1, "not valid JSON"),
        ("[{row} {row}]", 1, 1, "Expecting ',' delimiter"),
        ("[{row}", 1, 1, "The 1 rows before it are whole"),
        ("[{row}] trailing", None, 1, "Extra data"),
        ("{row}\n{row}\n", None, 0, "Give one JSON list"),
        ("", None, 0, "is empty"),
        (" \n", None, 0, "is empty"),
        ("{row}", None, 0, "an object"),
        ("[" * 100_000, None, 0, "nested too deeply"),
        ("no json", None, 0, "not valid JSON"),
    ],
)  # fmt: skip
def test_broken_json_names_the_row_and_spares_those_before(tmp_path, text, row, whole, message):
    file = tmp_path / "rows.json"
    file.write_text(text.replace("{row}", json.dumps(ROW)).replace("{{", "{"))
    with pytest.raises(RowError, match=message) as caught:
        MMEDIT.read(file)
    assert caught.value.row == row
    problems: list[RowError] = []
    assert len(MMEDIT.read(file, on_error=problems.append)) == whole
    assert [problem.row for problem in problems] == [row]


def test_a_file_that_cannot_be_read_is_always_raised(tmp_path):
    (tmp_path / "latin.json").write_bytes(b'["\xe4"]')
    for path, message in [
        (tmp_path / "absent.json", r"absent\.json does not exist"),
        (tmp_path, "cannot be read"),
        (tmp_path / "latin.json", r"is not UTF-8 text \(byte 2"),
        ("a\0b", "cannot be read"),
    ]:
        with pytest.raises(DatasetError, match=message):
            MMEDIT.read(path, on_error=lambda error: None)


def test_a_byte_order_mark_and_an_empty_list(tmp_path):
    file = tmp_path / "rows.json"
    file.write_text(json.dumps([ROW]), encoding="utf-8-sig")
    assert len(MMEDIT.read(file)) == 1
    assert MMEDIT.read(write(tmp_path)) == ()


def test_the_registry_knows_names_and_aliases(tmp_path):
    assert format_names() == (
        "counterfact",
        "e-ic",
        "e-vqa",
        "easyedit",
        "edits",
        "hallucination",
        "mmedit",
        "selfcheckgpt",
        "vlkeb",
        "zsre",
    )
    assert reader_named("e-vqa") is reader_named("e-ic") is reader_named("mmedit") is reader_named("E-VQA")
    assert reader_named("hallucination") is reader_named("selfcheckgpt")
    assert all(reader_named(name).about for name in format_names())
    with pytest.raises(NotFoundError, match=r"no data format 'coco'\. Installed are: counterfact, e-ic, e-vqa"):
        read("coco", tmp_path / "rows.json")


def test_errors_survive_a_process_boundary():
    error = RowError(Path("rows.json"), 3, "alt", "is missing.")
    copy = pickle.loads(pickle.dumps(error))
    assert (str(copy), copy.row, copy.key) == (str(error), 3, "alt")


@pytest.mark.parametrize(
    ("name", "rows", "kinds"),
    [
        ("e-vqa/vqa_train.json", 6345, {"yes/no", "number", "other", "caption"}),
        ("e-vqa/vqa_eval.json", 2093, {"yes/no", "number", "other", "caption"}),
        ("e-ic/caption_train_edit.json", 2849, {"caption"}),
        ("e-ic/caption_eval_edit.json", 1000, {"caption"}),
    ],
)
def test_every_row_of_the_real_files(name, rows, kinds):
    file = DATA / name
    if not file.is_file():
        pytest.skip(f"{name} is not under LIVEEDIT_DATA ({DATA})")
    raw = json.loads(file.read_text(encoding="utf-8"))
    cases = read("mmedit", file, images="/pictures")
    assert len(cases) == len(raw) == rows
    assert {case.answer_type for case in cases} == kinds
    for row, case in zip(raw, cases, strict=True):
        text, modal, joint, text_locality, modal_locality, cross = case.probes
        assert (case.edit.answer, case.answer_before) == (row["alt"], row["pred"])
        assert {probe.answer for probe in (text, modal, joint, cross)} == {row["alt"]}
        assert (text_locality.answer, modal_locality.answer) == (row["loc_ans"], row["m_loc_a"])
        assert case.edit.question.image == Path("/pictures") / row["image"]
        assert joint.question.image == Path("/pictures") / row["image_rephrase"]
        asked = text_locality.question.prompt
        assert not asked.startswith("nq ") and asked.split()[-1].strip("\u200b\ufeff") in row["loc"]
        assert case.edit.question.prompt.split() == row["src"].split()
