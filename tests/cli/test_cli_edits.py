"""`liveedit edits`: history, redo, the past, moving, checking and purging, on an edits file without a model."""

from __future__ import annotations

import io
import json
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from liveedit.backbones import Backbone
from liveedit.editors.liveedit import LiveEdit, LiveEditConfig
from liveedit.experts import LowRankExpert
from liveedit.experts.expert import expert_to_bytes
from liveedit.samples import EditCase
from liveedit.store.store import EditStore, NewEdit

Run = Callable[..., tuple[int, str, str]]
Answer = Callable[..., dict[str, Any]]


@pytest.fixture
def answer_of(run: Run) -> Answer:
    def call(*arguments: object) -> dict[str, Any]:
        code, out, err = run("edits", *arguments, "--json")
        assert code == 0, err
        return json.loads(out)

    return call


@pytest.fixture
def file(tmp_path: Path, random_expert: Callable[..., LowRankExpert]) -> Path:
    """Three edits."""
    path = tmp_path / "edits.db"
    with EditStore(path) as store:
        store.bind("b" * 64, "e" * 64, backbone="tiny-llava", editor="liveedit")
        for number in range(3):
            edit = NewEdit(prompt=f"question {number}", answer=f"answer {number}", editor="liveedit", author="ada")
            store.add(edit, expert_to_bytes(random_expert(number)))
    return path


def contradicting(file: Path, folder: Path, *answers: str) -> Path:
    """Another file, with edits of the first questions of this one: "other 0" and so on, or the given answers."""
    path = folder / "contradicting.db"
    with EditStore(file) as store, EditStore(path) as other:
        other.bind("b" * 64, "e" * 64, backbone="tiny-llava", editor="liveedit")
        for number, answer in enumerate(answers or ("other 0",)):
            edit = NewEdit(prompt=f"QUESTION {number}?", answer=answer, editor="liveedit")
            other.add(edit, store.list()[number].expert)
    return path


def ids_of(listed: dict[str, Any]) -> list[str]:
    return [edit["id"] for edit in listed["edits"]]


def test_undo_redo_history_and_the_past(answer_of: Answer, run: Run, file: Path) -> None:
    option = ("--edits", file)
    ids = ids_of(answer_of("list", *option))
    answer_of("undo", *option, ids[1], "--author", "bob", "--note", "wrong")
    assert ids_of(answer_of("list", *option)) == [ids[0], ids[2]]
    assert answer_of("redo", *option, ids[1])["active_edits"] == 3
    history = answer_of("history", *option)["history"]
    assert [(event["revision"], event["kind"]) for event in history] == [
        *((1, "edit"), (2, "edit"), (3, "edit"), (4, "undo"), (5, "redo"))
    ]
    assert (history[3]["author"], history[3]["note"]) == ("bob", "wrong")
    assert [event["kind"] for event in answer_of("history", *option, ids[1])["history"]] == ["edit", "undo", "redo"]
    assert ids_of(answer_of("list", *option, "--at", 4)) == [ids[0], ids[2]]
    assert answer_of("list", *option)["revision"] == 5
    code, _, err = run("edits", "list", *option, "--at", 9)
    assert code == 1 and "revisions 0 to 5" in err
    code, _, err = run("edits", "redo", *option, ids[0])
    assert code == 1 and "is active" in err


def test_the_same_for_people(run: Run, file: Path) -> None:
    option = ("--edits", f"sqlite:///{file}")
    edit_id = json.loads(run("edits", "list", *option, "--json")[1])["edits"][0]["id"]
    assert "Active edits: 3" in run("edits", "list", *option)[1]
    assert f"Edit {edit_id} is undone" in run("edits", "undo", *option, edit_id)[1]
    assert "Active edits: 3 after revision 3" in run("edits", "list", *option, "--at", 3)[1]
    assert f"Edit {edit_id} is active again" in run("edits", "redo", *option, edit_id)[1]
    shown = run("edits", "history", *option)[1]
    assert "5 changes" in shown and "redo" in shown and "ada" in shown
    assert "(revision 5)" in run("edits", "show", *option, edit_id)[1]
    assert run("edits", "verify", *option)[:2] == (0, "3 edits checked: all is well.\n")


def test_nothing_to_list_is_a_sentence(run: Run, file: Path, tmp_path: Path) -> None:
    (tmp_path / "none.db").touch()
    assert run("edits", "history", "--edits", tmp_path / "none.db")[:2] == (0, "There are no changes yet.\n")
    assert run("edits", "diff", file, file)[:2] == (0, "Both have the same active edits.\n")
    assert "1 removed" in run("edits", "diff", f"{file}@3", f"{file}@2")[1]


def test_a_list_without_edits_is_a_sentence(run: Run, file: Path, tmp_path: Path) -> None:
    (tmp_path / "none.db").touch()
    none, option = ("--edits", tmp_path / "none.db"), ("--edits", file)
    assert run("edits", "list", *none)[1] == "There are no edits yet. `liveedit edit` makes one.\n"
    assert run("edits", "list", *none, "--all")[1] == "There are no edits yet.\n"
    assert run("edits", "list", *option, "--at", 0)[1] == "No edit was active after revision 0.\n"
    for edit in json.loads(run("edits", "list", *option, "--json")[1])["edits"]:
        run("edits", "undo", *option, edit["id"])
    assert run("edits", "list", *option)[1] == "No edit is active. --all lists 3 edits undone or purged.\n"
    assert "Active edits: 0" in run("edits", "list", *option, "--all")[1]
    assert json.loads(run("edits", "list", *option, "--json")[1])["edits"] == []


def test_numbers_are_rounded_for_people_and_exact_in_json(
    run: Run, tmp_path: Path, random_expert: Callable[..., LowRankExpert]
) -> None:
    option, taken = ("--edits", tmp_path / "edits.db"), 1234.567890123456
    with EditStore(tmp_path / "edits.db") as store:
        store.bind("b" * 64, "e" * 64, backbone="tiny-llava", editor="liveedit")
        edit = NewEdit(prompt="Who?", answer="Ada", editor="liveedit", milliseconds=taken)
        edit_id = store.add(edit, expert_to_bytes(random_expert(0))).id
    shown = run("edits", "show", *option, edit_id)[1]
    (line,) = (line for line in shown.splitlines() if "milliseconds" in line)
    assert line.split() == ["milliseconds", "1,235"]
    assert json.loads(run("edits", "show", *option, edit_id, "--json")[1])["milliseconds"] == taken


NEEDS_NO_MODEL = """
import sys
from liveedit.cli import main
code = main(sys.argv[1:])
loaded = sorted({"torch", "transformers"} & set(sys.modules))
sys.exit(f"exit code {code}, imported {loaded}" if code or loaded else 0)
"""


@pytest.mark.parametrize(
    "command", ["list", "show", "history", "verify", "undo", "export", "export-rows", "import", "diff"]
)
def test_commands_on_stored_edits_import_neither_torch_nor_transformers(
    answer_of: Answer, file: Path, tmp_path: Path, command: str
) -> None:
    edit_id = ids_of(answer_of("list", "--edits", file))[0]
    answer_of("export", "--edits", contradicting(file, tmp_path), tmp_path / "other")
    given_more = {
        "show": [edit_id],
        "undo": [edit_id],
        "export": [tmp_path / "bundle"],
        "export-rows": [tmp_path / "rows.jsonl"],
        "import": [tmp_path / "other", "--on-conflict", "supersede"],
    }
    more = given_more.get(command, [])
    place = [file, file] if command == "diff" else ["--edits", file]
    given = ["edits", command.partition("-")[0], *place, *more, "--json"]
    done = subprocess.run(
        [sys.executable, "-c", NEEDS_NO_MODEL, *map(str, given)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_export_and_import(answer_of: Answer, run: Run, file: Path, tmp_path: Path) -> None:
    ids = ids_of(answer_of("list", "--edits", file))
    answer_of("undo", "--edits", file, ids[0])
    bundle, few = tmp_path / "all.safetensors", tmp_path / "few.safetensors"
    assert answer_of("export", "--edits", file, bundle) == {"bundle": str(bundle), "edits": 3, "revision": 4}
    assert answer_of("export", "--edits", file, few, "--active")["edits"] == 2
    other = tmp_path / "other.db"
    assert answer_of("import", "--edits", other, bundle)["active_edits"] == 2
    assert answer_of("history", "--edits", other) == answer_of("history", "--edits", file)
    assert answer_of("import", "--edits", other, few)["already_there"] == ids[1:]
    assert "Imported 0 edits; 2 were there already" in run("edits", "import", "--edits", other, few)[1]
    assert (
        "Wrote 3 edits at revision 4 to" in run("edits", "export", "--edits", other, tmp_path / "again.safetensors")[1]
    )
    code, _, err = run("edits", "export", "--edits", other, bundle)
    assert code == 1 and "is there already" in err


def test_an_import_that_contradicts_active_edits_is_refused(
    answer_of: Answer, run: Run, file: Path, tmp_path: Path
) -> None:
    there = ids_of(answer_of("list", "--edits", file))
    other, bundle = contradicting(file, tmp_path), tmp_path / "other.safetensors"
    (own,) = ids_of(answer_of("list", "--edits", other))
    answer_of("export", "--edits", other, bundle)
    before = answer_of("history", "--edits", file)
    for more in ((), ("--on-conflict", "refuse"), ("--json",)):
        code, out, err = run("edits", "import", "--edits", file, bundle, *more)
        assert (code, out) == (1, "") and "Nothing was imported" in err
        assert f"'QUESTION 0?': active: {there[0]} 'answer 0'; in the bundle: {own} 'other 0'" in err
        assert "--on-conflict supersede" in err and "--on-conflict keep" in err
    assert answer_of("history", "--edits", file) == before
    code, _, err = run("edits", "import", "--edits", file, bundle, "--on-conflict", "merge")
    assert code == 1 and "merge" in err


def test_an_import_that_supersedes(answer_of: Answer, run: Run, file: Path, tmp_path: Path) -> None:
    there = ids_of(answer_of("list", "--edits", file))
    other, bundle = contradicting(file, tmp_path), tmp_path / "other.safetensors"
    (own,) = ids_of(answer_of("list", "--edits", other))
    answer_of("export", "--edits", other, bundle)
    code, out, _ = run("edits", "import", "--edits", file, bundle, "--on-conflict", "supersede")
    assert code == 0 and out.splitlines() == [
        "Imported 1 edit; 0 were there already, 0 were purged here and stay purged (active edits: 3).",
        "1 contradiction; the later edit superseded the earlier:",
        f"'QUESTION 0?': active: {there[0]} 'answer 0'; in the bundle: {own} 'other 0'",
    ]
    answer_of("undo", "--edits", file, own)
    assert ids_of(answer_of("list", "--edits", file)) == there


def test_an_import_that_keeps_contradictions(answer_of: Answer, run: Run, file: Path, tmp_path: Path) -> None:
    there = ids_of(answer_of("list", "--edits", file))
    other, bundle = contradicting(file, tmp_path, "other 0", "other 1"), tmp_path / "other.safetensors"
    own = ids_of(answer_of("list", "--edits", other))
    answer_of("export", "--edits", other, bundle)
    done = answer_of("import", "--edits", file, bundle, "--on-conflict", "keep")
    assert done == {
        "added": own,
        "already_there": [],
        "purged_here": [],
        "superseded": {},
        "repeated": [],
        "contradictions": [
            {
                "prompt": f"QUESTION {number}?",
                "image_name": None,
                "there": {there[number]: f"answer {number}"},
                "imported": {own[number]: f"other {number}"},
            }
            for number in range(2)
        ],
        "active_edits": 5,
    }
    code, out, _ = run("edits", "verify", "--edits", file)
    assert code == 0 and out.splitlines() == [
        *(
            f"Note: different answers to 'question {number}': active: {there[number]} 'answer {number}', "
            f"{own[number]} 'other {number}'"
            for number in range(2)
        ),
        "5 edits checked: all is well.",
    ]
    found = answer_of("verify", "--edits", file)
    assert found["ok"] and [contradiction["there"] for contradiction in found["contradictions"]] == [
        {there[number]: f"answer {number}", own[number]: f"other {number}"} for number in range(2)
    ]
    answer_of("undo", "--edits", file, own[0])
    assert len(answer_of("verify", "--edits", file)["contradictions"]) == 1


def test_the_report_of_an_import_counts(answer_of: Answer, run: Run, file: Path, tmp_path: Path) -> None:
    """Edits with the same answer; then the same edits again, one of them purged."""
    other, bundle = contradicting(file, tmp_path, "Answer 0.", "answer 1"), tmp_path / "other.safetensors"
    own = ids_of(answer_of("list", "--edits", other))
    answer_of("export", "--edits", other, bundle)
    assert run("edits", "import", "--edits", file, bundle)[1].splitlines() == [
        "Imported 2 edits; 0 were there already, 0 were purged here and stay purged (active edits: 3).",
        "2 imported edits superseded an active edit of the same question with the same answer.",
    ]
    answer_of("purge", "--edits", file, own[0], "--yes")
    assert run("edits", "import", "--edits", file, bundle)[1] == (
        "Imported 0 edits; 1 was there already, 1 was purged here and stays purged (active edits: 3).\n"
    )
    answer_of("purge", "--edits", other, own[1], "--yes")
    said = run("edits", "export", "--edits", other, tmp_path / "one.safetensors", "--active")[1]
    assert said.startswith("Wrote 1 edit at revision 3")


def test_verify_says_what_is_wrong(answer_of: Answer, run: Run, file: Path) -> None:
    assert answer_of("verify", "--edits", file) == {"edits": 3, "problems": [], "ok": True, "contradictions": []}
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.execute("UPDATE blobs SET sha256 = 'x' WHERE edit_number = 2")
    code, out, _ = run("edits", "verify", "--edits", file)
    assert code == 1 and "is damaged" in out and "3 edits checked: 1 problem.\n" in out
    code, out, _ = run("edits", "verify", "--edits", file, "--json")
    assert code == 1 and json.loads(out)["ok"] is False


def test_purge_asks_first(answer_of: Answer, run: Run, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = ids_of(answer_of("list", "--edits", file))
    monkeypatch.setattr("sys.stdin", io.StringIO("n\n"))
    assert run("edits", "purge", "--edits", file, ids[0])[0] == 130
    assert len(ids_of(answer_of("list", "--edits", file))) == 3
    purged = answer_of("purge", "--edits", file, ids[0], "--yes", "--author", "clerk")
    assert (purged["prompt"], purged["active_edits"], purged["active"]) == ("", 2, False)
    assert answer_of("show", "--edits", file, ids[0])["history"][-1]["author"] == "clerk"
    assert b"question 0" not in file.read_bytes()


def test_asking_as_it_was(
    run: Run,
    tmp_path: Path,
    tiny_llava: Backbone,
    small_config: Callable[..., LiveEditConfig],
    eval_cases: tuple[EditCase, ...],
) -> None:
    with LiveEdit.untrained(tiny_llava, small_config()) as editor:
        editor.modules.hat.load_state_dict(editor.modules.bar.state_dict())
        editor.save_pretrained(tmp_path / "editor")
    picture, file = eval_cases[0].edit.question.image, tmp_path / "edits.db"
    asked = ("--edits", file, "--image", picture, "--prompt", "What is it?", "--editor-path", tmp_path / "editor")
    code, out, err = run("edit", *asked, "--answer", "forest", "--author", "ada", "--note", "seen", "--json")
    assert code == 0, err
    receipt = json.loads(out)
    assert json.loads(run("ask", *asked, "--json")[1])["text"] == "forest"
    past = json.loads(run("ask", *asked, "--at", 0, "--json")[1])
    assert past == {"text": receipt["answer_before"], "fired": [], "withheld": []}
    shown = json.loads(run("edits", "show", "--edits", file, receipt["id"], "--json")[1])
    assert (shown["author"], shown["note"]) == ("ada", "seen")
    code, _, err = run("ask", *asked, "--at", 7)
    assert code == 1 and "no revision 7" in err
