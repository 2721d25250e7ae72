"""Fitted experts on tiny models: what an edit changes, what it leaves alone, and how edits keep apart."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from liveedit.backbones import Backbone
from liveedit.edited.model import EditedModel
from liveedit.editors.fitted import Calibration, FittedConfig, FittedExperts
from liveedit.editors.shared.routing import changed_tokens
from liveedit.experts import LowRankExpert
from liveedit.samples import Edit, Question

PROMPT, ANSWER = "What is this creature called?", "Bruvak"
LONG = "a name of more words: Helmodin"


@pytest.fixture
def image(picture: Callable[[int], Image.Image]) -> Image.Image:
    return picture(1)


@pytest.fixture
def model(tiny_llava: Backbone, editor: FittedExperts) -> Iterator[EditedModel]:
    with EditedModel(tiny_llava, editor) as opened:
        yield opened


@pytest.fixture
def text_model(text_backbone: Backbone, text_editor: FittedExperts) -> Iterator[EditedModel]:
    with EditedModel(text_backbone, text_editor) as opened:
        yield opened


# -- edits -----------------------------------------------------------------------------------------------


def test_an_edit_takes_and_fires_for_its_question_alone(
    model: EditedModel, image: Image.Image, picture: Callable[[int], Image.Image]
) -> None:
    others = [(picture(2), PROMPT), (image, "Where is it?"), (None, PROMPT), (None, "Who wrote it?")]
    before = [answer.text for answer in model.ask_batch(others)]
    receipt = model.edit(image, PROMPT, ANSWER)
    assert receipt.took and 0 < receipt.refine_steps < 200
    found = model.ask(image, PROMPT)
    assert (found.text, [(fired.edit_id, fired.weight) for fired in found.fired]) == (ANSWER, [(receipt.id, 1.0)])
    after = model.ask_batch(others)
    assert [answer.text for answer in after] == before
    assert [answer.fired for answer in after] == [()] * 4


def test_an_edit_without_an_image_takes(model: EditedModel, image: Image.Image) -> None:
    receipt = model.edit(None, PROMPT, ANSWER)
    assert model.ask(None, PROMPT).text == ANSWER
    assert model.ask(image, PROMPT).fired == ()
    model.undo(receipt.id)
    assert model.ask(None, PROMPT).fired == ()


def test_an_edit_takes_on_a_model_without_images(text_model: EditedModel) -> None:
    receipt = text_model.edit(None, "Who wrote it?", "red")
    found = text_model.ask(None, "Who wrote it?")
    assert (found.text, [fired.edit_id for fired in found.fired]) == ("red", [receipt.id])


@pytest.mark.parametrize("shown", [True, False])
def test_of_contradicting_edits_the_newest_wins(model: EditedModel, image: Image.Image, shown: bool) -> None:
    about = image if shown else None
    ids = [model.edit(about, PROMPT, answer, supersede=False).id for answer in (ANSWER, LONG, "Tarosk")]
    for edit_id, answer in zip(reversed(ids), ("Tarosk", LONG, ANSWER), strict=True):
        found = model.ask(about, PROMPT, max_new_tokens=60)
        assert (found.text, [fired.edit_id for fired in found.fired]) == (answer, [edit_id])
        model.undo(edit_id)
    assert model.ask(about, PROMPT).fired == ()


def test_two_edits_of_one_image_stay_apart(model: EditedModel, image: Image.Image) -> None:
    wanted = {PROMPT: ANSWER, "What color is it?": "Tarosk", "How is this creature called?": "Helmodin"}
    ids = {model.edit(image, prompt, answer).id: prompt for prompt, answer in wanted.items()}
    for prompt, found in zip(wanted, model.ask_batch([(image, prompt) for prompt in wanted]), strict=True):
        assert found.text == wanted[prompt] == model.ask(image, prompt).text
        assert [ids[fired.edit_id] for fired in found.fired] == [prompt]


def test_undoing_leaves_no_bit(model: EditedModel, image: Image.Image) -> None:
    questions = [Question(PROMPT, image), Question(PROMPT), Question("Who wrote it?")]

    def logits() -> Tensor:
        with torch.no_grad():
            return model.backbone.logits(model.backbone.encode(questions, padding="left"))

    before = logits()
    ids = [model.edit(about, PROMPT, ANSWER).id for about in (image, None)]
    edited = logits()
    assert not torch.equal(before[0], edited[0]) and not torch.equal(before[1], edited[1])
    assert torch.equal(before[2], edited[2]), "nothing fired for the third"
    for edit_id in ids:
        model.undo(edit_id)
    assert torch.equal(before, logits())


# -- experts ---------------------------------------------------------------------------------------------


@dataclass
class Made:
    """A question with its answer, encoded, and the expert of that edit."""

    edit: Edit
    expert: LowRankExpert

    @classmethod
    def by(cls, editor: FittedExperts, image: Image.Image | None, answer: str = ANSWER) -> Made:
        edit = Edit(Question(PROMPT, image), answer)
        return cls(edit, editor.make_expert(edit)[0])


@pytest.mark.parametrize("answer", ["red", LONG])
def test_an_expert_has_a_row_for_each_token_of_the_answer(
    editor: FittedExperts, image: Image.Image, answer: str
) -> None:
    made = Made.by(editor, image, answer)
    length = int(editor.backbone.encode([made.edit.question], [answer]).answer_mask.sum())
    assert made.expert.u.shape == made.expert.v.shape == (length, editor.backbone.width)
    assert len(editor) == 0, "nothing becomes active"


def test_v_alone_is_trained(
    tiny_llava: Backbone, editor: FittedExperts, calibration: Calibration, image: Image.Image
) -> None:
    made = Made.by(editor, image)
    editor.detach()
    with FittedExperts(tiny_llava, FittedConfig.model_validate({"steps": 0}), calibration) as untrained:
        start = Made.by(untrained, image)
    assert torch.equal(start.expert.v, torch.zeros_like(start.expert.v)), "nothing is changed before the first step"
    assert torch.equal(start.expert.u, made.expert.u) and float(made.expert.v.abs().max()) > 0


def test_the_features_of_an_edit_are_those_of_its_question_as_it_is_asked(
    editor: FittedExperts, image: Image.Image
) -> None:
    for about in (image, None):
        short, long = (Made.by(editor, about, answer).expert for answer in ("red", LONG))
        query = editor.query(editor.read(editor.backbone.encode([Question(PROMPT, about)], padding="left")))
        for expert in (short, long):
            parts = editor.similarities.edit_features(query)
            for found, part in zip(
                (expert.visual_feature, expert.prompt_feature, expert.query_feature), parts, strict=True
            ):
                assert torch.equal(found, part[0])


def gates(states: Tensor, expert: LowRankExpert) -> Tensor:
    """What the gates let through of hidden states, (..., answer tokens)."""
    return F.relu(F.layer_norm(states, states.shape[-1:]) @ expert.u.T)


def test_gates_are_open_where_their_token_is_predicted_and_closed_in_neutral_questions(
    editor: FittedExperts, image: Image.Image
) -> None:
    for about, found in ((image, editor.calibration.image), (None, editor.calibration.text)):
        made = Made.by(editor, about)
        inputs = editor.backbone.encode([made.edit.question], [ANSWER])
        opened = gates(editor.read(inputs).hidden_states[0][inputs.predicting[0]], made.expert)
        assert opened.diagonal().min() > 0.7
        assert (opened - torch.diag(opened.diagonal())).max() < 0.2
        assert found is not None
        assert float(gates(found.neutral, made.expert).mean()) < 0.02


def test_an_expert_changes_the_last_prompt_token_and_the_answer_alone(
    editor: FittedExperts, image: Image.Image
) -> None:
    made = Made.by(editor, image)
    inputs = editor.backbone.encode([made.edit.question], [ANSWER])
    places = torch.arange(inputs.roles.shape[1])
    last = int(places[inputs.prompt_mask[0]].max())
    wanted = inputs.answer_mask[0] | (places == last)
    assert torch.equal(changed_tokens(inputs, editor.form)[0], wanted)
    for layer in range(editor.layer, len(editor.backbone.layers)):
        with torch.no_grad():
            before = editor.backbone.hidden_states(inputs, layer)[0]
            editor.add("edit", made.expert)
            after = editor.backbone.hidden_states(inputs, layer)[0]
            editor.undo("edit")
        changed = (before != after).any(-1)
        assert changed[last]
        assert not (changed & ~wanted).any(), "image and prompt are as they were, in every later layer"


def test_neighbours_are_the_edits_of_the_most_similar_content(
    editor: FittedExperts, picture: Callable[[int], Image.Image]
) -> None:
    made = [Made.by(editor, image).expert for image in (picture(1), picture(2), None)]
    assert editor.neighbours(made[0], 5) == []
    for number, expert in enumerate(made):
        editor.add(str(number), expert)
    found = editor.neighbours(made[0], 5)
    assert [one.edit_id for one in found] == ["0", "1", "2"]
    assert found[0].similarity == pytest.approx(2.0, abs=1e-5), "1 for the content, 1 as both have an image"
    assert [one.edit_id for one in editor.neighbours(made[2], 1)] == ["2"]
    assert editor.neighbours(made[2], 0) == []


def test_what_is_compared_is_what_an_occlusion_map_is_made_of(editor: FittedExperts, image: Image.Image) -> None:
    found = editor.occlusion_features([Question(PROMPT, image), Question(PROMPT)])
    assert found.shape == (2, 2 * editor.backbone.width)
    alone = editor.occlusion_features([Question(PROMPT, image)])
    assert torch.allclose(found[0], alone[0], atol=1e-5)


def test_an_answer_in_doubt_is_withheld(model: EditedModel, image: Image.Image) -> None:
    before = model.ask(image, PROMPT).text
    receipt = model.edit(image, PROMPT, ANSWER)
    model.editor.answer_confidence = 0.999999
    found = model.ask(image, PROMPT)
    assert (found.text, found.fired, [fired.edit_id for fired in found.withheld]) == (before, (), [receipt.id])
