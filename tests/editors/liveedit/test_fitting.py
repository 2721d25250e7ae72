"""Fitting one expert: where it starts, and experts with a row for each answer token."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch.nn import functional as F

from liveedit.backbones import Backbone
from liveedit.editors.liveedit import LiveEditConfig, LiveEditRefine, RefineConfig
from liveedit.editors.liveedit.modules import LiveEditModules
from liveedit.editors.shared.fitting import Fitting, Passage
from liveedit.editors.shared.routing import changed_tokens, expert_residual
from liveedit.editors.shared.wordings import NEUTRAL_PROMPTS
from liveedit.samples import Edit, EditCase, Question

SHORT, LONG = "teal", "They are bright yellow tulips from Holland."
PROMPTS = ("What color is the hat?", "Tell me: what color is the hat", "please say the color of the hat.")


@pytest.fixture(params=["improved", "paper"])
def editor(
    request: pytest.FixtureRequest, tiny_llava: Backbone, small_config: Callable[..., LiveEditConfig]
) -> Iterator[LiveEditRefine]:
    torch.manual_seed(0)
    with LiveEditRefine(tiny_llava, LiveEditModules(small_config(request.param))) as attached:
        yield attached


@pytest.fixture
def fitting(editor: LiveEditRefine) -> Fitting:
    return Fitting(editor.backbone, editor.layer, editor.config, editor.refining)


@pytest.fixture
def passages(editor: LiveEditRefine, eval_cases: tuple[EditCase, ...]) -> list[Passage]:
    image = eval_cases[0].edit.question.image
    inputs = editor.backbone.encode([Question(prompt, image) for prompt in PROMPTS], [LONG] * len(PROMPTS))
    return [Passage(inputs, editor.read(inputs))]


def test_the_length_of_an_answer_counts_its_end(editor: LiveEditRefine, passages: list[Passage]) -> None:
    alone = editor.backbone.encode([Question(PROMPTS[0])], [LONG])
    assert passages[0].answer_length == int(alone.answer_mask.sum()) > 20


def test_gates_open_at_their_own_token_and_change_nothing_yet(
    editor: LiveEditRefine, fitting: Fitting, passages: list[Passage], eval_cases: tuple[EditCase, ...]
) -> None:
    image = eval_cases[0].edit.question.image
    neutral = editor.read(editor.backbone.encode([Question(prompt, image) for prompt in NEUTRAL_PROMPTS]))
    start = fitting.from_gates(passages, [neutral])
    (passage,) = passages
    length, config = passage.answer_length, editor.config
    assert start.u.shape == start.v.shape == (length, config.width) and not start.v.any()
    # A v of unit rows makes the residual the gates themselves.
    basis = torch.eye(length, config.width)
    states = passage.tokens.hidden_states
    gates = expert_residual(states, start.u[None], basis[None], torch.ones(len(states), 1), config)[..., :length]
    predicting = passage.inputs.predicting
    own = gates[predicting].unflatten(0, (len(PROMPTS), length))
    at_own = own.diagonal(dim1=1, dim2=2)
    elsewhere = own - torch.diag_embed(at_own)
    assert at_own.mean() > 0.8 and (own.argmax(-1) == torch.arange(length)).all(), "in every wording"
    assert elsewhere.max() < 0.4 and elsewhere.mean() < 0.02
    weights = torch.ones(len(NEUTRAL_PROMPTS), 1)
    asked = expert_residual(neutral.hidden_states, start.u[None], basis[None], weights, config)
    outside = asked[changed_tokens(neutral, config)][:, :length]
    assert outside.max() < 0.4 and outside.mean() < 0.02, "other questions about the image open none"


def test_the_rank_grows_with_the_answer(editor: LiveEditRefine, eval_cases: tuple[EditCase, ...]) -> None:
    question = Question(PROMPTS[0], eval_cases[0].edit.question.image)
    edits = [Edit(question, answer) for answer in (SHORT, LONG)]
    records = editor.edit([("short", edits[0]), ("long", edits[1])])
    length = int(editor.backbone.encode([question], [LONG]).answer_mask.sum())
    experts = [editor.get(record.edit_id) for record in records]
    assert [len(expert.u) for expert in experts] == [editor.config.rank, length]
    features = 3 * editor.config.feature_parts * editor.config.module_width
    assert [record.store_bytes for record in records] == [
        4 * (2 * rank * editor.config.width + features) for rank in (editor.config.rank, length)
    ]
    assert all(0 < record.refine_steps < editor.refining.steps for record in records)
    for edit, expert in zip(edits, experts, strict=True):
        passage = editor._passage([question], edit.answer)
        fitting = Fitting(editor.backbone, editor.layer, editor.config, editor.refining)
        assert fitting.is_right(passage, expert.u, expert.v)
        assert not fitting.is_right(passage, expert.u, 0 * expert.v)


def test_steps_stop_at_their_limit_and_repeat_to_the_bit(editor: LiveEditRefine, passages: list[Passage]) -> None:
    few = Fitting(editor.backbone, editor.layer, editor.config, RefineConfig(steps=3))  # type: ignore[call-arg]
    start = few.from_gates(passages, [passages[0].tokens])
    (u, v, steps), (again_u, again_v, _) = few.run(start, passages), few.run(start, passages)
    assert steps == 3 and torch.equal(u, again_u) and torch.equal(v, again_v)
    assert not torch.equal(v, start.v) and not u.requires_grad
    assert not start.v.any(), "the start is left as it was"


def test_the_answer_is_learned_at_smaller_weights_as_well(editor: LiveEditRefine, passages: list[Passage]) -> None:
    """Rows but the first are fitted at random weights, so that the answer does not depend on the weight."""
    fitting = Fitting(editor.backbone, editor.layer, editor.config, editor.refining)
    u, v, steps = fitting.run(fitting.from_gates(passages, [passages[0].tokens]), passages)
    assert steps < editor.refining.steps
    (passage,) = passages
    states = passage.tokens.hidden_states
    with torch.no_grad():
        for weight in (1.0, 0.8):
            weights = torch.full((len(states), 1), weight)
            residual = expert_residual(states, u[None], v[None], weights, editor.config)
            changed = changed_tokens(passage.tokens, editor.config)
            logits = editor.backbone.logits_from(
                states + residual * changed[..., None], passage.inputs, editor.config.layer, passage.inputs.predicting
            )
            right = F.softmax(logits.float(), -1).gather(1, passage.inputs.targets[:, None])
            assert right.min() > 0.5, weight
