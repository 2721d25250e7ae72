"""RECIPE at work: prompts are retrieved, put before the query, taken back, kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image

from liveedit.backbones import Backbone, load_backbone
from liveedit.backbones.prompt_transforms import PreparedQuestion
from liveedit.editors.recipe import Recipe
from liveedit.editors.recipe.editor import default_prompt_tokens
from liveedit.editors.shared import read_questions
from liveedit.editors.trained import TrainingSetup, train_editor
from liveedit.errors import BackboneError, InvalidInputError, NotFoundError
from liveedit.samples import Edit, EditCase, Question
from liveedit.testing.family_models import FAMILIES
from liveedit.training.trainer import StageConfig, TrainingConfig

SIZES = {"features": 32, "generator_width": 32, "prompt_tokens": 3}


@pytest.fixture
def editor(random_backbone: Backbone) -> Iterator[Recipe]:
    with Recipe.untrained(random_backbone, Recipe.new_config(random_backbone, **SIZES)) as made:
        yield made


@pytest.fixture
def edits(picture: Callable[[int], Image.Image]) -> list[tuple[str, Edit]]:
    return [
        ("first", Edit(Question("What color is the hat?", picture(1)), "red")),
        ("second", Edit(Question("Where does this creature live?", picture(2)), "deep well")),
    ]


def queries_of(editor: Recipe, questions: list[Question]) -> torch.Tensor:
    with torch.no_grad():
        return editor.modules.queries(read_questions(editor.backbone, questions, editor.config.layer))


def lower_border(editor: Recipe) -> None:
    """Put the sentinel so far off that the nearest edit is always nearer."""
    with torch.no_grad():
        editor.modules.sentinel.copy_(-editor.memory.features.sum(0))


def raise_border(editor: Recipe, question: Question) -> None:
    """Put the sentinel on a query: nothing is nearer to it."""
    with torch.no_grad():
        editor.modules.sentinel.copy_(queries_of(editor, [question])[0])


@torch.no_grad()
def test_the_nearest_edits_prompt_stands_before_the_query(editor: Recipe, edits: list[tuple[str, Edit]]) -> None:
    backbone, questions = editor.backbone, [edit.question for _, edit in edits]
    editor.edit(edits)
    lower_border(editor)
    tokens = read_questions(backbone, questions, editor.config.layer, ["red", "deep well"])
    keys, prompts = editor.modules.keys(tokens), editor.modules.generator(tokens)
    sought = queries_of(editor, questions)
    nearest = (sought @ keys.T).argmax(1)
    with backbone.transformed(
        lambda asked: [PreparedQuestion(q, prompts[int(n)]) for q, n in zip(asked, nearest, strict=True)]
    ):
        expected = backbone.logits(backbone.encode(questions, ["red", "well"]))
    found = backbone.logits(backbone.encode(questions, ["red", "well"]))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    fired = editor.fired()
    assert fired is not None
    assert [row[0].edit_id for row in fired] == [("first", "second")[int(n)] for n in nearest]
    margins = (sought * keys[nearest]).sum(1) - sought @ editor.modules.sentinel_key
    assert [row[0].margin for row in fired] == pytest.approx(margins.tolist(), abs=1e-4)


@torch.no_grad()
def test_below_the_sentinel_nothing_changes(editor: Recipe, edits: list[tuple[str, Edit]]) -> None:
    question = edits[0][1].question
    before = editor.backbone.logits(editor.backbone.encode([question], ["red"]))
    editor.edit(edits)
    raise_border(editor, question)
    assert torch.equal(editor.backbone.logits(editor.backbone.encode([question], ["red"])), before)
    assert editor.fired() == [()]


@torch.no_grad()
def test_undo_and_reset_leave_no_trace(editor: Recipe, edits: list[tuple[str, Edit]]) -> None:
    backbone, questions = editor.backbone, [edit.question for _, edit in edits]

    def logits() -> torch.Tensor:
        return backbone.logits(backbone.encode(questions))

    unedited = logits()
    editor.edit(edits[:1])
    lower_border(editor)
    one = logits()
    assert one.shape[1] == unedited.shape[1] + 3
    assert (one[:, -1] - unedited[:, -1]).abs().max() > 1e-3
    editor.edit(edits[1:])
    editor.undo("second")
    assert torch.equal(logits(), one)
    with pytest.raises(NotFoundError, match="no edit 'second'"):
        editor.undo("second")
    with pytest.raises(InvalidInputError, match="already there"):
        editor.edit(edits[:1])
    editor.undo("first")
    assert backbone.encode(questions).prepared == ()
    assert torch.equal(logits(), unedited)
    editor.edit(edits)
    editor.reset()
    assert torch.equal(logits(), unedited)
    assert editor.fired() == []


@torch.no_grad()
def test_kept_edits_answer_the_same_elsewhere(editor: Recipe, edits: list[tuple[str, Edit]], tmp_path: Path) -> None:
    backbone, questions = editor.backbone, [edit.question for _, edit in edits]
    editor.edit(edits)
    lower_border(editor)
    editor.save_pretrained(tmp_path / "editor")
    state = editor.edited_state()
    expected = backbone.logits(backbone.encode(questions))
    editor.detach()
    with Recipe.from_pretrained(tmp_path / "editor", backbone) as again:
        again.restore(*state)
        assert torch.equal(backbone.logits(backbone.encode(questions)), expected)
        again.undo("first")
        again.undo("second")
        none = again.edited_state()
        again.restore(*none)
        assert backbone.encode(questions).prepared == ()


def test_what_an_edit_costs_is_its_key_and_its_prompt(editor: Recipe, edits: list[tuple[str, Edit]]) -> None:
    (record, _) = editor.edit(edits)
    assert record.store_bytes == 4 * (32 + 3 * 192)


@pytest.mark.parametrize(
    ("family", "width", "vectors"), [("llava", 192, 8), ("llava", 320, 4), ("llava", 768, 3), ("blip2-opt", 64, 3)]
)
def test_narrow_models_with_free_positions_get_more_prompt_vectors(
    family: str, width: int, vectors: int, random_backbone: Backbone, tmp_path: Path
) -> None:
    backbone = random_backbone
    if family != "llava":
        FAMILIES[family](tmp_path)
        backbone = load_backbone(tmp_path, device="cpu")
        assert backbone.width == width
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(type(backbone), "width", width)
        assert default_prompt_tokens(backbone) == vectors


def test_the_backbone_decides_the_number_of_prompt_vectors_unless_it_is_given(random_backbone: Backbone) -> None:
    assert Recipe.new_config(random_backbone).prompt_tokens == 8
    assert Recipe.new_config(random_backbone, prompt_tokens=3).prompt_tokens == 3


def test_modules_of_another_width_are_refused(random_backbone: Backbone) -> None:
    with pytest.raises(BackboneError, match="made for width 64"):
        Recipe.untrained(random_backbone, Recipe.new_config(random_backbone, width=64))
    with pytest.raises(BackboneError, match="layer 6"):
        Recipe.untrained(random_backbone, Recipe.new_config(random_backbone, layer=6))


def test_it_trains_into_a_folder_and_goes_on_there(
    random_backbone: Backbone, train_cases: tuple[EditCase, ...], tmp_path: Path
) -> None:
    config = Recipe.new_config(random_backbone, **SIZES)
    stages = tuple(StageConfig(name=name, steps=1, batch=3, learning_rate=1e-3) for name in ("retrieval", "prompts"))
    training = TrainingConfig(stages=stages, validation=2, validate_every=1, mixed_precision=False)  # type: ignore[call-arg]
    cases = train_cases[:6]
    result = train_editor(TrainingSetup(Recipe, config, training), random_backbone, cases, tmp_path)
    assert result.folder == tmp_path / "editor"
    assert 0 <= result.validation["text_generality"] <= 100
    first = Recipe.load(random_backbone, str(result.folder))
    again = train_editor(TrainingSetup(Recipe, config, training), random_backbone, cases, tmp_path)
    second = Recipe.load(random_backbone, str(again.folder))
    assert first.digest() == second.digest() != Recipe.untrained(random_backbone, config).digest()
