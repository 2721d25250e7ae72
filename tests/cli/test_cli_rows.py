"""`liveedit edits add` and `diff`, and `export` as rows: files of edits in and out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from edit_examples import bound, make_edit, make_expert

from liveedit.datasets.row_files import write_rows
from liveedit.samples import EditCase
from liveedit.store.store import EditStore

Run = Callable[..., tuple[int, str, str]]
Answer = Callable[..., dict[str, Any]]


@pytest.fixture
def answer_of(run: Run) -> Answer:
    def call(*arguments: object, code: int = 0) -> dict[str, Any]:
        found, out, err = run("edits", *arguments, "--json")
        assert found == code, err
        return json.loads(out)

    return call


@pytest.fixture
def rows(eval_cases: tuple[EditCase, ...], tmp_path: Path) -> list[dict[str, Any]]:
    """Three rows, their images beside the file."""
    found = []
    for case in eval_cases[:3]:
        image = Path(str(case.edit.question.image))
        (tmp_path / image.name).write_bytes(image.read_bytes())
        found.append({"prompt": case.edit.question.prompt, "answer": case.edit.answer, "image": image.name})
    return found


def answers(edits: Path) -> list[tuple[str, str | None, str, str | None, str | None, str | None]]:
    with EditStore(edits, create=False) as store:
        return [
            (edit.prompt, edit.image_sha256, edit.answer, edit.answer_after, edit.author, edit.note)
            for edit in store.list()
        ]


def test_edits_go_out_and_come_back(run: Run, answer_of: Answer, rows: list[dict[str, Any]], tmp_path: Path) -> None:
    """In three formats: an empty file that the exported rows are added to answers as the first one did."""
    first = tmp_path / "first.db"
    rows[1] |= {"prompt": f'{rows[1]["prompt"]}\n("日本", really)', "note": "two\nlines", "author": "ada, bob"}
    write_rows(tmp_path / "rows.csv", rows)
    done = answer_of("add", tmp_path / "rows.csv", "--edits", first, "--author", "eve", "--note", "all")
    assert (done["rows"], done["made"], done["rejects"], done["unused"]) == (3, 3, None, {})
    expected = answers(first)
    assert [answer[2:] for answer in expected] == [
        (row["answer"], row["answer"], row.get("author", "eve"), row.get("note", "all")) for row in rows
    ]
    for name, format in (("out.jsonl", "edits"), ("out.csv", "edits"), ("out.json", "easyedit")):
        written = answer_of("export", tmp_path / name, "--edits", first, "--format", format)
        assert (written["edits"], written["images"], written["without_image"]) == (3, 3, [])
        other = tmp_path / f"{name}.db"
        assert answer_of("add", tmp_path / name, "--edits", other, "--format", format)["made"] == 3
        assert answers(other) == expected
        assert answer_of("diff", first, other) == {"added": [], "removed": [], "changed": []}
        again = answer_of("add", tmp_path / name, "--edits", first, "--format", format)
        assert (again["made"], again["there"], again["inactive"]) == (0, 3, 0), "nothing in them is new"
    assert "Wrote 3 edits to" in run("edits", "export", tmp_path / "b.csv", "--edits", first)[1]


def test_rejected_rows_are_listed_and_the_others_done(
    run: Run, answer_of: Answer, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    bad = [{"prompt": "What?", "image": "gone.png", "answer": "x", "id": "seven"}, {"prompt": "?", "answer": "\n"}]
    file, rejects = tmp_path / "rows.jsonl", tmp_path / "rows.jsonl.rejects.jsonl"
    write_rows(file, [rows[0], *bad, rows[1]])
    command = (file, "--edits", tmp_path / "edits.db")
    code, out, err = run("edits", "add", *command)
    assert code == 1
    lines = out.splitlines()
    assert lines[0] == "4 rows: 2 edits made, 0 there already, 2 rejected."
    assert lines[1].startswith("- line 2: The image") and lines[2].startswith("- line 3: 'answer' is blank")
    assert f"All rejected rows are in {rejects}" in lines[3]
    assert "rows: 4 of 4 (rejected 2)" in err
    listed = [json.loads(line) for line in rejects.read_text(encoding="utf-8").splitlines()]
    assert [(reject["line"], reject["place"], reject["id"]) for reject in listed] == [
        *((2, "line 2", "seven"), (3, "line 3", None))
    ]
    found = answer_of("add", *command, code=1)
    assert (found["made"], found["there"], found["rejected"]) == (0, 2, listed)
    (tmp_path / "gone.png").write_bytes((tmp_path / rows[2]["image"]).read_bytes())
    write_rows(file, [rows[0], {**bad[0], "answer": rows[2]["answer"], "prompt": rows[2]["prompt"]}, rows[1]])
    assert answer_of("add", *command)["made"] == 1
    assert not rejects.exists()


def test_another_format_and_what_it_has_beyond_edits(run: Run, world: Path, tmp_path: Path) -> None:
    first = json.loads((world / "eval.json").read_text())[:1]
    write_rows(tmp_path / "rows.json", [{**first[0], "price": 3}])
    given = (tmp_path / "rows.json", "--format", "mmedit", "--images", world, "--edits", tmp_path / "edits.db")
    code, out, err = run("edits", "add", *given)
    assert code == 0 and out.startswith("1 row: 1 edit made, 0 there already, 0 rejected."), err
    assert "Edits do not hold these" in err and "modal_generality (1)" in err and "the key 'price' (1)" in err


@pytest.mark.parametrize(
    ("name", "content", "code"), [("a.jsonl", "", 0), ("a.csv", "", 0), ("a.json", "", 1), ("a.csv", "a,b\n1,\n", 1)]
)
def test_without_a_row_nothing_is_loaded(
    answer_of: Answer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, content: str, code: int
) -> None:
    monkeypatch.setattr(
        "liveedit.edited.model.EditedModel.load", lambda *given, **more: pytest.fail("a model was loaded")
    )
    (tmp_path / name).write_text(content)
    found = answer_of("add", tmp_path / name, "--edits", tmp_path / "edits.db", code=code)
    assert found["made"] == 0 and len(found["rejected"]) == code
    assert not (tmp_path / "edits.db").exists()


def test_what_add_refuses(run: Run, tmp_path: Path) -> None:
    file, edits = tmp_path / "rows.csv", ("--edits", tmp_path / "edits.db")
    for given, message in (
        ((file, *edits), "does not exist"),
        ((file, *edits, "--format", "coco"), "no data format 'coco'"),
        ((file, *edits, "--rejects", tmp_path / "." / "rows.csv"), "is the file itself"),
        (edits, "FILE"),
    ):
        code, out, err = run("edits", "add", *given)
        assert (code, out) == (1, "") and message in err


# -- out, without a model --------------------------------------------------------------------------------------


@pytest.fixture
def edits(tmp_path: Path) -> Path:
    """An edit, then another answer to its question."""
    with bound(tmp_path / "edits.db") as store:
        first = store.add(make_edit("red"), make_expert())
        store.add(make_edit("blue"), make_expert(), supersedes=[first.id])
    return tmp_path / "edits.db"


def test_the_name_says_what_is_exported(run: Run, answer_of: Answer, edits: Path, tmp_path: Path) -> None:
    assert "bundle" in answer_of("export", tmp_path / "a.safetensors", "--edits", edits)
    assert "bundle" in answer_of("export", tmp_path / "a", "--edits", edits)
    for name in ("a.jsonl", "a.CSV", "a.json"):
        found = answer_of("export", tmp_path / name, "--edits", edits)
        assert found == {
            "file": str(tmp_path / name),
            "edits": 1,
            "images": 0,
            "images_folder": str(tmp_path / "a-images"),
            "without_image": [],
            "left_out": 0,
        }
    assert answer_of("export", tmp_path / "b.json", "--edits", edits, "--format", "bundle")["edits"] == 2
    answer_of("export", tmp_path / "then.jsonl", "--edits", edits, "--at", 1)
    assert json.loads((tmp_path / "then.jsonl").read_text())["answer"] == "red"
    code, _, err = run("edits", "export", tmp_path / "c", "--edits", edits, "--at", 1)
    assert code == 1 and "--at is for rows" in err


def test_an_unknown_ending_is_refused_and_format_decides(
    run: Run, answer_of: Answer, edits: Path, tmp_path: Path
) -> None:
    code, _, err = run("edits", "export", tmp_path / "b.txt", "--edits", edits)
    assert code == 1 and not (tmp_path / "b.txt").exists()
    assert all(allowed in err for allowed in (".jsonl, .csv, .json", ".safetensors", "--format")), err
    assert "bundle" in answer_of("export", tmp_path / "b.txt", "--edits", edits, "--format", "bundle")


def test_diff_of_revisions_and_of_files(run: Run, answer_of: Answer, edits: Path, tmp_path: Path) -> None:
    question = {"prompt": "What colour is the car?", "image_name": None, "image_sha256": None}
    changed = {**question, "before": ["red"], "after": ["blue"]}
    assert answer_of("diff", f"{edits}@1", edits) == {"added": [], "removed": [], "changed": [changed]}
    assert answer_of("diff", f"sqlite:///{edits}@1", f"{edits}@2")["changed"] == [changed]
    assert answer_of("diff", f"{edits}@0", edits)["added"] == [{**question, "before": [], "after": ["blue"]}]
    code, out, _ = run("edits", "diff", edits, f"{edits}@0")
    assert code == 0 and "removed" in out and "0 added, 1 removed, 0 changed" in out
    odd = tmp_path / "edits.db@1"
    odd.write_bytes(edits.read_bytes())
    assert answer_of("diff", odd, edits)["changed"] == [], "a file of this name comes first"
    for given, message in ((f"{edits}@9", "no revision 9"), (tmp_path / "none.db", "none.db"), ("@3", "@3")):
        code, _, err = run("edits", "diff", given, edits)
        assert code == 1 and message in err
