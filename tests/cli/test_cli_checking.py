"""`liveedit edit` with what an edit is checked on, and `liveedit check`."""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from outside_packages import install

from liveedit.answering import Answering
from liveedit.backbones import Backbone
from liveedit.cli.editing import _print_checked, described_evidence
from liveedit.edited.recheck import CheckedEdit
from liveedit.editors.liveedit import LiveEdit, LiveEditConfig
from liveedit.samples import EditCase
from liveedit.store.evidence import EarlierEdit, Evidence, Rephrased

Run = Callable[..., tuple[int, str, str]]

PROMPT = "What is it?"


@pytest.fixture
def editor_path(tmp_path: Path, tiny_llava: Backbone, small_config: Callable[..., LiveEditConfig]) -> Path:
    with LiveEdit.untrained(tiny_llava, small_config()) as editor:
        editor.modules.hat.load_state_dict(editor.modules.bar.state_dict())
        editor.save_pretrained(tmp_path / "editor")
    return tmp_path / "editor"


@pytest.fixture
def asked(tmp_path: Path, editor_path: Path) -> tuple[object, ...]:
    return ("--edits", tmp_path / "edits.db", "--editor-path", editor_path)


@pytest.fixture
def pictures(eval_cases: tuple[EditCase, ...]) -> list[Path]:
    return [Path(str(case.edit.question.image)) for case in eval_cases]


@pytest.fixture
def add(run: Run, asked: tuple[object, ...]) -> Callable[..., dict[str, Any]]:
    def call(picture: Path, prompt: str, answer: str, *options: object) -> dict[str, Any]:
        given = ("--image", picture, "--prompt", prompt, "--answer", answer, *options)
        code, out, err = run("edit", *asked, *given, "--json")
        assert code == 0, err
        return json.loads(out)

    return call


def test_an_edit_that_does_not_take_is_an_error_unless_it_is_to_be_kept(
    run: Run, pictures: list[Path], tmp_path: Path
) -> None:
    edits = ("--edits", tmp_path / "edits.db")
    given = (*edits, "--editor", "liveedit", "--image", pictures[0], "--prompt", PROMPT, "--answer", "Bruvak 123456789")
    code, out, err = run("edit", *given)
    assert (code, out) == (1, "") and "'Bruvak 123456789'" in err and "--no-must-take" in err
    assert not (tmp_path / "edits.db").exists()
    code, out, err = run("edit", *given, "--no-must-take")
    assert code == 0 and "active all the same" in out, err


def test_an_edit_is_checked_on_what_is_given(
    run: Run, add: Callable[..., dict[str, Any]], pictures: list[Path], tmp_path: Path
) -> None:
    file = tmp_path / "probes" / "probes.json"
    file.parent.mkdir()
    (file.parent / "other.png").write_bytes(pictures[1].read_bytes())
    locality = [{"prompt": "How many?", "image": "other.png"}, {"prompt": "Who?"}]
    file.write_text(json.dumps({"rephrasings": ["Which is it?"], "locality": locality}))
    options = ("--rephrasing", "What is this?", "--locality", "How many legs?", "--probes", file)
    receipt = add(pictures[0], PROMPT, "forest", *options)
    evidence = receipt["evidence"]
    assert [it["prompt"] for it in evidence["rephrasings"]] == ["What is this?", "Which is it?"]
    assert [it["prompt"] for it in evidence["locality"]] == ["How many legs?", "How many?", "Who?"]
    digests = [it["image_sha256"] for it in evidence["locality"]]
    assert len(set(digests)) == 3 and digests[2] is None
    again = add(pictures[0], "What is  it?", "desert")
    assert again["evidence"]["supersedes"] == [receipt["id"]]
    shown = json.loads(run("edits", "show", "--edits", tmp_path / "edits.db", receipt["id"], "--json")[1])
    assert shown["evidence"] == evidence and not shown["active"]
    told = run("edits", "show", "--edits", tmp_path / "edits.db", receipt["id"])[1]
    assert f"{sum(it['took'] for it in evidence['rephrasings'])} of 2 took" in told
    assert f"{sum(it['kept'] for it in evidence['locality'])} of 3 kept their answer" in told
    told = run("edits", "show", "--edits", tmp_path / "edits.db", again["id"])[1]
    assert re.search(rf"supersedes +{receipt['id']}", told)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "No such file"),
        ("{", "cannot be used: Invalid JSON"),
        ('{"rephrasing": []}', "rephrasing: Extra inputs"),
        ('{"locality": [{"image": "a.png"}]}', "locality.0.prompt"),
        ('{"locality": [{"prompt": "?", "image": "absent.png"}]}', "absent.png"),
    ],
)
def test_bad_probes_make_no_edit(
    run: Run, asked: tuple[object, ...], pictures: list[Path], tmp_path: Path, content: str | None, message: str
) -> None:
    file = tmp_path / "probes.json"
    if content is not None:
        file.write_text(content)
    given = ("--image", pictures[0], "--prompt", PROMPT, "--answer", "forest", "--probes", file)
    code, _, err = run("edit", *asked, *given)
    assert code == 1 and message in err
    assert not (tmp_path / "edits.db").exists()


def test_check_names_the_edits_that_no_longer_hold(
    run: Run, asked: tuple[object, ...], add: Callable[..., dict[str, Any]], pictures: list[Path], tmp_path: Path
) -> None:
    kept = add(pictures[1], PROMPT, "forest")["id"]
    code, out, _ = run("check", *asked)
    assert code == 0 and "1 of 1 edits hold, 0 do not (0 broken)" in out and kept not in out
    first, second = (
        add(pictures[0], PROMPT, answer, "--no-supersede", "--no-must-take") for answer in ("desert", "tower")
    )
    old, new = first["id"], second["id"]
    code, out, err = run("check", *asked, "--json", "--batch", 2)
    checked = json.loads(out)
    results = {result["edit_id"]: result for result in checked["results"]}
    asked_alone = {
        edit_id: json.loads(run("ask", *asked, "--image", pictures[0], "--prompt", PROMPT, "--json")[1])
        for edit_id in (old, new)
    }
    for edit_id, answer in asked_alone.items():
        assert results[edit_id]["answer_now"] == answer["text"]
        assert [fired["edit_id"] for fired in results[edit_id]["fired"]] == [it["edit_id"] for it in answer["fired"]]
        assert results[edit_id]["holds"] == (answer["text"] == {old: "desert", new: "tower"}[edit_id])
    assert results[kept]["holds"] and results[kept]["asked_about"] == "image"
    failing = [edit_id for edit_id, result in results.items() if not result["holds"]]
    assert failing and checked["failing"] == len(failing) and checked["edits"] == 3
    assert code == 1 and "edits: 3 of 3" in err
    code, out, _ = run("check", *asked)
    assert code == 1 and all(edit_id in out for edit_id in failing) and kept not in out
    before = {old: first["answer_before"], new: second["answer_before"]}
    broken = [edit_id for edit_id in failing if results[edit_id]["answer_now"] != before[edit_id]]
    assert [edit_id for edit_id, result in results.items() if result["broken"]] == broken
    assert checked["broken"] == len(broken) and f"{len(failing)} do not ({len(broken)} broken)" in out
    assert run("check", *asked, kept[:6])[0] == 0, "these alone"
    with closing(sqlite3.connect(tmp_path / "edits.db")) as connection, connection:
        connection.execute("DELETE FROM blobs WHERE kind = 'thumbnail'")
    code, out, _ = run("check", *asked)
    assert code == 0 and "3 could not be asked" in out and "image was not kept" in out


def test_broken_answers_are_told_where_there_are_any(capsys: pytest.CaptureFixture[str]) -> None:
    asked = (Rephrased("a", "no", "red", True), Rephrased("b", "no", "nored", False), Rephrased("c", "", "?", False))
    earlier = (EarlierEdit("1", "no", "red", False), EarlierEdit("2", "no", "no", True))
    told = described_evidence(Evidence(rephrasings=asked, earlier_edits=earlier), "red")
    assert told["rephrasings"] == "1 of 3 took, 1 broken"
    assert told["earlier edits"] == "1 of 2 asked again kept their answer" and told["locality"] is None
    found = [
        CheckedEdit(str(number), "What?", "red", now, "text", (), before)
        for number, (now, before) in enumerate([("red", "no"), ("nored", "no"), ("no", "no"), ("?", None)])
    ]
    _print_checked(found, 4, json=False)
    out = capsys.readouterr().out
    assert "1 of 4 edits hold, 3 do not (1 broken), 0 could not be asked." in out
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in out.splitlines() if "red" in line]
    assert {row[3]: row[4] for row in cells if row} == {"nored": "yes", "no": "no", "?": ""}


def test_check_can_be_interrupted(
    run: Run,
    asked: tuple[object, ...],
    add: Callable[..., dict[str, Any]],
    pictures: list[Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for picture in pictures[:3]:
        add(picture, PROMPT, "forest")
    ask, calls = Answering.ask, []

    def interrupted(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return ask(*arguments)

    monkeypatch.setattr(Answering, "ask", interrupted)
    code, out, err = run("check", *asked, "--batch", 2, "--json")
    assert code == 130 and "Interrupted after 2 of 3 edits" in err
    assert (json.loads(out)["checked"], json.loads(out)["edits"]) == (2, 3)


def test_there_is_nothing_to_check(run: Run, tmp_path: Path, asked: tuple[object, ...]) -> None:
    code, _, err = run("check", *asked)
    assert code == 1 and "does not exist" in err
    assert not (tmp_path / "edits.db").exists()


def test_an_editor_of_another_package_edits_and_is_checked(
    run: Run, pictures: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path / "site", "outside", {"liveedit.editors": {"shift": "shift_editor:ShiftEditor"}})
    monkeypatch.syspath_prepend(tmp_path / "site")
    chosen = ("--edits", tmp_path / "edits.db", "--editor", "shift")
    asked = ("--image", pictures[0], "--prompt", PROMPT)
    before = json.loads(run("ask", *asked, "--json")[1])["text"]
    code, out, err = run("edit", *chosen, *asked, "--answer", "forest", "--no-must-take", "--json")
    assert code == 0, err
    receipt = json.loads(out)
    assert receipt["answer_before"] == before
    answer = json.loads(run("ask", *chosen, *asked, "--json")[1])
    assert answer["text"] == receipt["answer_after"]
    assert [fired["edit_id"] for fired in answer["fired"]] == [receipt["id"]]
    code, out, err = run("check", *chosen, "--json")
    (result,) = json.loads(out)["results"]
    assert result["answer_now"] == receipt["answer_after"] and code == (0 if receipt["took"] else 1), err
    assert run("edits", "undo", "--edits", tmp_path / "edits.db", receipt["id"])[0] == 0
    undone = json.loads(run("ask", *chosen, *asked, "--json")[1])
    assert (undone["text"], undone["fired"]) == (before, [])
    assert run("ask", *asked, "--edits", tmp_path / "edits.db")[0] == 0, "the editor of the file is the default"
    code, _, err = run("ask", *asked, "--edits", tmp_path / "edits.db", "--editor", "liveedit-refine")
    assert code == 1 and "shift" in err, "the file belongs to the other editor"


def test_near_edits_are_listed_and_what_collides(
    run: Run, add: Callable[..., dict[str, Any]], asked: tuple[object, ...], pictures: list[Path]
) -> None:
    first = add(pictures[0], PROMPT, "forest")["id"]
    second = add(pictures[0], PROMPT, "meadow", "--no-supersede", "--no-must-take")["id"]
    third = add(pictures[1], "How many?", "forest", "--no-must-take")["id"]
    code, out, err = run("edits", "near", first[:7], *asked, "--json")
    assert code == 0, err
    found = json.loads(out)
    near = {one["edit_id"]: one for one in found["near"]}
    assert found["id"] == first and near.keys() == {second, third}
    assert found["near"][0]["edit_id"] == second and near[second]["answers_differ"]
    assert not near[third]["answers_differ"] and near[second]["image_name"] == pictures[0].name
    code, out, err = run("edits", "near", first, "--most", 1, *asked)
    assert code == 0 and "1 active edit" in out and second in out and third not in out, err
    weights = near[second]["weight_here"], near[second]["weight_there"]
    assert ("another answer" in out) is near[second]["collides"] is (max(weights) >= 0.01)
    code, _, err = run("edits", "near", "ffffffff", *asked)
    assert code == 1 and "ffffffff" in err
