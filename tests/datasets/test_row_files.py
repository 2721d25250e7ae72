"""Rows of JSON Lines, CSV and JSON lists: the same in each, written and read, and what is wrong with them by line."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from liveedit.datasets import Reader, Row, RowError, check
from liveedit.datasets.check import check_file
from liveedit.datasets.edit_rows import EDIT_ROWS
from liveedit.datasets.mmedit import MMEDIT
from liveedit.datasets.row_files import load_rows, write_rows
from liveedit.errors import DatasetError
from liveedit.samples import Edit, EditCase, Probe, Question

ROWS: list[dict[str, Any]] = [
    {"id": "a", "prompt": "Was ist\r\nUnd\rdas, „hier“?\n", "answer": "ein \u2028 🐻", "rephrasings": ["x,\n", ' "']},
    {"id": "b", "prompt": ' "quoted", and commas ', "answer": "[1, 2]", "image": "ä b/c,d.png", "rephrasings": []},
    {"id": "c", "prompt": "?", "answer": "1e3", "locality": [{"prompt": "Wo?\n", "image": None}, {"prompt": "日本"}]},
]  # fmt: skip


def problems_of(file: Path, reader: Reader = EDIT_ROWS) -> list[RowError]:
    found: list[RowError] = []
    reader.read(file, on_error=found.append)
    return found


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.CSV", "rows.json", "rows"])
def test_what_is_written_is_read_again(tmp_path: Path, name: str) -> None:
    write_rows(tmp_path / name, ROWS)
    cases = EDIT_ROWS.read(tmp_path / name)
    assert [case.edit.question.prompt for case in cases] == [row["prompt"] for row in ROWS]
    assert [case.edit.answer for case in cases] == [row["answer"] for row in ROWS]
    assert [case.id for case in cases] == ["a", "b", "c"]
    assert [probe.question.prompt for probe in cases[0].probes] == ["x,\n", ' "']
    assert cases[1].edit.question.image == tmp_path / "ä b/c,d.png" and cases[1].probes == ()
    assert [(probe.name, probe.question) for probe in cases[2].probes] == [
        ("text_locality", Question("Wo?\n")),
        ("text_locality", Question("日本")),
    ]


def test_csv_is_what_other_programs_read(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.csv", ROWS)
    with (tmp_path / "rows.csv").open(encoding="utf-8", newline="") as stream:
        read = list(csv.DictReader(stream))
    assert [row["prompt"] for row in read] == [row["prompt"] for row in ROWS]
    assert json.loads(read[0]["rephrasings"]) == ROWS[0]["rephrasings"]
    assert (read[0]["image"], read[1]["rephrasings"]) == ("", "")


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv", "rows.json"])
def test_no_rows(tmp_path: Path, name: str) -> None:
    write_rows(tmp_path / name, [])
    assert list(load_rows(tmp_path / name)) == [] and EDIT_ROWS.read(tmp_path / name) == ()


@pytest.mark.parametrize("content", ["", "\n", "prompt,answer\n"])
def test_csv_without_rows(tmp_path: Path, content: str) -> None:
    (tmp_path / "rows.csv").write_text(content)
    assert EDIT_ROWS.read(tmp_path / "rows.csv") == ()


def test_a_wrong_line_of_json_lines_does_not_stop_the_others(tmp_path: Path) -> None:
    lines = ['{"prompt": "a", "answer": "b"}', "", "{cut", "[" * 100_000, '"text"', '{"prompt": "c", "answer": 2.50}']
    file = tmp_path / "rows.jsonl"
    file.write_text("\r\n".join(lines))
    found = problems_of(file)
    assert [(problem.line, problem.row) for problem in found] == [(3, 1), (4, 2), (5, 3)]
    assert "line 3: is not valid JSON at column 2" in str(found[0]) and "nested too deeply" in found[1].reason
    cases = EDIT_ROWS.read(file, on_error=lambda problem: None)
    assert [(case.edit.answer, case.id) for case in cases] == [("b", "rows-0"), ("2.50", "rows-4")]


def test_a_wrong_row_of_csv_has_the_line_where_it_begins(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_text(
        '\ufeffprompt,answer,locality\n"two\nlines",yes,\n\nonly,two\n"three\n\nlines",no,nothing\nlast,x,"[]"\n',
        encoding="utf-8",
    )
    found = problems_of(file)
    assert [(problem.line, problem.key) for problem in found] == [(5, None), (6, "locality")]
    assert "has 2 cells, and the first line names 3" in found[0].reason
    assert 'holds text ("nothing"). Give a list of objects as JSON.' in found[1].reason
    cases = EDIT_ROWS.read(file, on_error=lambda problem: None)
    assert [case.edit.question.prompt for case in cases] == ["two\nlines", "last"]


@pytest.mark.parametrize("rest", ['bad,"never closed\nx,y\n', 'bad,"closed"too early\nx,y\n'])
def test_nothing_is_read_after_a_broken_quote(tmp_path: Path, rest: str) -> None:
    """Where the next row begins cannot be known; a row must not be made of the pieces."""
    file = tmp_path / "rows.csv"
    file.write_text(f"prompt,answer\na,b\n{rest}")
    (problem,) = problems_of(file)
    assert problem.line == 3 and "nor can the lines after it" in problem.reason
    assert len(EDIT_ROWS.read(file, on_error=lambda problem: None)) == 1


def test_a_column_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("prompt,answer,prompt\na,b,c\n")
    with pytest.raises(RowError, match="column names prompt, answer, prompt"):
        EDIT_ROWS.read(tmp_path / "rows.csv")


def test_every_format_is_read_from_every_kind_of_file(tmp_path: Path) -> None:
    row = {"src": "a", "alt": 2, "pred": "b", "image": "a.png", "rephrase": "c", "image_rephrase": "d.png", "loc": "e"}
    row |= {"loc_ans": "f", "m_loc": "g.png", "m_loc_q": "h", "m_loc_a": "i", "tags": ["k"], "id": "one"}
    row |= {"probes": [{"name": "portability", "prompt": "l"}]}
    for name in ("rows.json", "rows.jsonl", "rows.csv"):
        write_rows(tmp_path / name, [row])
    (case,) = MMEDIT.read(tmp_path / "rows.json")
    assert case.tags == ("k",) and case.edit.answer == "2"
    assert MMEDIT.read(tmp_path / "rows.jsonl") == MMEDIT.read(tmp_path / "rows.csv") == (case,)


def test_a_check_names_lines(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"prompt": "a", "answer": "b", "id": 7}\n\n{"prompt": "a", "answer": " ", "image": "gone.png"}\n'
                    '{"prompt": "a", "answer": "b", "id": "7"}\n')  # fmt: skip
    report = check_file(EDIT_ROWS, file, tmp_path)
    assert [(problem.row, problem.line, problem.key) for problem in report.problems] == [
        *((1, 3, "answer"), (2, 4, "id"), (1, 3, "image"))
    ]
    assert "line 3, key 'answer': is blank" in str(report.problems[0])
    assert "already the id of line 1" in report.problems[1].message
    assert (report.rows, report.rows_read, report.missing_images) == (3, 1, 1)


def test_other_bytes_are_refused(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_bytes(b"prompt\n\xff\n")
    with pytest.raises(DatasetError, match=r"not UTF-8 text \(byte 7"):
        EDIT_ROWS.read(tmp_path / "rows.csv")


def test_an_accessor_of_lists_reads_json_in_cells_only(tmp_path: Path) -> None:
    """In JSON, a text that looks like a list is a text."""

    def read_case(row: Row) -> EditCase:
        names = row.texts("tags")
        return EditCase(row.name, Edit(Question(row.prompt("prompt")), "x"), tags=names)

    reader = Reader("tagged", "For this test.", read_case)
    row = {"prompt": "?", "tags": '["a"]'}
    write_rows(tmp_path / "rows.csv", [row])
    write_rows(tmp_path / "rows.jsonl", [row])
    assert reader.read(tmp_path / "rows.csv")[0].tags == ("a",)
    with pytest.raises(RowError, match=r"Give a list of texts\.$"):
        reader.read(tmp_path / "rows.jsonl")


def test_edit_rows_go_both_ways(tmp_path: Path) -> None:
    edited = Question(" What?\n", "a.png")
    probes = (
        Probe("text_generality", Question("Which?", "a.png"), "x"),
        Probe("same_image_locality", Question("Where?", "a.png")),
        Probe("modal_locality", Question("Where?", "b.png")),
        Probe("text_locality", Question("Who?")),
    )
    case = EditCase("rows-0", Edit(edited, "x"), probes, "other")
    assert EDIT_ROWS.row_of is not None
    write_rows(tmp_path / "rows.csv", [EDIT_ROWS.row_of(case)])
    (read,) = EDIT_ROWS.read(tmp_path / "rows.csv", "")
    assert [probe.name for probe in read.probes] == [probe.name for probe in probes]
    assert str(read) == str(case).replace("'a.png'", repr(Path("a.png"))).replace("'b.png'", repr(Path("b.png")))


@pytest.mark.parametrize("key", ["prompt", "answer"])
@pytest.mark.parametrize("text", ["", " \n"])
def test_a_blank_text_is_a_problem(tmp_path: Path, key: str, text: str) -> None:
    write_rows(tmp_path / "rows.jsonl", [{"prompt": "a", "answer": "b", key: text}])
    with pytest.raises(RowError, match=f"line 1, key '{key}': is blank"):
        EDIT_ROWS.read(tmp_path / "rows.jsonl")


def test_check_by_name(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.csv", [{**ROWS[0], "price": "3"}])
    report = check("edits", tmp_path / "rows.csv")
    assert report.ok and report.unused_keys == {"price": 1} and report.probes == {"text_generality": 2}
