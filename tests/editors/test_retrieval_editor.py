"""Retrieval editors in an `EditedModel`: their edits are stored, undone alone, and active again after reopening."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from liveedit.backbones import Backbone
from liveedit.edited.model import EditedModel
from liveedit.editors import editor_class, expert_editor_names
from liveedit.editors.base import ExpertEditor
from liveedit.editors.ike import InContext, InContextConfig
from liveedit.editors.lte import LearningToEdit
from liveedit.editors.recipe import Recipe
from liveedit.editors.serac import Serac
from liveedit.editors.shared import RetrievalEditor, read_questions
from liveedit.editors.trained import TrainedEditor
from liveedit.errors import InvalidInputError, NotFoundError
from liveedit.samples import Edit, Question
from liveedit.store.store import EditStore

NAMES = ("ike", "lte", "recipe", "serac")
SMALL = {
    "lte": {"features": 32, "retriever_layers": 1},
    "recipe": {"features": 32, "generator_width": 32},
    "serac": {"features": 32, "classifier_layers": 1, "counterfactual_width": 32, "counterfactual_heads": 2},
}


def made(name: str, backbone: Backbone) -> RetrievalEditor:
    """An editor with its first weights in which every edit is near enough to be retrieved."""
    if name == "ike":
        return InContext(backbone, InContextConfig(image_threshold=-1.0, prompt_threshold=-1.0))  # type: ignore[call-arg]
    kind = editor_class(name)
    assert issubclass(kind, TrainedEditor)
    editor = kind.untrained(backbone, kind.new_config(backbone, **SMALL[name]), seed=2)
    with torch.no_grad():
        if isinstance(editor, Serac):
            editor.modules.classifier.similarity.offset.fill_(-100.0)
        elif isinstance(editor, LearningToEdit):
            editor.modules.similarity.offset.fill_(-100.0)
            for parameter in editor.modules.tuning.parameters():
                parameter.fill_(0.001)
        elif isinstance(editor, Recipe):
            seen = read_questions(backbone, [Question("What color is the hat?")], editor.layer)
            editor.modules.sentinel.copy_(-editor.modules.queries(seen)[0])
    assert isinstance(editor, RetrievalEditor)
    return editor


def logits_of(backbone: Backbone, question: Question) -> torch.Tensor:
    with torch.no_grad():
        inputs = backbone.encode([question], ["red"])
        return backbone.logits(inputs)[inputs.predicting]


def test_they_are_listed_with_the_editors_of_single_experts() -> None:
    assert set(NAMES) <= set(expert_editor_names())


@pytest.mark.parametrize("name", NAMES)
def test_an_edit_is_asked_about_checked_against_its_neighbours_and_undone(
    name: str, random_backbone: Backbone, picture: Callable[[int], Image.Image]
) -> None:
    hat, home = Question("What color is the hat?", picture(1)), Question("Where does this creature live?", picture(2))
    unedited = logits_of(random_backbone, hat)
    with EditedModel(random_backbone, made(name, random_backbone)) as model:
        first = model.edit(hat.image, hat.prompt, "red", must_take=False)
        one = logits_of(random_backbone, hat)
        assert not torch.equal(one, unedited)
        assert [fired.edit_id for fired in model.ask(hat.image, hat.prompt).fired or ()] == [first.id]
        second = model.edit(home.image, home.prompt, "deep well", must_take=False)
        assert [probed.edit_id for probed in second.evidence.earlier_edits] == [first.id]
        model.undo(second.id)
        assert torch.equal(logits_of(random_backbone, hat), one)
        model.undo(first.id)
        assert torch.equal(logits_of(random_backbone, hat), unedited)
    assert random_backbone._transform is None


@pytest.mark.parametrize("name", NAMES)
def test_edits_in_a_file_are_active_again_after_reopening(
    name: str, random_backbone: Backbone, picture: Callable[[int], Image.Image], tmp_path: Path
) -> None:
    hat, home = Question("What color is the hat?", picture(1)), Question("Where does this creature live?", picture(2))
    unedited = logits_of(random_backbone, hat)
    file = tmp_path / "edits.db"
    with EditedModel(random_backbone, made(name, random_backbone), EditStore(file)) as model:
        first = model.edit(hat.image, hat.prompt, "red", must_take=False)
        one = logits_of(random_backbone, hat)
        second = model.edit(home.image, home.prompt, "deep well", must_take=False)
        both = logits_of(random_backbone, hat), logits_of(random_backbone, home)
    assert torch.equal(logits_of(random_backbone, hat), unedited)
    with EditedModel(random_backbone, made(name, random_backbone), EditStore(file)) as model:
        assert [edit.id for edit in model.edits()] == [first.id, second.id]
        assert torch.equal(logits_of(random_backbone, hat), both[0])
        assert torch.equal(logits_of(random_backbone, home), both[1])
        model.undo(second.id)
        assert torch.equal(logits_of(random_backbone, hat), one)
        model.undo(first.id)
        assert torch.equal(logits_of(random_backbone, hat), unedited)


@pytest.mark.parametrize("name", NAMES)
def test_while_paused_the_model_is_the_unedited_one(
    name: str, random_backbone: Backbone, picture: Callable[[int], Image.Image]
) -> None:
    question = Question("What color is the hat?", picture(1))
    unedited = logits_of(random_backbone, question)
    with made(name, random_backbone) as editor:
        editor.edit([("hat", Edit(question, "red"))])
        edited = logits_of(random_backbone, question)
        with editor.paused():
            assert torch.equal(logits_of(random_backbone, question), unedited)
            assert editor.fired() == []
        assert torch.equal(logits_of(random_backbone, question), edited)
        assert [[fired.edit_id for fired in row] for row in editor.fired() or []] == [["hat"]]


@pytest.mark.parametrize("name", NAMES)
def test_the_latest_of_equal_edits_is_still_the_latest_when_restored(
    name: str, random_backbone: Backbone, picture: Callable[[int], Image.Image]
) -> None:
    question = Question("What color is the hat?", picture(1))
    with made(name, random_backbone) as editor:
        editor.edit([("z", Edit(question, "red")), ("a", Edit(question, "deep well"))])
        tensors, note = editor.edited_state()
        editor.reset()
        editor.restore(tensors, note)
        logits_of(random_backbone, question)
        assert [[fired.edit_id for fired in row] for row in editor.fired() or []] == [["a"]]
        assert editor.ids == ("z", "a")


@pytest.mark.parametrize("name", NAMES)
def test_neighbours_are_the_nearest_first(
    name: str, random_backbone: Backbone, picture: Callable[[int], Image.Image]
) -> None:
    same, other = Question("What color is the hat?", picture(1)), Question("Where does it live?", picture(2))
    with made(name, random_backbone) as editor:
        expert, steps = editor.make_expert(Edit(same, "red"))
        assert steps == 0 and len(editor) == 0
        assert editor.neighbours(expert, 3) == []
        editor.edit([("other", Edit(other, "well")), ("same", Edit(same, "blue"))])
        found = editor.neighbours(expert, 3)
        assert [near.edit_id for near in found] == ["same", "other"]
        assert found[0].similarity > found[1].similarity
        assert editor.neighbours(expert, 1) == found[:1]


def test_an_expert_of_another_shape_is_refused_before_anything_changes(
    random_backbone: Backbone, picture: Callable[[int], Image.Image]
) -> None:
    question = Question("What color is the hat?", picture(1))
    with made("serac", random_backbone) as maker:
        expert, _ = maker.make_expert(Edit(question, "red"))
    config = Serac.new_config(random_backbone, **{**SMALL["serac"], "features": 16})
    with Serac.untrained(random_backbone, config) as editor:
        with pytest.raises(InvalidInputError, match=r"feature of shape \(32,\).*takes \(16,\)"):
            editor.add("hat", expert)
        assert len(editor) == 0 and random_backbone._transform is None
        with pytest.raises(NotFoundError, match="no edit 'hat'"):
            editor.get("hat")
        assert isinstance(editor, ExpertEditor)
