"""A running model under experts that are sure to fire: padding, caches, beams, other people's hooks."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from forced_experts import fired_ids, forced_expert
from torch import Tensor

from liveedit.backbones import Backbone, HiddenTokens, TokenBatch, TokenRole
from liveedit.editors.liveedit import LiveEdit, LiveEditConfig
from liveedit.samples import Question

ANSWERS = ["red", "the garden behind the old house", "four"]


def add_forced(editor: LiveEdit, questions: list[Question]) -> None:
    """One expert per question, which fires for no other."""
    experts = [
        forced_expert(editor, question, [other for other in questions if other is not question], seed)
        for seed, question in enumerate(questions)
    ]
    for index, expert in enumerate(experts):
        editor.add(f"edit-{index}", expert)


def logits_of(backbone: Backbone, questions: list[Question], answers: list[str] | None = None) -> Tensor:
    with torch.no_grad():
        return backbone.logits(backbone.encode(questions, answers))


def tokens_of(backbone: Backbone, inputs: TokenBatch, count: int = 6) -> Tensor:
    """Greedy tokens through the model's own generate(), called by a stranger; (batch, count)."""
    with torch.no_grad():
        output = backbone.model.generate(  # type: ignore[operator]
            **inputs.model_inputs(), max_new_tokens=count, min_new_tokens=count, do_sample=False
        )
    return output[:, inputs.input_ids.shape[1] :]


def test_nothing_fires_and_no_bit_changes(editor: LiveEdit, questions: list[Question]) -> None:
    backbone = editor.backbone
    before = logits_of(backbone, questions)
    expert = forced_expert(editor, questions[0], questions[1:])
    editor.add("edit", expert)
    assert not torch.equal(logits_of(backbone, questions[:1])[0], before[0, : len(before[0])])
    assert fired_ids(editor) == [["edit"]]
    unedited = logits_of(backbone, questions[1:])
    assert not any(fired_ids(editor))
    editor.undo("edit")
    assert torch.equal(unedited, logits_of(backbone, questions[1:]))


def test_each_question_of_a_batch_has_its_own_experts(editor: LiveEdit, questions: list[Question]) -> None:
    add_forced(editor, questions)
    logits_of(editor.backbone, questions)
    assert fired_ids(editor) == [["edit-0"], ["edit-1"], ["edit-2"]]


@pytest.mark.parametrize("padding", ["left", "right"])
def test_a_batch_answers_as_one_by_one(editor: LiveEdit, questions: list[Question], padding: str) -> None:
    backbone = editor.backbone
    add_forced(editor, questions)
    asked = [*questions, Question("What is the capital of Coraland?")]
    answers = [*ANSWERS, "Faburg"]
    inputs = backbone.encode(asked, answers, padding)
    with torch.no_grad():
        together = backbone.logits(inputs)
    assert fired_ids(editor) == [["edit-0"], ["edit-1"], ["edit-2"], []]
    for row, (question, answer) in enumerate(zip(asked, answers, strict=True)):
        alone = logits_of(backbone, [question], [answer])[0]
        torch.testing.assert_close(together[row][inputs.attention_mask[row].bool()], alone, atol=2e-4, rtol=1e-4)


def test_the_answer_has_no_say_in_routing(editor: LiveEdit, questions: list[Question]) -> None:
    add_forced(editor, questions)
    found = []
    for answers in (None, ANSWERS, ANSWERS[::-1]):
        logits_of(editor.backbone, questions, answers)
        fired = editor.fired()
        assert fired is not None and all(fired)
        found.append([(one.edit_id, one.weight, one.margin) for row in fired for one in row])
    for other in found[1:]:
        for (name, weight, margin), (other_name, other_weight, other_margin) in zip(found[0], other, strict=True):
            assert name == other_name
            assert weight == pytest.approx(other_weight, abs=1e-5)
            assert margin == pytest.approx(other_margin, rel=1e-3)


def greedy_without_cache(backbone: Backbone, question: Question, count: int) -> list[int]:
    """Greedy decoding that runs the whole sequence anew for each token."""
    inputs, found = backbone.encode([question]), []
    for _ in range(count):
        ids = torch.tensor([[*inputs.input_ids[0].tolist(), *found]])
        generated = torch.full((1, len(found)), TokenRole.ANSWER)
        whole = TokenBatch(torch.cat([inputs.roles, generated], 1), ids, extras=inputs.extras)
        with torch.no_grad():
            found.append(int(backbone.logits(whole)[0, -1].argmax()))
    return found


def test_generating_from_the_cache_is_generating_without(editor: LiveEdit, questions: list[Question]) -> None:
    backbone = editor.backbone
    plain = tokens_of(backbone, backbone.encode(questions, padding="left"))
    add_forced(editor, questions)
    cached = tokens_of(backbone, backbone.encode(questions, padding="left"))
    assert fired_ids(editor) == [["edit-0"], ["edit-1"], ["edit-2"]]
    assert not torch.equal(cached, plain)
    for row, question in enumerate(questions):
        eos = backbone.end_token_id
        uncached = greedy_without_cache(backbone, question, 6)
        if eos not in uncached:  # generate() was told not to stop, the loop was not.
            assert cached[row].tolist() == uncached


def test_generate_without_a_cache_routes_by_the_question_alone(editor: LiveEdit, questions: list[Question]) -> None:
    backbone = editor.backbone
    add_forced(editor, questions)
    inputs = backbone.encode(questions, padding="left")
    cached = backbone.generate(inputs, 6)
    fired = editor.fired()
    assert fired_ids(editor) == [["edit-0"], ["edit-1"], ["edit-2"]]
    seen: list[HiddenTokens] = []
    router = editor._hook.router
    editor._hook.router = lambda tokens: (seen.append(tokens), router(tokens))[1]
    uncached = backbone.generate(inputs, 6, use_cache=False)
    steps = len(seen)
    assert steps > 1 and [tokens.roles.shape[1] for tokens in seen] == [
        inputs.roles.shape[1] + step for step in range(steps)
    ]
    for step, tokens in enumerate(seen):
        question, generated = tokens.roles[:, : inputs.roles.shape[1]], tokens.roles[:, inputs.roles.shape[1] :]
        assert torch.equal(question, inputs.roles)
        assert (generated == TokenRole.ANSWER).all() and generated.shape[1] == step
        assert torch.equal(tokens.prompt_mask.sum(1), inputs.prompt_mask.sum(1))
    (last,) = [editor.fired()]
    assert last is not None and fired is not None
    for found, wanted in zip(last, fired, strict=True):
        assert [one.edit_id for one in found] == [one.edit_id for one in wanted]
        assert [one.weight for one in found] == pytest.approx([one.weight for one in wanted], abs=1e-5)
    assert uncached == cached


def test_calling_the_model_directly_is_edited_too(editor: LiveEdit, questions: list[Question]) -> None:
    backbone = editor.backbone
    inputs = backbone.encode(questions)
    plain = logits_of(backbone, questions)
    add_forced(editor, questions)
    through = logits_of(backbone, questions)
    with torch.no_grad(), pytest.warns(UserWarning, match="does not say where an answer begins"):
        direct = backbone.model(**inputs.model_inputs()).logits
    assert fired_ids(editor) == [["edit-0"], ["edit-1"], ["edit-2"]]
    assert torch.equal(direct, through)
    assert not torch.equal(direct, plain)


def test_calling_generate_directly_is_edited_too(editor: LiveEdit, questions: list[Question]) -> None:
    backbone = editor.backbone
    add_forced(editor, questions)
    inputs = backbone.encode(questions, padding="left")
    through = backbone.generate(inputs, 6)
    with torch.no_grad():
        direct = backbone.model.generate(**inputs.model_inputs(), max_new_tokens=6, do_sample=False)  # type: ignore[operator]
    texts = backbone.tokenizer.batch_decode(direct[:, inputs.input_ids.shape[1] :], skip_special_tokens=True)
    assert fired_ids(editor) == [["edit-0"], ["edit-1"], ["edit-2"]]
    assert [text.strip() for text in texts] == through


def test_samples_and_beams_route_by_their_own_question(editor: LiveEdit, questions: list[Question]) -> None:
    backbone = editor.backbone
    add_forced(editor, questions)
    inputs = backbone.encode(questions, padding="left").model_inputs()
    own = [["edit-0"], ["edit-0"], ["edit-1"], ["edit-1"], ["edit-2"], ["edit-2"]]
    with torch.no_grad():
        torch.manual_seed(0)
        sampled = backbone.model.generate(  # type: ignore[operator]
            **inputs, max_new_tokens=3, min_new_tokens=3, do_sample=True, num_return_sequences=2
        )
        assert fired_ids(editor) == own
        backbone.model.generate(**inputs, max_new_tokens=3, num_beams=2, do_sample=False)  # type: ignore[operator]
        assert fired_ids(editor) == own
    assert len(sampled) == 6


def test_text_only_questions_are_out_of_reach_in_scope_image(editor: LiveEdit, questions: list[Question]) -> None:
    backbone, text = editor.backbone, Question("What color is the hat?")
    before = logits_of(backbone, [text])
    editor.add("edit", forced_expert(editor, questions[0]))
    logits_of(backbone, questions[:1])
    assert fired_ids(editor) == [["edit"]]
    after = logits_of(backbone, [text])
    assert not any(fired_ids(editor))
    assert torch.equal(before, after)


def test_text_only_questions_can_be_reached_in_scope_text_and_image(
    random_backbone: Backbone, small_config: Callable[..., LiveEditConfig], questions: list[Question]
) -> None:
    text = Question("What color is the hat?")
    before = logits_of(random_backbone, [text])
    with LiveEdit.untrained(random_backbone, small_config(scope="text+image")) as editor:
        editor.add("edit", forced_expert(editor, text))
        after = logits_of(random_backbone, [text])
        assert fired_ids(editor) == [["edit"]]
    assert not torch.equal(before, after)


@pytest.mark.parametrize("tokens", ["text", "all"])
def test_which_tokens_the_residual_changes(
    random_backbone: Backbone,
    small_config: Callable[..., LiveEditConfig],
    questions: list[Question],
    tokens: str,
) -> None:
    inputs = random_backbone.encode(questions[:1], ["red"])
    with LiveEdit.untrained(random_backbone, small_config(residual_tokens=tokens)) as editor, torch.no_grad():
        before = random_backbone.hidden_states(inputs, editor.config.layer)
        editor.add("edit", forced_expert(editor, questions[0]))
        after = random_backbone.hidden_states(inputs, editor.config.layer)
        assert fired_ids(editor) == [["edit"]]
    changed = (before != after).any(-1)
    assert changed[inputs.text_mask].float().mean() > 0.5
    if tokens == "text":
        assert not changed[inputs.image_mask].any()
    else:
        assert changed[inputs.image_mask].float().mean() > 0.5


def test_other_peoples_hooks_survive(
    random_backbone: Backbone, small_config: Callable[..., LiveEditConfig], questions: list[Question]
) -> None:
    seen: list[str] = []
    layer = random_backbone.layers[3]
    earlier = layer.register_forward_hook(lambda *_: seen.append("earlier"))
    with LiveEdit.untrained(random_backbone, small_config()):
        later = layer.register_forward_hook(lambda *_: seen.append("later"))
        logits_of(random_backbone, questions[:1])
        assert seen == ["earlier", "later"]
    logits_of(random_backbone, questions[:1])
    assert seen == ["earlier", "later"] * 2
    earlier.remove()
    later.remove()


def test_no_hooks_are_left_behind_after_an_exception(
    random_backbone: Backbone, small_config: Callable[..., LiveEditConfig], questions: list[Question]
) -> None:
    before = logits_of(random_backbone, questions)
    layer, model = random_backbone.layers[3], random_backbone.model
    hooks = dict(layer._forward_hooks), dict(model._forward_pre_hooks)  # transformers may keep some of its own.
    with (
        pytest.raises(RuntimeError, match="on purpose"),
        LiveEdit.untrained(random_backbone, small_config()) as editor,
    ):
        editor.add("edit", forced_expert(editor, questions[0]))
        assert len(layer._forward_hooks) > len(hooks[0])
        raise RuntimeError("on purpose")
    assert (dict(layer._forward_hooks), dict(model._forward_pre_hooks)) == hooks
    assert torch.equal(before, logits_of(random_backbone, questions))


def test_an_exception_inside_the_model_leaves_it_usable(editor: LiveEdit, questions: list[Question]) -> None:
    backbone = editor.backbone
    editor.add("edit", forced_expert(editor, questions[0]))
    before = logits_of(backbone, questions[:1])

    def fail(*_: object) -> None:
        raise RuntimeError("on purpose")

    handle = backbone.layers[-1].register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="on purpose"):
        logits_of(backbone, questions[:1])
    handle.remove()
    assert backbone.current_inputs is None
    assert torch.equal(before, logits_of(backbone, questions[:1]))


def test_two_editors_on_one_backbone_do_not_disturb_each_other(
    random_backbone: Backbone, small_config: Callable[..., LiveEditConfig], questions: list[Question]
) -> None:
    with LiveEdit.untrained(random_backbone, small_config()) as first:
        first.add("first", forced_expert(first, questions[0]))
        alone = logits_of(random_backbone, questions[:1])
        with LiveEdit.untrained(random_backbone, small_config(layer=2), seed=1) as second:
            assert torch.equal(alone, logits_of(random_backbone, questions[:1]))
            assert not any(fired_ids(second))
        assert torch.equal(alone, logits_of(random_backbone, questions[:1]))
        assert fired_ids(first) == [["first"]]
