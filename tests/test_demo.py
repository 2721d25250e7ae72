"""The demonstration: its examples are taken as they come, and what it shows is what the model said."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from liveedit import demo
from liveedit.backbones import Backbone
from liveedit.cli import main
from liveedit.edited.model import EditedModel
from liveedit.editors.liveedit import LiveEdit, LiveEditConfig, LiveEditRefine
from liveedit.errors import DatasetError
from liveedit.experiments.verification import verify_folder
from liveedit.samples import EditCase


@pytest.fixture
def examples_to_edit(eval_cases: tuple[EditCase, ...]) -> list[tuple[str, EditCase]]:
    return [("one", eval_cases[0]), ("two", eval_cases[1])]


def test_the_first_case_of_each_kind_is_taken(eval_cases: tuple[EditCase, ...]) -> None:
    base = eval_cases[0]

    def case(number: int, kind: str, before: str) -> EditCase:
        return replace(base, id=str(number), answer_type=kind, answer_before=before)

    given = [
        *(case(0, "hat", ""), case(1, "name", "Known"), case(2, "name", ""), case(3, "hat_color", "red")),
        *(case(4, "name", ""), case(5, "home", ""), case(6, "home", "cave"), case(7, "hat_color", "blue")),
    ]
    assert [chosen.id for _, chosen in demo.example_cases(given)] == ["2", "6", "3"]
    with pytest.raises(DatasetError, match="another home"):
        demo.example_cases(given[:6])


def test_answers_are_shown_as_given_and_undo_is_exact(
    tiny_llava: Backbone,
    small_config: Callable[..., LiveEditConfig],
    examples_to_edit: list[tuple[str, EditCase]],
) -> None:
    editor = LiveEditRefine.untrained(tiny_llava, small_config())
    editor.modules.hat.load_state_dict(editor.modules.bar.state_dict())
    with EditedModel(tiny_llava, editor) as model:
        first, last = demo.edit_examples(model, examples_to_edit)
        assert [edit.prompt for edit in model.edits()] == [examples_to_edit[0][1].edit.question.prompt]
    assert (first.restored, last.restored) == (None, True)
    assert all(item.undone is None for item in first.asked)
    for (_, case), example in zip(examples_to_edit, (first, last), strict=True):
        edited = example.asked[0]
        assert edited.what == "the edit"
        assert edited.prompt == case.edit.question.prompt
        assert edited.wanted == case.edit.answer
        assert edited.right == (edited.after == case.edit.answer)
        stays = [item for item in example.asked if item.what not in demo._MUST_FOLLOW.values()]
        assert len(stays) == 5
        assert all(item.wanted == item.before for item in stays)
    with EditedModel(tiny_llava, LiveEdit.untrained(tiny_llava, small_config())) as untouched:
        question = examples_to_edit[1][1].edit.question
        assert untouched.ask(question.image, question.prompt).text == last.asked[0].before


def test_the_whole_demo(
    tmp_path: Path,
    tiny_llava: Backbone,
    small_config: Callable[..., LiveEditConfig],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("LIVEEDIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(demo, "DRAWN", 40)
    # So small a world need not hold a known creature with another home.
    monkeypatch.setattr(demo, "_KINDS", (("name", False, "a name"), ("food", False, "its food")))
    with LiveEdit.untrained(tiny_llava, small_config()) as editor:
        editor.save_pretrained(tmp_path / "editor")
    arguments = ("demo", "--out", tmp_path / "report", "--edits", 4, "--editor-path", tmp_path / "editor")
    code = main([str(argument) for argument in (*arguments, "--json")])
    out, err = capsys.readouterr()
    assert code == 0, err
    result = json.loads(out)
    assert [example["title"] for example in result["examples"]] == ["a name", "its food"]
    assert result["examples"][1]["restored"] is True
    (row,) = result["rows"]
    assert (row["editor"], row["edits"], row["metrics"]["reliability"]["count"]) == ("liveedit", 4, 4)
    report = (tmp_path / "report" / "report.md").read_text()
    assert "bit for bit" in report
    assert "4 edits, one after the other" in report
    with Image.open(tmp_path / "report" / "example-1.png") as strip:
        assert strip.size == (4 * 256 + 3 * 8, 256)
    assert "](example-2.png)" in report
    verified = verify_folder(tmp_path / "report")
    assert verified.disagreements == [] and row["provenance"]["command"].startswith("liveedit demo --out ")
    assert any("is not made of rows" in remark.text for remark in verified.unchecked)

    code = main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    assert code == 0, err
    assert "Edit 2: its food" in out
    assert "Report with images" in out
