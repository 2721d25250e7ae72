"""The neighbourhood of an edit: which active edits are nearest, and which of them collide with it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from forced_experts import AlwaysFires
from PIL import Image
from shift_editor import ShiftEditor

from liveedit.answering import Answering
from liveedit.answers import Answer, Fired
from liveedit.backbones import Backbone
from liveedit.edited import near as near_module
from liveedit.edited.model import EditedModel
from liveedit.edited.near import NearEdit
from liveedit.edited.recheck import AskedAbout
from liveedit.editors.liveedit import LiveEditConfig
from liveedit.editors.liveedit.modules import LiveEditModules
from liveedit.editors.shared.routing import Combining
from liveedit.errors import EditPurgedError, InvalidInputError, NotFoundError
from liveedit.experts import LowRankExpert
from liveedit.samples import Edit, EditCase, Question
from liveedit.store.records import StoredEdit
from liveedit.store.store import EditStore

PROMPT, OTHER_PROMPT = "What color is the hat?", "How many legs are there?"


class SameWeight(AlwaysFires):
    """Its experts have the same weight for whatever is asked about their image."""

    def make_expert(self, edit: Edit) -> tuple[LowRankExpert, int]:
        """An expert without a prompt feature."""
        expert, steps = super().make_expert(edit)
        no_prompt = 0 * expert.prompt_feature
        return LowRankExpert(expert.u, expert.v, expert.visual_feature, no_prompt, expert.query_feature), steps


@pytest.fixture
def model(tiny_llava: Backbone, small_config: Callable[..., LiveEditConfig], tmp_path: Path) -> Iterator[EditedModel]:
    """A model of the paper's sum: of n experts that pass, each has sigmoid(0) softmax(0, ..., 0) = 1 / 2n."""
    torch.manual_seed(0)
    editor = SameWeight(tiny_llava, LiveEditModules(small_config()))
    editor.combining, editor.answer_confidence = Combining(), 0.0
    with EditedModel(tiny_llava, editor, EditStore(tmp_path / "edits.db")) as opened:
        yield opened


@pytest.fixture
def images(eval_cases: tuple[EditCase, ...]) -> list[Path]:
    return [Path(str(case.edit.question.image)) for case in eval_cases]


def made(model: EditedModel, image: Path, prompt: str, answer: str) -> str:
    return model.edit(image, prompt, answer, must_take=False, supersede=False, probe_edits=0).id


def logits_of(model: EditedModel, image: Path) -> torch.Tensor:
    with torch.no_grad():
        return model.backbone.logits(model.backbone.encode([Question(PROMPT, image)]))


def test_near_edits_have_the_weights_with_which_they_fire(model: EditedModel, images: list[Path]) -> None:
    first = made(model, images[0], PROMPT, "teal")
    second = made(model, images[0], OTHER_PROMPT, "A teal.")
    (near,) = model.near(first)
    assert (near.edit_id, near.prompt, near.answer) == (second, OTHER_PROMPT, "A teal.")
    assert near.image_name == images[0].name and near.asked_about == "image"
    assert (near.weight_here, near.weight_there) == pytest.approx((0.25, 0.25))
    assert near.collides and not near.is_estimate and not near.answers_differ
    third = made(model, images[0], "Where is it?", "red")
    found = {one.edit_id: one for one in model.near(first)}
    assert found.keys() == {second, third} and found[third].answers_differ
    assert [one.weight_there for one in found.values()] == pytest.approx([1 / 6, 1 / 6])


def test_the_most_similar_come_first(model: EditedModel, images: list[Path]) -> None:
    edits = [made(model, image, PROMPT, "teal") for image in images[:5]]
    editor: Any = model.editor
    visual, prompt = (
        {edit: getattr(model.editor.get(edit), name).detach().double() for edit in edits}
        for name in ("visual_feature", "prompt_feature")
    )
    modules = editor.modules
    visual_scale, prompt_scale = modules.visual_scale.item(), modules.prompt_scale.item()
    similarities = {
        edit: visual_scale * float(visual[edits[0]] @ visual[edit])
        + prompt_scale * float(prompt[edits[0]] @ prompt[edit])
        for edit in edits[1:]
    }
    found = model.near(edits[0])
    assert [near.edit_id for near in found] == sorted(similarities, key=lambda edit: -similarities[edit])
    assert [near.similarity for near in found] == pytest.approx(sorted(similarities.values(), reverse=True), rel=1e-4)
    assert model.near(edits[0], most=2) == found[:2]
    for near in found:
        answer = model.ask(images[edits.index(near.edit_id)], PROMPT)
        asked = {fired.edit_id: fired.weight for fired in answer.fired or ()}
        assert near.weight_there == pytest.approx(asked.get(edits[0], 0.0), abs=1e-6)


def test_an_undone_edit_is_tried_meanwhile_and_leaves_nothing(model: EditedModel, images: list[Path]) -> None:
    first = made(model, images[0], PROMPT, "teal")
    second = made(model, images[0], OTHER_PROMPT, "red")
    while_active = model.near(first)
    model.undo(first)
    before = logits_of(model, images[0])
    assert model.near(first) == while_active and [near.edit_id for near in while_active] == [second]
    assert torch.equal(logits_of(model, images[0]), before) and list(model.editor.ids) == [second]
    model.undo(second)
    assert model.near(first) == []


def test_what_cannot_be_asked_is_estimated_and_said_so(
    model: EditedModel, images: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = made(model, images[0], PROMPT, "teal")
    made(model, images[0], OTHER_PROMPT, "red")
    about = near_module.question_of

    def without_images_of(*lost: str) -> None:
        def question_of(store: EditStore, edit: StoredEdit) -> tuple[AskedAbout, Image.Image | None]:
            return ("nothing", None) if edit.prompt in lost else about(store, edit)

        monkeypatch.setattr(near_module, "question_of", question_of)

    without_images_of(OTHER_PROMPT)
    (near,) = model.near(first)
    assert (near.asked_about, near.is_estimate, near.collides) == ("nothing", True, True)
    # Of two alone, which is what the estimate assumes.
    assert (near.weight_here, near.weight_there) == pytest.approx((0.25, 0.25))
    without_images_of(PROMPT, OTHER_PROMPT)
    (near,) = model.near(first)
    assert (near.weight_here, near.weight_there, near.is_estimate, near.collides) == (None, None, False, None)


def test_a_withheld_answer_tells_who_fired(
    model: EditedModel, images: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (made(model, images[0], prompt, "teal") for prompt in (PROMPT, OTHER_PROMPT))
    withheld = Answer("", (), None, (Fired(first, 0.3, 1.0), Fired(second, 0.2, 1.0)))
    monkeypatch.setattr(Answering, "ask_all", lambda self, questions, new_tokens: [withheld] * len(questions))
    (near,) = model.near(first)
    assert (near.weight_here, near.weight_there) == (0.2, 0.3)


@pytest.mark.parametrize(
    ("here", "there", "collides"),
    [(0.01, 0.0, True), (0.0, 0.01, True), (0.009, 0.0, False), (None, 0.5, True), (None, 0.0, None)],
)
def test_edits_collide_if_one_fires(here: float | None, there: float | None, collides: bool | None) -> None:
    near = NearEdit("1", "Who?", "Ada", None, 1.0, here, there, False, "text", True)
    assert near.collides is collides and near.to_dict()["collides"] is collides


def test_refusals(model: EditedModel, images: list[Path]) -> None:
    edit = made(model, images[0], PROMPT, "teal")
    with pytest.raises(NotFoundError):
        model.near("00000000")
    model.undo(edit)
    model.store.purge(edit)
    with pytest.raises(EditPurgedError, match="purged"):
        model.near(edit)


def test_an_editor_that_compares_no_edits_says_so(tiny_llava: Backbone, images: list[Path]) -> None:
    with EditedModel(tiny_llava, ShiftEditor(tiny_llava)) as model:
        edit = model.edit(images[0], PROMPT, "teal", must_take=False)
        with pytest.raises(InvalidInputError, match="'shift' does not compare edits"):
            model.near(edit.id)
