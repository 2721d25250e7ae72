"""What every editor promises, whatever its method. A new editor adds one row to `MAKERS`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from liveedit.backbones import Backbone
from liveedit.editors import Editor, editor_class, editor_names
from liveedit.editors.ft import FineTuneConfig, FineTuneLast, FineTuneMultimodal, FineTuneMultimodalConfig
from liveedit.editors.lemoe import Lemoe, LemoeConfig
from liveedit.editors.liveedit import LiveEdit, LiveEditConfig, LiveEditRefine, RefineConfig
from liveedit.editors.liveedit.modules import LiveEditModules
from liveedit.editors.t_patcher import TPatcher, TPatcherConfig
from liveedit.editors.trained import TrainedEditor
from liveedit.errors import InvalidInputError, NotFoundError
from liveedit.samples import Edit, Question

Maker = Callable[[Backbone, Callable[..., LiveEditConfig]], Editor]


def refining(backbone: Backbone, config: LiveEditConfig) -> LiveEditRefine:
    torch.manual_seed(0)
    return LiveEditRefine(backbone, LiveEditModules(config), RefineConfig(steps=3))  # type: ignore[call-arg]


def one_extractor(editor: LiveEdit) -> LiveEdit:
    """Queries get the features that edits get, so that an untrained editor finds its own edits."""
    editor.modules.bar.load_state_dict(editor.modules.hat.state_dict())
    return editor


def untrained(name: str) -> Maker:
    """An editor with its first weights."""

    def make(backbone: Backbone, config: Callable[..., LiveEditConfig]) -> Editor:
        kind = editor_class(name)
        assert issubclass(kind, TrainedEditor)
        return kind.untrained(backbone)

    return make


MAKERS: dict[str, Maker] = {
    "none": lambda backbone, config: editor_class("none").load(backbone),
    "ft-l": lambda backbone, config: FineTuneLast(backbone, FineTuneConfig(steps=3)),  # type: ignore[call-arg]
    "ft-m": lambda backbone, config: FineTuneMultimodal(backbone, FineTuneMultimodalConfig(steps=3)),  # type: ignore[call-arg]
    **{name: untrained(name) for name in ("mend", "serac", "lte", "recipe")},
    "lemoe": lambda backbone, config: Lemoe(backbone, LemoeConfig(steps=3, routing_steps=3)),  # type: ignore[call-arg]
    "ike": lambda backbone, config: editor_class("ike").load(backbone),
    "t-patcher": lambda backbone, config: TPatcher(backbone, TPatcherConfig(steps=3)),  # type: ignore[call-arg]
    "liveedit": lambda backbone, config: one_extractor(LiveEdit.untrained(backbone, config())),
    "liveedit-refine": lambda backbone, config: one_extractor(refining(backbone, config())),
}


UNDONE_BUT_NOT_FORGOTTEN = {"t-patcher"}
"""Editors whose later edits were made in the presence of one that is taken back."""


ANSWERS_STAY = {"none"}
"""Editors whose edits change no answer here."""


def test_every_built_in_editor_is_under_contract() -> None:
    built_in = {name for name in editor_names() if editor_class(name).__module__.startswith("liveedit.editors")}
    assert built_in == set(MAKERS)


@pytest.fixture(params=sorted(MAKERS))
def editor(
    request: pytest.FixtureRequest, random_backbone: Backbone, small_config: Callable[..., LiveEditConfig]
) -> Iterator[Editor]:
    made = MAKERS[request.param](random_backbone, small_config)
    yield made
    made.detach()


@pytest.fixture
def edits(picture: Callable[[int], Image.Image]) -> list[tuple[str, Edit]]:
    return [
        ("first", Edit(Question("What color is the hat?", picture(1)), "red")),
        ("second", Edit(Question("Where does this creature live?", picture(2)), "deep well")),
    ]


def model_bits(backbone: Backbone, edits: list[tuple[str, Edit]]) -> tuple[bytes, list[bytes]]:
    """Logits of questions with and without pictures, and every weight."""
    asked = [edit.question for _, edit in edits] + [Question("What is the capital of Coraland?")]
    with torch.no_grad():
        logits: Tensor = backbone.logits(backbone.encode(asked))
    return logits.numpy().tobytes(), [value.numpy().tobytes() for value in backbone.model.state_dict().values()]


def test_names_lead_back_to_the_class(editor: Editor) -> None:
    assert editor_class(editor.name) is type(editor)
    assert editor.summary


def test_reset_leaves_weights_and_logits_as_they_were(editor: Editor, edits: list[tuple[str, Edit]]) -> None:
    before = model_bits(editor.backbone, edits)
    editor.edit(edits)
    editor.reset()
    assert model_bits(editor.backbone, edits) == before
    editor.edit(edits[:1])
    editor.reset()
    assert model_bits(editor.backbone, edits) == before


def test_detach_leaves_all_as_it_was_and_may_be_called_twice(editor: Editor, edits: list[tuple[str, Edit]]) -> None:
    editor.reset()
    before = model_bits(editor.backbone, edits)
    editor.edit(edits)
    editor.detach()
    editor.detach()
    assert model_bits(editor.backbone, edits) == before


def test_records_name_their_edits_and_what_they_cost(editor: Editor, edits: list[tuple[str, Edit]]) -> None:
    seen: list[tuple[int, int]] = []
    records = editor.edit(edits, lambda done, total: seen.append((done, total)))
    assert [record.edit_id for record in records] == ["first", "second"]
    assert all(record.milliseconds >= 0 and record.refine_steps >= 0 for record in records)
    assert seen == [(1, 2), (2, 2)]


@pytest.mark.parametrize("answer", ["", " \n"])
def test_an_empty_answer_is_refused_before_anything_changes(
    editor: Editor, edits: list[tuple[str, Edit]], answer: str
) -> None:
    before = model_bits(editor.backbone, edits)
    with pytest.raises(InvalidInputError, match="'third' is empty"):
        editor.edit([*edits, ("third", Edit(edits[0][1].question, answer))])
    assert model_bits(editor.backbone, edits) == before


def test_an_exception_inside_with_leaves_all_as_it_was(editor: Editor, edits: list[tuple[str, Edit]]) -> None:
    editor.reset()
    before = model_bits(editor.backbone, edits)
    with pytest.raises(ZeroDivisionError), editor:
        editor.edit(edits)
        raise ZeroDivisionError
    assert model_bits(editor.backbone, edits) == before


def test_undo_takes_back_one_edit_or_says_that_it_cannot(editor: Editor, edits: list[tuple[str, Edit]]) -> None:
    before = model_bits(editor.backbone, edits)
    editor.edit(edits[:1])
    try:
        editor.undo("first")
    except NotFoundError as error:
        assert "reset it" in str(error)
        editor.reset()
    assert model_bits(editor.backbone, edits) == before


def test_undo_leaves_the_other_edit_as_if_alone(editor: Editor, edits: list[tuple[str, Edit]], tmp_path: Path) -> None:
    editor.edit(edits[1:])
    alone = model_bits(editor.backbone, edits)
    editor.reset()
    editor.edit(edits)
    both = model_bits(editor.backbone, edits)
    try:
        editor.undo("first")
    except NotFoundError as error:
        assert "'first'" in str(error)
        assert model_bits(editor.backbone, edits) == both, "a refused undo changed something"
    else:
        if editor.name not in UNDONE_BUT_NOT_FORGOTTEN:
            assert model_bits(editor.backbone, edits) == alone
    with pytest.raises(NotFoundError):
        editor.undo("nobody's")


def test_the_same_edits_give_the_same_bits(
    editor: Editor,
    random_backbone: Backbone,
    small_config: Callable[..., LiveEditConfig],
    edits: list[tuple[str, Edit]],
) -> None:
    editor.edit(edits)
    first = model_bits(random_backbone, edits)
    editor.detach()
    with MAKERS[editor.name](random_backbone, small_config) as again:
        assert again.digest() == editor.digest()
        again.edit(edits)
        assert model_bits(random_backbone, edits) == first


def test_restored_edits_answer_as_before(
    editor: Editor,
    random_backbone: Backbone,
    small_config: Callable[..., LiveEditConfig],
    edits: list[tuple[str, Edit]],
) -> None:
    untouched = model_bits(random_backbone, edits)
    editor.edit(edits)
    before = model_bits(random_backbone, edits)
    state = editor.edited_state()
    editor.detach()
    with MAKERS[editor.name](random_backbone, small_config) as again:
        again.edit(edits[:1])  # The active edits are replaced.
        again.restore(*state)
        assert model_bits(random_backbone, edits) == before
        again.reset()
        assert model_bits(random_backbone, edits) == untouched


def test_paused_answers_are_the_unedited_ones(editor: Editor, edits: list[tuple[str, Edit]]) -> None:
    unedited = model_bits(editor.backbone, edits)
    editor.edit(edits)
    edited = model_bits(editor.backbone, edits)
    assert edited != unedited or editor.name in ANSWERS_STAY, "the edits changed nothing, so that pausing has no effect"
    with editor.paused():
        assert model_bits(editor.backbone, edits) == unedited
    assert model_bits(editor.backbone, edits) == edited
    with pytest.raises(ZeroDivisionError), editor.paused():
        raise ZeroDivisionError
    assert model_bits(editor.backbone, edits) == edited


def test_no_edits_are_no_edits(editor: Editor, edits: list[tuple[str, Edit]]) -> None:
    before = model_bits(editor.backbone, edits)
    assert editor.edit([]) == []
    assert model_bits(editor.backbone, edits) == before


def test_what_an_editor_fired_fits_the_batch(editor: Editor, edits: list[tuple[str, Edit]]) -> None:
    editor.edit(edits)
    backbone = editor.backbone
    backbone.generate(backbone.encode([edit.question for _, edit in edits], padding="left"), 2)
    fired = editor.fired()
    assert fired is None or len(fired) in (0, 2)


def test_edits_answer_in_mixed_precision(editor: Editor, edits: list[tuple[str, Edit]]) -> None:
    editor.edit(edits)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        asked = editor.backbone.encode([edit.question for _, edit in edits])
        assert torch.isfinite(editor.backbone.logits(asked)).all()
        assert len(editor.backbone.generate(asked, max_new_tokens=3)) == len(edits)


def test_unknown_editors_are_told_with_those_there_are() -> None:
    with pytest.raises(NotFoundError, match=r"ft-l, ft-m, .*liveedit, .*none"):
        editor_class("rome")


@pytest.mark.parametrize("name", ["none", "ft-l", "ft-m", "t-patcher", "lemoe", "ike"])
def test_editors_without_trained_parts_refuse_a_folder(random_backbone: Backbone, name: str) -> None:
    with pytest.raises(InvalidInputError, match="no trained parts"):
        editor_class(name).load(random_backbone, "some/folder")


@pytest.mark.parametrize("name", ["liveedit", "liveedit-refine", "mend", "serac", "lte", "recipe"])
def test_editors_that_need_training_say_so(random_backbone: Backbone, name: str) -> None:
    with pytest.raises(NotFoundError, match=r"liveedit train .*--backbone tiny-random"):
        editor_class(name).load(random_backbone)
