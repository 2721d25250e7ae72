"""A report, its rows and their raw answers are compared: one changed figure in any of them is found."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from liveedit.backbones import Backbone
from liveedit.editors.liveedit import LiveEdit
from liveedit.editors.none import NoEditor
from liveedit.errors import InvalidInputError, NotFoundError
from liveedit.evaluation.bench import Bench, BenchConfig
from liveedit.evaluation.provenance import Provenance, file_digest, sealed
from liveedit.evaluation.report import write_report
from liveedit.evaluation.robustness.measuring import Robustness, RobustnessConfig
from liveedit.evaluation.robustness.report import write_robustness_report
from liveedit.evaluation.verification import Verification, differences
from liveedit.experiments.verification import verify_folder
from liveedit.samples import EditCase

PROVENANCE = Provenance("abc", False, "b" * 64, "d" * 64, device="cpu")
EDITORS = [("liveedit", LiveEdit.load), ("none", NoEditor)]
ROW = "results/liveedit-3-seed0.json"
ANSWERS = "results/liveedit-3-seed0.answers.jsonl"
ROBUST_ANSWERS = "answers/liveedit-3-seed0.jsonl"

Change = Callable[[Any], None]


@pytest.fixture(scope="module")
def measured(
    shared_tiny_llava: Backbone, eval_cases: tuple[EditCase, ...], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """The folders of a bench and of a robustness measurement; use `folder`, which copies them."""
    named: dict[str, Any] = {"backbone": "tiny-llava", "data": "world"}
    bench = tmp_path_factory.mktemp("bench")
    config = BenchConfig(**named, edits=(1, 3), few_edits_cases=3, max_new_tokens=4, seeds=(0, 1))
    rows = Bench(shared_tiny_llava, eval_cases[:4], config, bench, PROVENANCE).run(EDITORS)
    write_report(rows, bench, published=True)
    robustness = tmp_path_factory.mktemp("robustness")
    few = {"edits": 3, "probed": 2, "triples": 1, "lengths": (8,), "long_edits": 1, "factors": (0.5,)}
    asked = RobustnessConfig(**named, **few)
    write_robustness_report(
        Robustness(shared_tiny_llava, eval_cases, asked, robustness, PROVENANCE).run(EDITORS), robustness
    )
    return {"bench": bench, "robustness": robustness}


@pytest.fixture
def folder(measured: dict[str, Path], tmp_path: Path) -> Path:
    return shutil.copytree(measured["bench"], tmp_path / "bench")


@pytest.fixture
def robust_folder(measured: dict[str, Path], tmp_path: Path) -> Path:
    return shutil.copytree(measured["robustness"], tmp_path / "robustness")


@pytest.fixture(autouse=True)
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports that a test writes again have no figures: drawing them takes long."""
    monkeypatch.setattr("liveedit.evaluation.report._figures", lambda lines, folder: [])


def changed_json(file: Path, change: Change) -> None:
    content = json.loads(file.read_text(encoding="utf-8"))
    change(content)
    file.write_text(json.dumps(content, indent=1), encoding="utf-8")


def changed_answer(file: Path, number: int, **values: Any) -> None:
    lines = file.read_text(encoding="utf-8").split("\n")
    lines[number] = json.dumps({**json.loads(lines[number]), **values}, ensure_ascii=False)
    file.write_text("\n".join(lines), encoding="utf-8")


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return json.loads((folder / "rows.json").read_text(encoding="utf-8"))["rows"]


def written_again(folder: Path, change: Change) -> None:
    """Change every row where it is kept, with a digest that fits, and make the report of the changed rows."""
    for file in (folder / "results").glob("*.json"):
        row = json.loads(file.read_text(encoding="utf-8"))
        change(row)
        file.write_text(json.dumps(sealed(row)), encoding="utf-8")
    rows = rows_of(folder)
    for row in rows:
        change(row)
    write_report([sealed(row) for row in rows], folder, published=True)


def files(found: Verification) -> set[str]:
    return {remark.file for remark in found.disagreements}


def unchecked(found: Verification) -> str:
    return "\n".join(f"{remark.file}: {remark.text}" for remark in found.unchecked)


# -- the bench -----------------------------------------------------------------------------------------------


def test_what_was_not_changed_agrees(folder: Path) -> None:
    found = verify_folder(folder)
    assert found.disagreements == []
    answers = sum(len(file.read_text("utf-8").splitlines()) for file in folder.rglob("*.answers.jsonl"))
    assert (found.rows, found.answers) == (8, answers)
    assert "milliseconds_per_edit, refine_steps, seconds, store_bytes_per_edit: not in the raw answers" in unchecked(
        found
    )
    assert "figures are not drawn again" in unchecked(found)
    assert not re.search("commit|version|device", unchecked(found))


def test_the_figures_are_worth_comparing(folder: Path) -> None:
    """The edits fire and succeed, some probes are left out or not all the same: no trivial zeros are compared."""
    row = json.loads((folder / ROW).read_text(encoding="utf-8"))
    assert row["metrics"]["reliability"]["exact_match"] > 50 and row["routing"]["recall"] > 50
    assert len(row["by_answer_type"]) > 1


def replaced_once(file: Path, pattern: str, by: str) -> None:
    text = file.read_text(encoding="utf-8")
    new, count = re.subn(pattern, by, text, count=1, flags=re.MULTILINE)
    assert count == 1 and new != text
    file.write_text(new, encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "pattern", "by"),
    [
        ("report.md", r"^\| liveedit \| 3 \| (\d+)\.", r"| liveedit | 3 | 1\1."),
        ("report.md", r"code abc", "code abd"),
        ("report.md", r"^\| LLaVA.*? \| LiveEdit \| 1 \| \d", "| LLaVA-V1.5 (7B) | E-VQA | LiveEdit | 1 | 1"),
        ("table.md", r"^\| none \| 1 \| (\d+)\.", r"| none | 1 | 1\1."),
        ("table.tex", r"^liveedit & 3 & ", "liveedit & 3 & 1"),
        ("table.csv", r",100\.0,", ",99.0,"),
    ],
)
def test_a_changed_figure_of_the_report_is_found(folder: Path, name: str, pattern: str, by: str) -> None:
    replaced_once(folder / name, pattern, by)
    found = verify_folder(folder)
    assert files(found) == {name}
    assert len(found.disagreements) == 1 and "and should have" in found.disagreements[0].text


def first_score(row: dict[str, Any]) -> None:
    row["metrics"]["text_generality"]["f1"] += 0.25


def milliseconds(row: dict[str, Any]) -> None:
    row["milliseconds_per_edit"]["p90"] += 1


def command(row: dict[str, Any]) -> None:
    row["provenance"]["command"] = "another"


@pytest.mark.parametrize("change", [first_score, milliseconds, command])
def test_a_changed_figure_of_a_row_is_found(folder: Path, change: Change) -> None:
    changed_json(folder / ROW, change)
    found = verify_folder(folder)
    assert files(found) == {ROW, "rows.json"}
    assert "its digest is another" in found.disagreements[0].text
    scored_again = any("by its raw answers: metrics.text_generality.f1" in one.text for one in found.disagreements)
    assert scored_again == (change is first_score)


def test_a_changed_figure_of_rows_json_is_found(folder: Path) -> None:
    changed_json(folder / "rows.json", lambda content: milliseconds(content["rows"][0]))
    found = verify_folder(folder)
    assert "rows.json" in files(found) and not files(found) & {ROW, ANSWERS}
    assert any(re.search(r"milliseconds_per_edit.p90 is \S+ and should be", one.text) for one in found.disagreements)


@pytest.mark.parametrize(
    "values",
    [
        {"teacher_forced": 12.5},
        {"answer": "something else"},
        {"exact_match": None},
        {"broken": None},
        {"expected": "something else"},
        {"fired": []},
        {"prompt": "Something else?"},
        {"unedited": "something else"},
    ],
)
def test_a_changed_raw_answer_is_found(folder: Path, values: dict[str, Any]) -> None:
    changed_answer(folder / ANSWERS, 0, **values)
    assert ANSWERS in files(verify_folder(folder))


@pytest.mark.parametrize(
    ("values", "found_in", "text"),
    [
        ({"teacher_forced": 12.5}, ROW, "metrics.reliability.teacher_forced"),
        ({"answer": "something\u2028else"}, ANSWERS, "line 1, scored again: exact_match is true and should be false"),
        ({"broken": True}, ANSWERS, "line 1, scored again: broken is true and should be false"),
        ({"fired": []}, ROW, "routing.recall"),
    ],
)
def test_raw_answers_are_scored_and_not_only_compared_with_a_digest(
    folder: Path, values: dict[str, Any], found_in: str, text: str
) -> None:
    changed_answer(folder / ANSWERS, 0, **values)
    digest, before = file_digest(folder / ANSWERS), json.loads((folder / ROW).read_text("utf-8"))["row_digest"]

    def change(row: dict[str, Any]) -> None:
        if row["row_digest"] == before:
            row["answers_digest"] = digest

    written_again(folder, change)
    found = verify_folder(folder)
    assert found.disagreements and "digest" not in "".join(one.text for one in found.disagreements)
    assert any(one.file == found_in and text in one.text for one in found.disagreements)


def test_figures_that_were_changed_everywhere_do_not_follow_from_the_answers(folder: Path) -> None:
    def change(row: dict[str, Any]) -> None:
        row["metrics"]["reliability"]["exact_match"] = 87.5
        row["metrics"]["reliability"]["left_out"] = 1

    written_again(folder, change)
    found = verify_folder(folder)
    assert len(files(found)) == 8 and all(file.startswith("results/") for file in files(found))
    assert all("by its raw answers: metrics.reliability." in one.text for one in found.disagreements)
    assert len(found.disagreements) == 16


def test_missing_and_damaged_answers(folder: Path) -> None:
    (folder / ANSWERS).unlink()
    other = folder / "results" / "none-1-seed1.answers.jsonl"
    other.write_text(other.read_text(encoding="utf-8")[:-20], encoding="utf-8")
    found = verify_folder(folder)
    assert f"{ROW}: there are no raw answers: {ANSWERS} is missing" in unchecked(found)
    assert files(found) == {"results/none-1-seed1.answers.jsonl"}
    assert any("cannot be used (JSONDecodeError" in one.text for one in found.disagreements)


def test_rows_of_several_origins_and_of_uncommitted_changes_are_noted(folder: Path) -> None:
    def change(row: dict[str, Any]) -> None:
        if row["seed"] == 1:
            row["provenance"] |= {"git_sha": "def", "dirty": True, "device": None}
            row["provenance"]["versions"] = {**row["provenance"]["versions"], "torch": "9.9"}

    written_again(folder, change)
    found = verify_folder(folder)
    assert found.disagreements == []
    notes = unchecked(found)
    assert "rows.json: 4 of 8 rows were measured with uncommitted changes: no commit has that code" in notes
    assert "the rows are of more than one commit: abc (4 rows), def (4 rows)" in notes
    assert re.search(r"the rows are of more than one version of torch: \S+ \(4 rows\), 9.9 \(4 rows\)", notes)
    assert "the rows are of more than one device: cpu (4 rows), not recorded (4 rows)" in notes
    assert "numpy" not in notes


def test_rows_and_answers_of_an_earlier_version_cannot_be_checked(folder: Path) -> None:
    def earlier(row: dict[str, Any]) -> None:
        row.pop("row_digest")
        row.pop("answers_digest")
        row["provenance"].pop("versions")

    for file in (folder / "results").glob("*.json"):
        changed_json(file, earlier)
    changed_json(folder / "rows.json", lambda content: [earlier(row) for row in content["rows"]])
    changed_answer(folder / ANSWERS, 0)
    lines = [json.loads(line) for line in (folder / ANSWERS).read_text("utf-8").splitlines()]
    without = [{name: value for name, value in line.items() if name != "about"} for line in lines]
    (folder / ANSWERS).write_text("".join(json.dumps(line) + "\n" for line in without), encoding="utf-8")
    write_report(rows_of(folder), folder, published=True)
    found = verify_folder(folder)
    assert found.disagreements == []
    assert f"{ANSWERS}: an earlier version wrote it" in unchecked(found)
    assert f"{ROW}: tiny-llava, world: liveedit at 3 edits, seed 0: an earlier version wrote it" in unchecked(found)
    assert "the rows do not record their version of torch" in unchecked(found)


def test_rows_without_files_are_checked_by_their_digests(folder: Path) -> None:
    """As those that a repository keeps without raw answers."""
    rows = rows_of(folder)
    shutil.rmtree(folder / "results")
    write_report(rows, folder, published=True)
    found = verify_folder(folder)
    assert (found.disagreements, found.rows, found.answers) == ([], len(rows), 0)
    assert "so that its digest alone was checked" in unchecked(found)
    content = json.loads((folder / "rows.json").read_text(encoding="utf-8"))
    content["rows"][0]["metrics"]["reliability"]["exact_match"] += 1
    (folder / "rows.json").write_text(json.dumps(content), encoding="utf-8")
    assert any("its digest is another" in remark.text for remark in verify_folder(folder).disagreements)


def test_a_row_without_a_file_and_a_file_that_is_not_reported(folder: Path) -> None:
    (folder / ROW).unlink()
    write_report([row for row in rows_of(folder) if row["editor"] == "liveedit"], folder, published=True)
    found = verify_folder(folder)
    assert found.disagreements == []
    assert "rows.json: tiny-llava, world: liveedit at 3 edits, seed 0: there is no file with this row" in unchecked(
        found
    )
    assert "results/none-3-seed1.json: tiny-llava, world: none at 3 edits, seed 1 is not in the report" in unchecked(
        found
    )


def test_a_folder_without_rows_and_one_of_an_earlier_version_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"has no rows\.json"):
        verify_folder(tmp_path)
    changed_json(folder / "rows.json", lambda content: content.pop("report"))
    with pytest.raises(InvalidInputError, match=r"does not say what it is the report of .*run the same command again"):
        verify_folder(folder)
    changed_json(folder / "rows.json", lambda content: content.update(report={"of": "table9"}))
    with pytest.raises(InvalidInputError, match="no experiment 'table9'"):
        verify_folder(folder)


def test_a_row_that_no_report_can_be_made_of(folder: Path) -> None:
    changed_json(folder / "rows.json", lambda content: content["rows"][0].update(metrics=3))
    assert any("rows.json: cannot be used" in f"{one.file}: {one.text}" for one in verify_folder(folder).disagreements)


def test_differences_go_to_the_bottom() -> None:
    wanted = {"a": {"b": 1.0, "c": [1, 2]}, "d": None}
    assert list(differences({**wanted, "more": 1}, wanted)) == []
    found = {"a": {"b": 1.5, "c": [2, 1], "more": 1}}
    assert list(differences(found, wanted)) == [
        "a.b is 1.5 and should be 1.0",
        "a.c is [2, 1] and should be [1, 2]",
        "a.more is 1 and should be null",
    ]


def test_the_command(run: Callable[..., tuple[int, str, str]], folder: Path) -> None:
    code, out, err = run("results", "verify", folder)
    assert code == 0 and err.endswith("scoring answers again: 8 of 8\n")
    assert out.rstrip().endswith("answers checked: all that was checked agrees.")
    assert "Not checked: rows.json: " in out
    changed_answer(folder / ANSWERS, 0, answer="something else")
    code, out, _ = run("results", "verify", folder)
    assert code == 1
    assert f"{ANSWERS}: line 1, scored again: exact_match is true and should be false" in out
    assert re.search(r"8 rows and \d+ answers checked: disagreements: \d+\.", out)
    code, out, _ = run("results", "verify", folder, "--json")
    found = json.loads(out)
    assert (code, found["ok"], found["rows"]) == (1, False, 8)
    assert {one["file"] for one in found["disagreements"]} >= {ANSWERS, ROW}
    assert found["unchecked"] and found["answers"] > 0
    code, _, err = run("results", "verify", folder / "results")
    assert code == 1 and err.startswith("Error: ") and "has no rows.json" in err


# -- robustness ----------------------------------------------------------------------------------------------


def kind(content: dict[str, Any]) -> None:
    content["rows"][0]["kinds"]["typos"]["percent"]["broken"] += 1


def relative_time(content: dict[str, Any]) -> None:
    content["rows"][0]["costs"]["edits"]["milliseconds_per_edit"]["median"] += 1


def test_a_robustness_measurement_agrees(robust_folder: Path) -> None:
    found = verify_folder(robust_folder)
    assert found.disagreements == []
    answers = sum(len(file.read_text("utf-8").splitlines()) for file in (robust_folder / "answers").iterdir())
    assert (found.rows, found.answers) == (2, answers)
    assert "rows.json: costs, notes, seconds: not in the raw answers" in unchecked(found)
    rows = rows_of(robust_folder)
    assert rows[0]["provenance"]["config"]["editor_digest"] and rows[0]["provenance"]["started"]
    assert len({verdict for row in rows for verdict in ("edit", "unedited") if row["kinds"]["case"][verdict]}) == 2


@pytest.mark.parametrize("change", [kind, relative_time])
def test_a_changed_figure_of_a_robustness_row_is_found(robust_folder: Path, change: Change) -> None:
    changed_json(robust_folder / "rows.json", change)
    found = verify_folder(robust_folder)
    assert "rows.json" in files(found)
    assert any("its digest is another" in one.text for one in found.disagreements)
    assert any("kinds.typos.percent.broken" in one.text for one in found.disagreements) == (change is kind)


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"verdict": "other_label"}, "line 1, scored again: verdict is"),
        ({"answer": "something else"}, "line 1, scored again: verdict is"),
        ({"prompt": "Something else?"}, "was changed after it was written"),
    ],
)
def test_a_changed_raw_answer_of_robustness_is_found(robust_folder: Path, values: dict[str, Any], text: str) -> None:
    changed_answer(robust_folder / ROBUST_ANSWERS, 0, **values)
    found = verify_folder(robust_folder)
    assert any(one.file == ROBUST_ANSWERS and text in one.text for one in found.disagreements)


def test_a_changed_figure_of_a_robustness_report_is_found(robust_folder: Path) -> None:
    replaced_once(robust_folder / "report.md", r"^\| Own prompt \| liveedit \| \d+", "| Own prompt | liveedit | 17")
    found = verify_folder(robust_folder)
    assert files(found) == {"report.md"} and len(found.disagreements) == 1
