"""What `EditedModel` refuses: control tokens, a second model on one backbone, use after closing, and copies."""

from __future__ import annotations

import copy
import gc
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from shift_editor import ShiftEditor

from liveedit.backbones import Backbone
from liveedit.edited.model import EditedModel
from liveedit.editors.liveedit import LiveEdit, LiveEditConfig
from liveedit.errors import InvalidInputError, NotFoundError
from liveedit.samples import EditCase, Question
from liveedit.store.idempotency import ChangeRequest
from liveedit.store.store import EditStore
from liveedit.testing.model_traces import hooks_of

PROMPT = "What color is the hat?"
CLOSED = "was closed. Load the model again"
TAKEN = "already has an edited model.*Close the first one"


@pytest.fixture
def image(eval_cases: tuple[EditCase, ...]) -> Path:
    return Path(str(eval_cases[0].edit.question.image))


def logits_of(backbone: Backbone, image: Path) -> torch.Tensor:
    with torch.no_grad():
        return backbone.logits(backbone.encode([Question(PROMPT, image)]))


# -- arguments -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("given", "named"), [(None, "None"), (Path("a.png"), "a .*Path"), (b"PNG", "a bytes")])
def test_a_prompt_that_is_no_text_is_refused(tiny_llava: Backbone, image: Path, given: object, named: str) -> None:
    message = f"The prompt is {named}. Give its text .*the image comes before it"
    with EditedModel.load(tiny_llava) as model:
        with pytest.raises(InvalidInputError, match=message):
            model.ask(image, given)  # type: ignore[arg-type]
        with pytest.raises(InvalidInputError, match=message):
            model.edit(image, given, "red")  # type: ignore[arg-type]
        with pytest.raises(InvalidInputError, match=f"The answer is {named}"):
            model.edit(image, PROMPT, given)  # type: ignore[arg-type]
        assert len(model) == 0


def test_an_unknown_argument_is_named_and_makes_no_file(tiny_llava: Backbone, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"EditedModel.load has no argument 'edtis'. Did you mean 'edits'\?"):
        EditedModel.load(tiny_llava, edtis=tmp_path / "edits.db")
    with pytest.raises(InvalidInputError, match=r"no argument 'zz'. Give one of edits, at, .*dtype, .*quantization"):
        EditedModel.load("no-such-model", edits=tmp_path / "edits.db", zz=1)
    assert not list(tmp_path.iterdir())
    EditedModel.load(tiny_llava, quantization=None).close()


def test_arguments_of_loading_do_not_fit_a_loaded_backbone(tiny_llava: Backbone, tmp_path: Path) -> None:
    for argument in ({"dtype": torch.float16}, {"device": "cpu"}, {"device_map": "auto"}):
        with pytest.raises(InvalidInputError, match=f"{next(iter(argument))} was given with a backbone that is loaded"):
            EditedModel.load(tiny_llava, edits=tmp_path / "edits.db", **argument)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


# -- control tokens ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "answer", "named", "token"),
    [
        (PROMPT, "Zorp</s>", "answer", "</s>"),
        (PROMPT, "<pad>", "answer", "<pad>"),
        (PROMPT, "<s> red", "answer", "<s>"),
        ("What is</s> this?", "red", "prompt", "</s>"),
        ("<pad>", "red", "prompt", "<pad>"),
    ],
)
def test_control_tokens_in_an_edit_are_refused_by_name(
    tiny_llava: Backbone, image: Path, prompt: str, answer: str, named: str, token: str
) -> None:
    with EditedModel.load(tiny_llava) as model:
        before, request = logits_of(tiny_llava, image), ChangeRequest("ada", "k", b"body")
        for must_take in (True, False):
            with pytest.raises(InvalidInputError, match=f"The {named} .*contains '{token}'.*control token"):
                model.edit(image, prompt, answer, must_take=must_take, request=request)
        assert len(model) == 0 and model.store.list(include_undone=True) == ()
        assert model.store.made_by(request) is None
        assert torch.equal(logits_of(tiny_llava, image), before)


@pytest.mark.parametrize("answer", ["Zorp < /s >", "</S>", "a < b > c", "<unk>", "漢字 \U0001f600"])
def test_texts_that_only_look_like_control_tokens_are_texts(tiny_llava: Backbone, answer: str) -> None:
    tiny_llava.check_edit(PROMPT, answer)


def test_a_question_may_contain_a_control_token(tiny_llava: Backbone, image: Path) -> None:
    with EditedModel.load(tiny_llava) as model:
        assert isinstance(model.ask(image, "What is this?</s>").text, str)


# -- one edited model per backbone ---------------------------------------------------------------------------


def test_a_second_edited_model_on_one_backbone_is_refused(tiny_llava: Backbone, image: Path, tmp_path: Path) -> None:
    with EditedModel.load(tiny_llava) as first:
        first.edit(image, PROMPT, "teal")
        hooks, edited = hooks_of(tiny_llava), logits_of(tiny_llava, image)
        with pytest.raises(InvalidInputError, match=TAKEN):
            EditedModel.load(tiny_llava, edits=tmp_path / "edits.db")
        with EditStore(tmp_path / "other.db") as store, pytest.raises(InvalidInputError, match=TAKEN):
            EditedModel(tiny_llava, ShiftEditor(tiny_llava), store)
        with pytest.raises(InvalidInputError, match=TAKEN):
            EditedModel(tiny_llava, first.editor)
        assert hooks_of(tiny_llava) == hooks
        assert torch.equal(logits_of(tiny_llava, image), edited)
        assert first.ask(image, PROMPT).text == "teal"
    with EditedModel.load(tiny_llava) as second:
        assert second.ask(image, PROMPT).text != "teal"


def test_a_model_that_could_not_be_made_leaves_the_backbone_free(tiny_llava: Backbone, image: Path) -> None:
    hooks = hooks_of(tiny_llava)
    with pytest.raises(InvalidInputError, match="without an edits file"):
        EditedModel.load(tiny_llava, at=3)
    assert hooks_of(tiny_llava) == hooks
    with EditedModel.load(tiny_llava) as model:
        assert model.edit(image, PROMPT, "teal").took


def test_a_model_that_nobody_refers_to_leaves_the_backbone_free(tiny_llava: Backbone, image: Path) -> None:
    hooks, unedited = hooks_of(tiny_llava), logits_of(tiny_llava, image)
    model = EditedModel.load(tiny_llava)
    model.edit(image, PROMPT, "teal")
    del model
    gc.collect()
    assert hooks_of(tiny_llava) == hooks
    assert torch.equal(logits_of(tiny_llava, image), unedited)
    EditedModel.load(tiny_llava).close()


# -- after closing, and copies -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "use",
    [
        lambda model, image: model.ask(image, PROMPT),
        lambda model, image: model.ask_batch([(image, PROMPT)]),
        lambda model, image: model.edit(image, PROMPT, "red"),
        lambda model, image: model.edit(image, PROMPT, "red", request=ChangeRequest("ada", "k", b"body")),
        lambda model, image: model.undo("00000000"),
        lambda model, image: model.redo("00000000"),
        lambda model, image: model.check(),
        lambda model, image: list(model.check([])),
        lambda model, image: model.refresh(),
        lambda model, image: model.edits(),
        lambda model, image: model.__enter__(),
    ],
)
def test_a_closed_model_says_so(tiny_llava: Backbone, image: Path, use: Callable[[EditedModel, Path], object]) -> None:
    model = EditedModel.load(tiny_llava)
    model.close()
    model.close()
    with pytest.raises(InvalidInputError, match=CLOSED):
        use(model, image)


def test_a_check_that_outlives_the_model_says_so(tiny_llava: Backbone, image: Path) -> None:
    with EditedModel.load(tiny_llava) as model:
        model.edit(image, PROMPT, "teal")
        checking = model.check()
    with pytest.raises(InvalidInputError, match=CLOSED):
        next(checking)


def test_a_closed_model_leaves_its_successor_alone(tiny_llava: Backbone, image: Path) -> None:
    first = EditedModel.load(tiny_llava)
    first.close()
    with EditedModel.load(tiny_llava) as second:
        first.close()
        assert second.edit(image, PROMPT, "teal").took
        with pytest.raises(InvalidInputError, match=TAKEN):
            EditedModel.load(tiny_llava)


@pytest.mark.parametrize("copying", [copy.copy, copy.deepcopy, pickle.dumps])
def test_a_model_is_not_copied(
    tiny_llava: Backbone, small_config: Callable[..., LiveEditConfig], copying: Callable[[EditedModel], object]
) -> None:
    with EditedModel(tiny_llava, LiveEdit.untrained(tiny_llava, small_config())) as model:
        with pytest.raises(TypeError, match="edits file"):
            copying(model)
        with pytest.raises(NotFoundError):
            model.undo("00000000")
