"""What holds for every family of models, on tiny random ones: the same tests for all of them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
from family_models import EDIT_LAYER, FAMILIES
from forced_experts import fired_ids, forced_expert
from model_traces import hooks_of
from PIL import Image
from torch import Tensor

from liveedit.backbones import Backbone, load_backbone
from liveedit.backbones.families.text_only import TextBackbone
from liveedit.backbones.hidden_states import HiddenStateCache
from liveedit.editors.liveedit import LiveEdit, LiveEditConfig
from liveedit.errors import InvalidInputError
from liveedit.samples import Question

COMPILED = (TextBackbone,)
"""Families that are compiled in every run of the tests: the quickest."""
ANSWERS = ["red", "the deep well", "four"]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Backbone]:
    """Each family's model, saved and loaded once."""
    kept: dict[str, Backbone] = {}

    def load(name: str) -> Backbone:
        if name not in kept:
            folder = tmp_path_factory.mktemp(name)
            FAMILIES[name](folder)
            kept[name] = load_backbone(folder, device="cpu")
            token = kept[name].image_token_id
            if token is not None:  # A random model may say the picture's token, and then wants a picture for it.
                kept[name].model.generation_config.suppress_tokens = [token]
        return kept[name]

    return load


@pytest.fixture(params=FAMILIES)
def backbone(request: pytest.FixtureRequest, loaded: Callable[[str], Backbone]) -> Iterator[Backbone]:
    """A family's model, checked to be left as it was."""
    model = loaded(request.param)
    layers, hooks = model.decoder.layers, hooks_of(model)
    yield model
    assert model.decoder.layers is layers
    assert hooks_of(model) == hooks, "a test left hooks on the model"


@pytest.fixture
def questions(backbone: Backbone, picture: Callable[[int], Image.Image]) -> list[Question]:
    """Two pictures of different shapes and none; text alone for models that read no pictures."""
    wide = picture(2).resize((96, 48)) if backbone.reads_images else None
    square = picture(1) if backbone.reads_images else None
    return [
        Question("What color is the hat?", square),
        Question("Can you say where this creature lives?", wide),
        Question("How many?"),
    ]


@pytest.fixture
def editor(backbone: Backbone) -> Iterator[LiveEdit]:
    with LiveEdit.untrained(backbone, config_for(backbone)) as attached:
        yield attached


def config_for(backbone: Backbone) -> LiveEditConfig:
    return LiveEditConfig.create(
        width=backbone.width,
        layer=EDIT_LAYER,
        image_tokens=max(1, backbone.image_tokens),
        module_width=32,
        heads=4,
        rank=2,
        feature_parts=2,
        scope="image" if backbone.reads_images else "text+image",
    )


def add_forced(editor: LiveEdit, questions: list[Question]) -> None:
    """One expert for each question that edits can reach; those of pictures fire for their own alone."""
    for index, question in enumerate(questions):
        if editor.config.scope == "image" and question.image is None:
            continue
        others = [other for other in questions if other is not question and other.image is not None]
        editor.add(f"edit-{index}", forced_expert(editor, question, others, seed=index))


def likeliest(editor: LiveEdit) -> list[str | None]:
    """The edit with the most weight for each row of the last batch."""
    return [max(row, key=lambda fired: fired.weight).edit_id if row else None for row in editor.fired() or []]


def logits_of(backbone: Backbone, questions: list[Question], answers: list[str] | None = None) -> Tensor:
    with torch.no_grad():
        return backbone.logits(backbone.encode(questions, answers))


# -- the backbone ----------------------------------------------------------------------------------------------------


def test_every_token_is_picture_prompt_or_answer(backbone: Backbone, questions: list[Question]) -> None:
    inputs = backbone.encode(questions, ANSWERS)
    masks = torch.stack([inputs.image_mask, inputs.prompt_mask, inputs.answer_mask]).int()
    assert torch.equal(masks.sum(0), inputs.attention_mask.int())
    assert inputs.has_image.tolist() == [question.image is not None for question in questions]
    for row, answer in enumerate(ANSWERS):
        ids = inputs.input_ids[row][inputs.answer_mask[row]]
        assert ids[-1] == backbone.end_token_id
        assert backbone.tokenizer.decode(ids[:-1]).strip() == answer
        prompt = backbone.tokenizer.decode(inputs.input_ids[row][inputs.prompt_mask[row]])
        assert questions[row].prompt in prompt


def test_an_answer_ends_where_generate_stops(backbone: Backbone) -> None:
    stops = backbone.model.generation_config.eos_token_id
    assert backbone.end_token_id in (stops if isinstance(stops, list) else [stops])


def test_prefix_and_suffix_are_the_whole(backbone: Backbone, questions: list[Question]) -> None:
    """In logits, and in gradients with respect to a change of the states."""
    inputs = backbone.encode(questions, ANSWERS)
    change = torch.zeros(*inputs.input_ids.shape, backbone.width, requires_grad=True)
    handle = backbone.layers[EDIT_LAYER].register_forward_hook(lambda module, given, output: output + change)
    try:
        whole = backbone.logits(inputs)[inputs.answer_mask]
        (wanted,) = torch.autograd.grad(whole.logsumexp(-1).sum(), change)
    finally:
        handle.remove()
    with torch.no_grad():
        states = backbone.hidden_states(inputs, EDIT_LAYER)
    states.requires_grad_()
    parts = backbone.logits_from(states, inputs, EDIT_LAYER, inputs.answer_mask)
    (found,) = torch.autograd.grad(parts.logsumexp(-1).sum(), states)
    torch.testing.assert_close(parts, whole, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)
    assert found.abs().max() > 0


def test_kept_states_give_the_same_logits_in_any_batch(backbone: Backbone, questions: list[Question]) -> None:
    """States are kept in bfloat16; in another order and another batch the rest of the model goes on from them."""
    store = HiddenStateCache(backbone, EDIT_LAYER)
    store.fill(list(zip(questions, ANSWERS, strict=True)), batch=2)
    batch = store.batch([2, 0, 1])
    with torch.no_grad():
        kept = backbone.logits_from(batch.hidden_states, batch, EDIT_LAYER, batch.predicting)
        rows = []
        for row in (2, 0, 1):
            inputs = backbone.encode([questions[row]], [ANSWERS[row]])
            states = backbone.hidden_states(inputs, EDIT_LAYER).bfloat16().float()
            rows.append(backbone.logits_from(states, inputs, EDIT_LAYER, inputs.predicting))
    # The store ran the first layers in bfloat16, which moves states by a few thousandths.
    torch.testing.assert_close(kept, torch.cat(rows), atol=0.15, rtol=0.05)


@pytest.mark.parametrize("padding", ["left", "right"])
def test_a_batch_is_its_rows_one_by_one(
    backbone: Backbone, editor: LiveEdit, questions: list[Question], padding: str
) -> None:
    add_forced(editor, questions)
    inputs = backbone.encode(questions, ANSWERS, padding)
    with torch.no_grad():
        together = backbone.logits(inputs)
        for row, (question, answer) in enumerate(zip(questions, ANSWERS, strict=True)):
            alone = backbone.logits(backbone.encode([question], [answer]))[0]
            present = inputs.attention_mask[row].bool()
            torch.testing.assert_close(together[row][present], alone, atol=3e-4, rtol=1e-3)


def test_wrong_image_token_counts_are_refused(backbone: Backbone, questions: list[Question]) -> None:
    if not backbone.reads_images:
        with pytest.raises(InvalidInputError, match="reads text alone"):
            backbone.encode([Question("What is this?", Image.new("RGB", (8, 8)))])
        return
    inputs = backbone.encode(questions[:1])
    first = int(inputs.image_mask[0].nonzero()[0])
    kept = torch.arange(inputs.input_ids.shape[1]) != first
    fewer = replace(
        inputs,
        **{name: value[:, kept] for name, value in vars(inputs).items() if name.endswith(("mask", "ids"))},
        extras={name: value[:, kept] if name.endswith("type_ids") else value for name, value in inputs.extras.items()},
    )
    with pytest.raises((InvalidInputError, ValueError), match=r"image tokens|image features"):
        backbone.logits(fewer)


def test_picture_markers_in_a_text_are_refused(backbone: Backbone) -> None:
    assert bool(backbone.markers) == backbone.reads_images
    for marker in backbone.markers:
        with pytest.raises(InvalidInputError, match="stands for an image"):
            backbone.encode([Question(f"What is {marker}?")])


# -- the backbone under edits ----------------------------------------------------------------------------------------


def test_a_zero_expert_changes_nothing_to_the_bit(
    backbone: Backbone, editor: LiveEdit, questions: list[Question]
) -> None:
    before = logits_of(backbone, questions, ANSWERS)
    expert = forced_expert(editor, questions[0])
    editor.add("zero", replace(expert, v=torch.zeros_like(expert.v)))
    assert torch.equal(before, logits_of(backbone, questions, ANSWERS))
    assert fired_ids(editor)[0] == ["zero"]


def test_edits_come_and_go_to_the_bit(backbone: Backbone, editor: LiveEdit, questions: list[Question]) -> None:
    before = logits_of(backbone, questions, ANSWERS)
    add_forced(editor, questions)
    edited = logits_of(backbone, questions, ANSWERS)
    assert not torch.equal(before[0], edited[0])
    if backbone.reads_images:  # Text alone is out of reach there.
        assert torch.equal(before[2], edited[2])
    for name in [f"edit-{index}" for index in range(len(editor.repository))]:
        editor.undo(name)
    assert torch.equal(before, logits_of(backbone, questions, ANSWERS))


def test_detaching_leaves_no_trace(backbone: Backbone, questions: list[Question]) -> None:
    before, hooks = logits_of(backbone, questions, ANSWERS), hooks_of(backbone)
    with LiveEdit.untrained(backbone, config_for(backbone)) as editor:
        add_forced(editor, questions)
        assert not torch.equal(before, logits_of(backbone, questions, ANSWERS))
    assert hooks_of(backbone) == hooks
    assert torch.equal(before, logits_of(backbone, questions, ANSWERS))


def test_cached_generation_is_uncached_generation(
    backbone: Backbone, editor: LiveEdit, questions: list[Question]
) -> None:
    inputs = backbone.encode(questions, padding="left")
    plain = backbone.generate(inputs, 6)
    add_forced(editor, questions)
    cached = backbone.generate(inputs, 6)
    routed = editor.fired()
    uncached = backbone.generate(inputs, 6, use_cache=False)
    assert cached == uncached
    assert cached != plain
    assert likeliest(editor) == [fired[0].edit_id if fired else None for fired in _strongest_first(routed)]
    alone = [backbone.generate(backbone.encode([question], padding="left"), 6)[0] for question in questions]
    assert alone == cached


def test_beams_and_sequences_route_by_their_own_question(
    backbone: Backbone, editor: LiveEdit, questions: list[Question]
) -> None:
    add_forced(editor, questions)
    inputs = backbone.encode(questions, padding="left")
    own = ["edit-0", "edit-0", "edit-1", "edit-1", *([None] if backbone.reads_images else ["edit-2"]) * 2]
    texts = backbone.generate(inputs, 3, beams=2, sequences=2)
    assert len(texts) == 6
    assert likeliest(editor) == own
    alone = [backbone.generate(backbone.encode([question], padding="left"), 3, beams=2)[0] for question in questions]
    assert texts[::2] == alone


def test_strangers_calls_are_edited_too(backbone: Backbone, editor: LiveEdit, questions: list[Question]) -> None:
    """model(...) and model.generate(...), with beams as well, without Backbone around them."""
    asked = questions[:2]
    add_forced(editor, asked)
    inputs = backbone.encode(asked, padding="left")
    through, texts = logits_of(backbone, asked), backbone.generate(inputs, 4)
    model, length = backbone.model_for(inputs), inputs.input_ids.shape[1]
    with torch.no_grad():
        direct = model(**backbone.encode(asked).model_inputs()).logits
        output = model.generate(**inputs.model_inputs(), max_new_tokens=4, do_sample=False)
        own = likeliest(editor)
        model.generate(**inputs.model_inputs(), max_new_tokens=2, do_sample=False, num_beams=2)
        beams = likeliest(editor)
    assert torch.equal(direct, through)
    assert [
        text.strip() for text in backbone.tokenizer.batch_decode(output[:, length:], skip_special_tokens=True)
    ] == texts
    assert own == ["edit-0", "edit-1"]
    assert beams == ["edit-0", "edit-0", "edit-1", "edit-1"]


def test_other_peoples_hooks_survive(backbone: Backbone, questions: list[Question]) -> None:
    seen: list[str] = []
    layer = backbone.layers[EDIT_LAYER]
    earlier = layer.register_forward_hook(lambda *_: seen.append("earlier"))
    with LiveEdit.untrained(backbone, config_for(backbone)):
        later = layer.register_forward_hook(lambda *_: seen.append("later"))
        logits_of(backbone, questions[:1])
        assert seen == ["earlier", "later"]
    logits_of(backbone, questions[:1])
    assert seen == ["earlier", "later"] * 2
    earlier.remove()
    later.remove()


def test_an_edit_is_made_and_undone(backbone: Backbone, editor: LiveEdit, questions: list[Question]) -> None:
    """The whole way of an edit, generator included; text alone in models that read nothing else."""
    from liveedit.samples import Edit

    before = logits_of(backbone, questions, ANSWERS)
    editor.edit([("made", Edit(questions[0], "a purple well"))])
    assert len(editor.repository) == 1
    editor.undo("made")
    assert torch.equal(before, logits_of(backbone, questions, ANSWERS))


def test_embeddings_alone_are_refused_while_edits_are_in_force(
    backbone: Backbone, editor: LiveEdit, questions: list[Question]
) -> None:
    add_forced(editor, questions)
    inputs = backbone.encode(questions[2:])
    embedded = backbone.embeddings(inputs)[:, :-1]
    language = backbone.model_for(inputs)
    with pytest.raises(InvalidInputError, match="inputs_embeds"), torch.no_grad():
        language(inputs_embeds=embedded, attention_mask=inputs.attention_mask[:, :-1])


def test_an_earlier_calls_ids_do_not_stand_for_embeddings(
    backbone: Backbone, editor: LiveEdit, questions: list[Question]
) -> None:
    """Embeddings of the same length as the call before them: which tokens they are is not known either."""
    add_forced(editor, questions)
    inputs = backbone.encode(questions[2:])
    model = backbone.model_for(inputs)
    with torch.no_grad():
        model(**inputs.model_inputs())
        with pytest.raises(InvalidInputError, match="inputs_embeds"):
            model(inputs_embeds=torch.randn(*inputs.input_ids.shape, backbone.width))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, from compiling Gemma's masks.
def test_a_compiled_model_is_edited(backbone: Backbone, editor: LiveEdit, questions: list[Question]) -> None:
    if not isinstance(backbone, COMPILED) and not os.environ.get("LIVEEDIT_COMPILE_ALL"):
        pytest.skip("compiling takes long; LIVEEDIT_COMPILE_ALL=1 compiles every family")
    add_forced(editor, questions)
    asked = questions[:1]
    inputs = backbone.encode(asked)
    eager = logits_of(backbone, asked)
    torch.compiler.reset()
    compiled = torch.compile(backbone.model, backend="eager")
    with torch.no_grad():
        found = compiled(**inputs.model_inputs()).logits
    assert likeliest(editor) == ["edit-0"]
    torch.testing.assert_close(found, eager, atol=1e-4, rtol=1e-3)
    torch.compiler.reset()
    with pytest.raises(Exception, match="Editors find experts"), torch.no_grad():
        torch.compile(backbone.model, backend="eager", fullgraph=True)(**inputs.model_inputs())
    torch.compiler.reset()


def _strongest_first(routed):  # type: ignore[no-untyped-def]
    return [sorted(row, key=lambda fired: -fired.weight) for row in routed or []]
