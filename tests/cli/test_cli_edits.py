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
    assert "3 active edits" in run("edits", "list", *option)[1]
    assert f"Edit {edit_id} is undone" in run("edits", "undo", *option, edit_id)[1]
    assert "3 active edits after revision 3" in run("edits", "list", *option, "--at", 3)[1]
    assert f"Edit {edit_id} is active again" in run("edits", "redo", *option, edit_id)[1]
    shown = run("edits", "history", *option)[1]
    assert "5 changes" in shown and "redo" in shown and "ada" in shown
    assert "(revision 5)" in run("edits", "show", *option, edit_id)[1]
    assert run("edits", "verify", *option)[:2] == (0, "3 edits checked: all is well.\n")


NEEDS_NO_MODEL = """
import sys
from liveedit.cli import main
code = main(sys.argv[1:])
loaded = sorted({"torch", "transformers"} & set(sys.modules))
sys.exit(f"exit code {code}, imported {loaded}" if code or loaded else 0)
"""


@pytest.mark.parametrize("command", ["list", "show", "history", "verify", "undo", "export"])
def test_commands_on_stored_edits_import_neither_torch_nor_transformers(
    answer_of: Answer, file: Path, tmp_path: Path, command: str
) -> None:
    edit_id = ids_of(answer_of("list", "--edits", file))[0]
    more = {"show": [edit_id], "undo": [edit_id], "export": [tmp_path / "bundle"]}.get(command, [])
    given = ["edits", command, "--edits", file, *more, "--json"]
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


def test_verify_says_what_is_wrong(answer_of: Answer, run: Run, file: Path) -> None:
    assert answer_of("verify", "--edits", file) == {"edits": 3, "problems": [], "ok": True}
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.execute("UPDATE blobs SET sha256 = 'x' WHERE edit_number = 2")
    code, out, _ = run("edits", "verify", "--edits", file)
    assert code == 1 and "is damaged" in out and "3 edits checked: 1 problems" in out
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
    assert past == {"text": receipt["answer_before"], "fired": []}
    shown = json.loads(run("edits", "show", "--edits", file, receipt["id"], "--json")[1])
    assert (shown["author"], shown["note"]) == ("ada", "seen")
    code, _, err = run("ask", *asked, "--at", 7)
    assert code == 1 and "no revision 7" in err
