"""A gallery: what it asks, what it says of the answers, and what it writes."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from liveedit.answering import Answering
from liveedit.backbones import Backbone
from liveedit.editors import Editor
from liveedit.editors.t_patcher import TPatcher, TPatcherConfig
from liveedit.errors import InvalidInputError
from liveedit.evaluation import gallery as module
from liveedit.evaluation.gallery import KINDS, Gallery, ShownEdit, ShownQuestion, make_gallery, write_gallery
from liveedit.evaluation.plotting import PlotsUnavailableError
from liveedit.samples import EditCase

Run = Callable[..., tuple[int, str, str]]
PROVENANCE = {"git_sha": "0" * 40, "dirty": False, "backbone_digest": "b" * 64, "data_digest": "d" * 64}


@pytest.fixture
def shown(tiny_llava: Backbone, eval_cases: tuple[EditCase, ...]) -> Gallery:
    with TPatcher(tiny_llava, TPatcherConfig(memory_questions=24)) as editor:
        return make_gallery(tiny_llava, editor, eval_cases[:2])


def test_answers_are_those_of_the_models(
    tiny_llava: Backbone, eval_cases: tuple[EditCase, ...], shown: Gallery
) -> None:
    cases = eval_cases[:2]
    assert [edit.edit_id for edit in shown.edits] == [case.id for case in cases]
    assert [edit.answer for edit in shown.edits] == [case.edit.answer for case in cases]
    with TPatcher(tiny_llava, TPatcherConfig(memory_questions=24)) as editor:
        editor.edit([(case.id, case.edit) for case in cases])
        for case, edit in zip(cases, shown.edits, strict=True):
            first, *others = edit.questions
            assert (first.probe, first.prompt) == ("reliability", case.edit.question.prompt)
            assert {one.probe for one in others} <= KINDS.keys() and len(others) == len({one.probe for one in others})
            (after,) = Answering(tiny_llava, editor).ask([case.edit.question])
            assert first.after == after.text
            with editor.paused():
                (before,) = Answering(tiny_llava).ask([case.edit.question])
            assert first.before == first.after_undo == before.text
            assert first.as_wanted == (after.text == case.edit.answer)
            assert first.before != first.after, "the edit changed nothing"


def test_what_is_wanted_depends_on_the_scope(tiny_llava: Backbone, eval_cases: tuple[EditCase, ...]) -> None:
    class Nothing(Editor):
        name = "nothing"

        def _edit_one(self, edit_id: str, edit: object) -> dict[str, object]:  # type: ignore[override]
            return {}

        def reset(self) -> None: ...
        def detach(self) -> None: ...

    found = make_gallery(tiny_llava, Nothing(tiny_llava), eval_cases[:3])
    for one in found.questions:
        assert one.as_wanted == (one.probe not in ("reliability", "text_generality", "modal_generality"))
    inside = sum(not one.as_wanted for one in found.questions)
    assert f"0 of {inside} questions in the scope of an edit" in found.summary
    assert f"{len(found.questions)} of {len(found.questions)} answers are those before" in found.summary


def test_another_edit_of_the_same_fact_takes_a_locality_question_out(
    tiny_llava: Backbone, eval_cases: tuple[EditCase, ...]
) -> None:
    case = eval_cases[0]
    (near,) = case.named("near_duplicate_locality")
    other = replace(eval_cases[1], edit=replace(eval_cases[1].edit, question=near.question))
    with TPatcher(tiny_llava, TPatcherConfig(memory_questions=24)) as editor:
        found = make_gallery(tiny_llava, editor, [case, other])
    assert "near_duplicate_locality" not in {one.probe for one in found.edits[0].questions}


def test_the_folder_has_all_that_is_shown(shown: Gallery, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    report = write_gallery(shown, tmp_path, "Two edits", PROVENANCE)
    text = report.read_text(encoding="utf-8")
    assert text.startswith("# Two edits") and "![" in text and "- code 000000000000" in text
    assert shown.summary in text
    content = json.loads((tmp_path / "gallery.json").read_text(encoding="utf-8"))
    assert content["provenance"] == PROVENANCE and len(content["edits"]) == 2
    for edit in shown.edits:
        assert all(one.prompt in text for one in edit.questions)
    for one in shown.questions:
        assert one.image is None or (tmp_path / "images" / one.image).is_file()
    assert (tmp_path / "gallery.png").stat().st_size > 0


def test_without_images_or_matplotlib_the_report_says_so(
    shown: Gallery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ShownQuestion("reliability", "What is 1|2?", None, "3", "", "3", False)
    plain = Gallery((ShownEdit("a", "12", (asked,)),), {})
    text = write_gallery(plain, tmp_path / "plain", "One", PROVENANCE).read_text(encoding="utf-8")
    assert "No figure: no question has an image." in text
    assert "(nothing)" in text and "not the edit's answer" in text

    def missing(height: float) -> None:
        raise PlotsUnavailableError("matplotlib is not there")

    monkeypatch.setattr(module, "new_figure", missing)
    text = write_gallery(shown, tmp_path / "images", "Two", PROVENANCE).read_text(encoding="utf-8")
    assert "No figure: matplotlib is not there" in text


def test_no_case_is_refused(tiny_llava: Backbone) -> None:
    with pytest.raises(InvalidInputError, match="nothing to show"):
        make_gallery(tiny_llava, None, [])  # type: ignore[arg-type]


def test_the_command(run: Run, world: Path, tmp_path: Path) -> None:
    given = ("gallery", "--editor", "mine=ft-l", "--data", world, "--edits", 2, "--out", tmp_path / "out")
    code, said, err = run(*given)
    assert code == 0 and "2 edits" not in said and f"Report: {tmp_path / 'out' / 'report.md'}" in said, err
    assert "2 edits of tiny-llava, before and after: mine" in (tmp_path / "out" / "report.md").read_text()
    code, said, err = run(*given, "--json")
    assert code == 0 and set(json.loads(said)) == {"summary", "report"}, err
    code, _, err = run("gallery", "--editor", "ft-x", "--out", tmp_path / "other")
    assert code == 1 and "ft-x" in err and not (tmp_path / "other").exists()
