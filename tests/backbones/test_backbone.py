"""The backbone as inputs -> states at a layer -> logits, in parts and as a whole."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from PIL import Image

from liveedit.backbones import Backbone, built_in_folder, load_backbone
from liveedit.backbones.tokens import pad
from liveedit.errors import BackboneError, ImageError, InvalidInputError
from liveedit.samples import Question

ANSWERS = ["red", "the deep well", "Faburg"]


@pytest.fixture
def mixed(picture: Callable[[int], Image.Image]) -> list[Question]:
    """With a picture, with a picture, and without."""
    return [
        Question("What color is the hat?", picture(1)),
        Question("Can you say where this creature lives?", picture(2)),
        Question("What is the capital of Coraland?"),
    ]


@pytest.mark.parametrize("padding", ["left", "right"])
@pytest.mark.parametrize("answers", [None, ANSWERS])
def test_masks_are_disjoint_and_cover_what_is_not_padding(
    random_backbone: Backbone, mixed: list[Question], padding: str, answers: list[str] | None
) -> None:
    inputs = random_backbone.encode(mixed, answers, padding)
    masks = torch.stack([inputs.image_mask, inputs.prompt_mask, inputs.answer_mask]).int()
    assert torch.equal(masks.sum(0), inputs.attention_mask.int())
    assert inputs.image_mask.sum(1).tolist() == [16, 16, 0]
    assert inputs.has_image.tolist() == [True, True, False]
    assert inputs.pixel_values is not None and inputs.pixel_values.shape == (2, 3, 64, 64)
    assert torch.equal(inputs.image_mask, inputs.input_ids == random_backbone.image_token_id)
    assert torch.equal(inputs.text_mask, inputs.prompt_mask | inputs.answer_mask)
    padded_side = inputs.attention_mask[:, 0 if padding == "left" else -1]
    assert padded_side.min() == 0
    assert len(inputs) == 3


def test_the_answer_mask_covers_the_answer_and_the_end(random_backbone: Backbone, mixed: list[Question]) -> None:
    inputs = random_backbone.encode(mixed, ANSWERS)
    for row, answer in enumerate(ANSWERS):
        ids = inputs.input_ids[row][inputs.answer_mask[row]]
        assert ids[-1] == random_backbone.end_token_id
        assert random_backbone.tokenizer.decode(ids[:-1]).strip() == answer
    prompt = random_backbone.tokenizer.decode(inputs.input_ids[0][inputs.prompt_mask[0]])
    assert prompt == "<s>Q: What color is the hat? A:"


def test_an_empty_answer_is_the_end_alone(random_backbone: Backbone, mixed: list[Question]) -> None:
    inputs = random_backbone.encode(mixed[:1], [" "])
    assert inputs.input_ids[inputs.answer_mask].tolist() == [random_backbone.end_token_id]


@pytest.mark.parametrize("prompt", ["", "  \n"])
def test_an_empty_prompt_is_refused(random_backbone: Backbone, prompt: str) -> None:
    with pytest.raises(InvalidInputError, match="prompt is empty"):
        random_backbone.encode([Question(prompt)])


def test_no_questions_are_refused(random_backbone: Backbone) -> None:
    with pytest.raises(InvalidInputError, match="at least one"):
        random_backbone.encode([])


def test_the_image_marker_in_a_text_is_refused(random_backbone: Backbone, mixed: list[Question]) -> None:
    for question in (Question("What is <image>?", mixed[0].image), Question("What is <image>?")):
        with pytest.raises(InvalidInputError, match="stands for an image"):
            random_backbone.encode([question])
    with pytest.raises(InvalidInputError, match="stands for an image"):
        random_backbone.encode(mixed[:1], ["an <image>"])


def test_a_missing_picture_is_told(random_backbone: Backbone) -> None:
    with pytest.raises(ImageError):
        random_backbone.encode([Question("What is this?", "nowhere/at-all.png")])


@pytest.mark.parametrize("layer", [0, 3, 4])
def test_states_are_transformers_hidden_states(random_backbone: Backbone, mixed: list[Question], layer: int) -> None:
    inputs = random_backbone.encode(mixed, ANSWERS)
    with torch.no_grad():
        whole = random_backbone.model(**inputs.model_inputs(), output_hidden_states=True)
        states = random_backbone.hidden_states(inputs, layer)
    assert torch.equal(states, whole.hidden_states[layer + 1])
    assert random_backbone.current_inputs is None


@pytest.mark.parametrize("layer", [0, 3, 4])
def test_front_and_back_are_the_whole(random_backbone: Backbone, mixed: list[Question], layer: int) -> None:
    inputs = random_backbone.encode(mixed, ANSWERS)
    wanted = inputs.answer_mask
    with torch.no_grad():
        whole = random_backbone.logits(inputs)
        states = random_backbone.hidden_states(inputs, layer)
        parts = random_backbone.logits_from(states, inputs, layer, wanted)
        again = random_backbone.logits(inputs)
    torch.testing.assert_close(parts, whole[wanted], atol=1e-5, rtol=1e-5)
    assert torch.equal(whole, again)


def test_gradients_of_the_back_are_those_of_the_whole(random_backbone: Backbone, mixed: list[Question]) -> None:
    """Both ways, the gradient of one number with respect to a change of the states at the layer."""
    inputs, layer = random_backbone.encode(mixed, ANSWERS), 3
    change = torch.zeros(*inputs.input_ids.shape, random_backbone.width, requires_grad=True)
    handle = random_backbone.layers[layer].register_forward_hook(lambda module, given, output: output + change)
    try:
        whole = random_backbone.logits(inputs)[inputs.answer_mask].logsumexp(-1).sum()
        (wanted,) = torch.autograd.grad(whole, change)
    finally:
        handle.remove()
    with torch.no_grad():
        states = random_backbone.hidden_states(inputs, layer)
    states.requires_grad_()
    back = random_backbone.logits_from(states, inputs, layer, inputs.answer_mask)
    (found,) = torch.autograd.grad(back.logsumexp(-1).sum(), states)
    assert found.abs().max() > 0
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)


def test_the_decoder_is_whole_again_after_an_exception(random_backbone: Backbone, mixed: list[Question]) -> None:
    inputs = random_backbone.encode(mixed)
    with torch.no_grad():
        before = random_backbone.logits(inputs)
    with pytest.raises(Exception, match=r".+"), torch.no_grad():
        random_backbone.logits_from(torch.zeros(1, 2, 7), inputs, 3, inputs.prompt_mask)
    with torch.no_grad():
        assert torch.equal(before, random_backbone.logits(inputs))


@pytest.mark.parametrize("padding", ["left", "right"])
def test_a_mixed_batch_is_its_rows_one_by_one(random_backbone: Backbone, mixed: list[Question], padding: str) -> None:
    inputs = random_backbone.encode(mixed, ANSWERS, padding)
    with torch.no_grad():
        together = random_backbone.logits(inputs)
        for row, (question, answer) in enumerate(zip(mixed, ANSWERS, strict=True)):
            alone = random_backbone.logits(random_backbone.encode([question], [answer]))[0]
            present = inputs.attention_mask[row].bool()
            torch.testing.assert_close(together[row][present], alone, atol=1e-4, rtol=1e-4)


def test_generating_is_taking_the_likeliest_token(tiny_llava: Backbone, mixed: list[Question]) -> None:
    answers = tiny_llava.generate(tiny_llava.encode(mixed, padding="left"), 8)
    for question, answer in zip(mixed, answers, strict=True):
        ids: list[int] = []
        inputs = tiny_llava.encode([question])
        while len(ids) < 8:
            row = torch.tensor([[*inputs.input_ids[0].tolist(), *ids]])
            with torch.no_grad():
                logits = tiny_llava.model(input_ids=row, pixel_values=inputs.pixel_values).logits
            ids.append(int(logits[0, -1].argmax()))
            if ids[-1] == tiny_llava.end_token_id:
                break
        assert tiny_llava.tokenizer.decode(ids, skip_special_tokens=True).strip() == answer
    assert all(answers)


def test_generating_stops_after_the_tokens_given(random_backbone: Backbone, mixed: list[Question]) -> None:
    inputs = random_backbone.encode(mixed, padding="left")
    (short, *_), (longer, *_) = (random_backbone.generate(inputs, count) for count in (1, 4))
    assert longer.startswith(short)


def test_questions_with_answers_cannot_be_generated_from(random_backbone: Backbone, mixed: list[Question]) -> None:
    with pytest.raises(InvalidInputError, match="Encode the questions alone"):
        random_backbone.generate(random_backbone.encode(mixed, ANSWERS, "left"))


def test_what_the_built_in_backbone_is(tiny_llava: Backbone) -> None:
    assert (tiny_llava.width, len(tiny_llava.layers), tiny_llava.image_tokens) == (192, 6, 16)
    assert tiny_llava.default_edit_layer() == 3
    assert tiny_llava.dtype == torch.float32
    assert not any(parameter.requires_grad for parameter in tiny_llava.model.parameters())


def test_a_built_in_backbone_is_an_ordinary_checkpoint(tiny_llava: Backbone) -> None:
    by_folder = load_backbone(built_in_folder("tiny-llava"), torch.float32, "cpu")
    weights = dict(by_folder.weights())
    assert weights.keys() == dict(tiny_llava.weights()).keys()
    assert all(torch.equal(weights[name], value) for name, value in tiny_llava.weights())


@pytest.mark.parametrize("name", ["tiny", "no/such/folder"])
def test_unknown_backbones_are_told(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(BackboneError, match=r"There is no folder.*built-in name \(tiny-llava, tiny-blip2"):
        load_backbone(name)


def test_padding_goes_to_the_side_that_was_asked_for() -> None:
    assert pad([[1, 2], [3]], 0, "right").tolist() == [[1, 2], [3, 0]]
    assert pad([[1, 2], [3]], 0, "left").tolist() == [[1, 2], [0, 3]]
