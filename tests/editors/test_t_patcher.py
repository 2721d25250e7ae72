"""T-Patcher: its mathematics against slow references, its memory, and what undo leaves."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from liveedit.backbones import Backbone, load_backbone
from liveedit.editors.t_patcher import TPatcher, TPatcherConfig
from liveedit.editors.t_patcher.memory import LONGEST_ANSWER, PLAIN_QUESTIONS, default_memory
from liveedit.editors.t_patcher.patches import PatchedFeedForward, Patches, activation_loss, feed_forward, memory_loss
from liveedit.errors import BackboneError, CheckpointError, InvalidInputError, NotFoundError
from liveedit.samples import Edit, EditCase, Question
from liveedit.testing.family_models import FAMILIES
from liveedit.testing.model_traces import hooks_of

FFN_GIVEN_TO = {"llava": "mlp", "blip2-opt": "fc1"}
"""Families with each kind of FFN, and the module that its query goes into."""


def config(**settings: Any) -> TPatcherConfig:
    return TPatcherConfig(**{"memory_questions": 24, **settings})


def random_patches(count: int, width: int, seed: int = 0) -> Patches:
    generator = torch.Generator().manual_seed(seed)
    keys, values = (torch.randn(count, width, generator=generator) for _ in range(2))
    return Patches(keys, torch.randn(count, generator=generator), values)


def answer_of(backbone: Backbone, question: Question) -> str:
    return backbone.generate(backbone.encode([question], padding="left"), 8)[0]


def logits_of(backbone: Backbone, question: Question) -> Tensor:
    with torch.no_grad():
        return backbone.logits(backbone.encode([question]))


@pytest.fixture
def edit(eval_cases: tuple[EditCase, ...]) -> Edit:
    return Edit(eval_cases[0].edit.question, "teal")


@pytest.fixture
def other(eval_cases: tuple[EditCase, ...]) -> Edit:
    return Edit(eval_cases[1].edit.question, "deep well")


@pytest.fixture
def editor(tiny_llava: Backbone) -> Iterator[TPatcher]:
    with TPatcher(tiny_llava, config()) as attached:
        yield attached


@pytest.fixture(params=FFN_GIVEN_TO)
def family(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Backbone, nn.Module]:
    """A random model, and the module into which the query of its last FFN goes."""
    FAMILIES[request.param](tmp_path)
    backbone = load_backbone(tmp_path, device="cpu")
    return backbone, getattr(backbone.layers[-1], FFN_GIVEN_TO[request.param])


# -- mathematics -----------------------------------------------------------------------------------------


def test_a_patched_ffn_adds_what_a_slow_reference_says(
    family: tuple[Backbone, nn.Module], picture: Callable[[int], Image.Image]
) -> None:
    """The last layer adds sum_p relu(q . k_p + b_p) v_p; behind it only the norm and the head follow."""
    backbone, given_to = family
    inputs, patches = backbone.encode([Question("What is this?", picture(1))]), random_patches(3, backbone.width)
    seen: list[Tensor] = []
    handles = [
        given_to.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0])),
        backbone.layers[-1].register_forward_hook(
            lambda module, arguments, output: seen.append(output if isinstance(output, Tensor) else output[0])
        ),
    ]
    with torch.no_grad():
        unpatched = backbone.logits(inputs)
        for handle in handles:
            handle.remove()
        queries, after = seen[0].reshape(-1, backbone.width).double(), seen[1][0].double()
        for query, state in zip(queries, after, strict=True):
            for key, bias, value in zip(*(tensor.double() for tensor in patches.tensors), strict=True):
                state += max(0.0, float(query.dot(key) + bias)) * value
        norm = next(
            module for name, module in backbone.decoder.named_children() if name in ("norm", "final_layer_norm")
        )
        wanted = copy.deepcopy(backbone.output_embeddings).double()(copy.deepcopy(norm).double()(after))
        hook = PatchedFeedForward(backbone.layers[-1])
        try:
            assert torch.equal(backbone.logits(inputs), unpatched), "a hook without patches changes nothing"
            hook.patches = patches
            found = backbone.logits(inputs)[0].double()
        finally:
            hook.remove()
    assert (wanted - unpatched[0]).abs().max() > 0.1
    assert torch.allclose(found, wanted, atol=1e-4)


def test_the_losses_are_those_of_slow_loops() -> None:
    generator = torch.Generator().manual_seed(3)
    queries, memory = (torch.randn(count, 6, generator=generator, dtype=torch.float64) for count in (2, 9))
    patches = Patches(*(tensor.double() for tensor in random_patches(2, 6).tensors))
    own = (queries * patches.keys).sum(-1) + patches.biases
    bound, margin, largest = -3.0, 2.0, 4
    activation, quiet = 0.0, 0.0
    for place in range(2):
        score = [float(row.dot(patches.keys[place]) + patches.biases[place]) for row in (queries[place], *memory)]
        activation += math.exp(-score[0]) / 2
        for excess in (lambda it: it - bound, lambda it, mine=score[0]: it - mine + margin):
            worst = sorted((math.exp(excess(it)) for it in score[1:]), reverse=True)[:largest]
            quiet += sum(worst) / largest / 2
    assert float(activation_loss(own)) == pytest.approx(activation)
    assert float(memory_loss(own, patches.scores(memory), bound, margin, largest)) == pytest.approx(quiet)
    few = memory_loss(own, patches.scores(memory), bound, margin, 1000)
    assert few < memory_loss(own, patches.scores(memory), bound, margin, largest), "all nine count where 1000 may"


def test_a_patch_starts_from_its_query_active_and_silent() -> None:
    queries = torch.randn(3, 8, generator=torch.Generator().manual_seed(1))
    started = Patches.start(queries)
    assert torch.allclose(started.keys * queries.square().sum(1, keepdim=True), queries)
    assert torch.allclose(started.scores(queries).diagonal(), torch.ones(3))
    assert torch.equal(started.output(queries), torch.zeros(3, 8))


def test_from_its_start_a_patch_learns_and_from_zero_it_could_not() -> None:
    """Whatever loss pulls on the output: with a zero key relu's input is 0, and nothing has a gradient."""
    query, pull = torch.ones(1, 8), torch.arange(8.0)
    for patches, learns in (
        (Patches.start(query), True),
        (Patches(torch.zeros(1, 8), torch.zeros(1), torch.zeros(1, 8)), False),
    ):
        for tensor in patches.tensors:
            tensor.requires_grad_(True)
        (patches.output(query) @ pull).sum().backward()
        assert bool(patches.values.grad.abs().sum() > 0) is learns  # type: ignore[union-attr]


@pytest.mark.parametrize(("family_name", "adds"), [("llava", True), ("gemma3", False)])
def test_the_short_way_behind_the_ffn_answers_as_the_model_does(
    tmp_path: Path, picture: Callable[[int], Image.Image], family_name: str, adds: bool
) -> None:
    """Gemma's FFN is followed by a norm: there the last layer has to run, which a trial finds out."""
    FAMILIES[family_name](tmp_path)
    backbone = load_backbone(tmp_path, device="cpu")
    inputs, patches = backbone.encode([Question("What is this?", picture(1))], ["red"]), random_patches(2, 64)
    with TPatcher(backbone, config()) as editor:
        tail = editor._tail
        passage = tail.read(inputs)
        with torch.no_grad():
            found = tail.logits(passage, patches)
        editor._feed_forward.patches = patches
        assert tail._adds is adds
        assert torch.allclose(found, backbone.logits(inputs)[inputs.predicting], atol=1e-4)


def test_a_layer_without_an_ffn_is_refused() -> None:
    with pytest.raises(BackboneError, match="no FFN that T-Patcher knows"):
        feed_forward(nn.Linear(2, 2))


# -- editing ---------------------------------------------------------------------------------------------


def test_an_edit_gets_one_patch_for_every_wrong_token(tiny_llava: Backbone, editor: TPatcher, other: Edit) -> None:
    inputs = tiny_llava.encode([other.question], [other.answer])
    chosen = tiny_llava.logits(inputs)[inputs.predicting].argmax(-1)
    wrong = int((chosen != inputs.input_ids[inputs.answer_mask]).sum())
    (record,) = editor.edit([("edit", other)])
    assert answer_of(tiny_llava, other.question) == "deep well"
    assert record.details["patches"] == wrong > 1
    assert record.store_bytes == wrong * (2 * tiny_llava.width + 1) * 4
    assert 0 < record.refine_steps <= editor.config.steps


def test_what_is_right_already_gets_no_patch(tiny_llava: Backbone, editor: TPatcher, edit: Edit) -> None:
    before = logits_of(tiny_llava, edit.question)
    known = Edit(edit.question, answer_of(tiny_llava, edit.question))
    (record,) = editor.edit([("edit", known)])
    assert (record.details["patches"], record.refine_steps, record.store_bytes) == (0, 0, 0)
    assert torch.equal(logits_of(tiny_llava, edit.question), before)


def test_patches_are_active_on_their_edit_and_silent_on_the_memory(
    tiny_llava: Backbone, editor: TPatcher, edit: Edit
) -> None:
    kept = default_memory(tiny_llava, editor.config.memory_questions)[1]
    along = tiny_llava.encode([kept], [answer_of(tiny_llava, kept)])
    with torch.no_grad():
        before = tiny_llava.logits(along)[along.predicting]
    editor.edit([("edit", edit)])
    made = editor._made["edit"]
    assert editor._memory is not None
    assert bool((made.patches.scores(editor._memory) <= 0).all())
    assert bool((made.patches.scores(made.queries).max(0).values > 0).all())
    with torch.no_grad():
        assert torch.equal(tiny_llava.logits(along)[along.predicting], before)


def test_without_its_losses_the_memory_is_not_spared(tiny_llava: Backbone, edit: Edit) -> None:
    """What the memory loss is for: without it the same patch speaks on questions of the memory."""
    with TPatcher(tiny_llava, config(memory_weight=0.0, steps=25)) as editor:
        editor.edit([("edit", edit)])
        assert editor._memory is not None
        assert bool((editor._made["edit"].patches.scores(editor._memory) > 0).any())


def test_batches_and_caches_need_no_routing(tiny_llava: Backbone, editor: TPatcher, edit: Edit, other: Edit) -> None:
    editor.edit([("edit", edit), ("other", other)])
    text = Question("What is the capital of Coraland?")
    questions = [edit.question, text, other.question]
    alone = [answer_of(tiny_llava, question) for question in questions]
    assert [alone[0], alone[2]] == ["teal", "deep well"]
    for use_cache in (True, False):
        batch = tiny_llava.encode(questions, padding="left")
        assert tiny_llava.generate(batch, 8, use_cache=use_cache) == alone


def test_edits_in_sequence_are_not_forgotten(
    tiny_llava: Backbone, editor: TPatcher, eval_cases: tuple[EditCase, ...]
) -> None:
    """Patches of earlier edits stay as they are, and later ones keep quiet on their queries."""
    edits = [(case.id, case.edit) for case in eval_cases[:8]]
    editor.edit(edits[:1])
    first = editor._made[edits[0][0]].patches
    editor.edit(edits[1:])
    assert all(map(torch.equal, first.tensors, editor._made[edits[0][0]].patches.tensors))
    answers = [answer_of(tiny_llava, edit.question) == edit.answer for _, edit in edits]
    assert sum(answers) >= 7


def test_of_two_edits_of_one_fact_the_newer_wins(tiny_llava: Backbone, editor: TPatcher, edit: Edit) -> None:
    newer = Edit(edit.question, "four")
    editor.edit([("older", edit)])
    editor.edit([("newer", newer)])
    assert answer_of(tiny_llava, edit.question) == "four"


def test_the_same_id_twice_is_refused_before_anything_changes(
    tiny_llava: Backbone, editor: TPatcher, edit: Edit, other: Edit
) -> None:
    editor.edit([("edit", edit)])
    before = logits_of(tiny_llava, other.question)
    for edits in ([("new", other), ("edit", other)], [("new", other), ("new", other)]):
        with pytest.raises(InvalidInputError, match="already there"):
            editor.edit(edits)
    assert torch.equal(logits_of(tiny_llava, other.question), before)


def test_the_rate_is_that_of_built_in_or_of_other_backbones_unless_given(
    tiny_llava: Backbone, random_backbone: Backbone
) -> None:
    for backbone, given, rate in ((tiny_llava, None, 1e-2), (random_backbone, None, 0.1), (random_backbone, 0.3, 0.3)):
        with TPatcher(backbone, config(rate=given)) as editor:
            assert editor.configuration()["rate"] == rate


# -- memory ----------------------------------------------------------------------------------------------


def test_the_memory_of_a_built_in_backbone_is_drawn_and_never_measured(
    tiny_llava: Backbone, eval_cases: tuple[EditCase, ...]
) -> None:
    drawn = default_memory(tiny_llava, 10)
    assert len(drawn) == 10
    assert {question.image is None for question in drawn} == {True, False}
    assert drawn[:4] == default_memory(tiny_llava, 4), "the same questions every time"
    measured = {case.edit.scope for case in eval_cases}
    assert not measured & {question.scope for question in drawn}


def test_other_backbones_begin_with_plain_questions(random_backbone: Backbone) -> None:
    assert [question.prompt for question in default_memory(random_backbone, 10)] == list(PLAIN_QUESTIONS)


def test_given_questions_join_the_memory(random_backbone: Backbone, picture: Callable[[int], Image.Image]) -> None:
    given = Question("What color is the hat?", picture(5))
    (answer,) = random_backbone.generate(random_backbone.encode([given], padding="left"), LONGEST_ANSWER)
    with TPatcher(random_backbone, config()) as plain, TPatcher(random_backbone, config(), [given]) as editor:
        short, whole = plain._read_memory(), editor._read_memory()
        tokens = int(random_backbone.encode([given], [answer]).answer_mask.sum())
        assert len(whole) == len(short) + tokens
        assert editor.digest() != plain.digest()


def test_the_memory_is_that_of_the_unedited_model(tiny_llava: Backbone, editor: TPatcher, edit: Edit) -> None:
    """Also where it is read after edits were restored."""
    before = editor._read_memory()
    editor.edit([("edit", edit)])
    assert torch.equal(editor._read_memory(), before)


def test_queries_of_earlier_edits_join_the_memory_unless_of_the_same_scope(
    tiny_llava: Backbone, editor: TPatcher, edit: Edit, other: Edit
) -> None:
    editor.edit([("first", edit)])
    assert editor._memory is not None
    drawn, tokens = len(editor._memory), int(tiny_llava.encode([edit.question], [edit.answer]).answer_mask.sum())
    memory = editor._memory_of(other.scope)
    assert memory.shape == (drawn + tokens, tiny_llava.width)
    assert torch.equal(memory[drawn:], editor._made["first"].queries)
    assert len(editor._memory_of(edit.scope)) == drawn, "an edit may overrule an earlier one of the same scope"
    editor.edit([("second", other)])
    remembered = editor._made["second"].patches
    assert bool((remembered.scores(editor._made["first"].queries) <= 0).all())
    editor.undo("second")
    with TPatcher(tiny_llava, config(remember_edits=False)) as forgetting:
        forgetting.edit([("first", edit)])
        assert len(forgetting._memory_of(other.scope)) == drawn


# -- taking back, keeping --------------------------------------------------------------------------------


def test_undo_takes_out_one_edits_patches_alone(
    tiny_llava: Backbone, editor: TPatcher, edit: Edit, other: Edit
) -> None:
    untouched = logits_of(tiny_llava, edit.question)
    editor.edit([("first", edit)])
    first_alone = logits_of(tiny_llava, edit.question)
    editor.edit([("second", other)])
    second = editor._made["second"].patches
    editor.undo("second")
    assert torch.equal(logits_of(tiny_llava, edit.question), first_alone)
    editor.edit([("second", other)])
    assert all(map(torch.equal, second.tensors, editor._made["second"].patches.tensors)), "made as it was before"
    editor.undo("first")
    assert answer_of(tiny_llava, other.question) == "deep well"
    editor.undo("second")
    assert torch.equal(logits_of(tiny_llava, edit.question), untouched)
    with pytest.raises(NotFoundError, match="no edit 'second'"):
        editor.undo("second")


def test_a_restored_editor_goes_on_as_the_first_would(
    tiny_llava: Backbone, editor: TPatcher, edit: Edit, other: Edit
) -> None:
    """Queries of earlier edits are part of the memory: they are kept with the patches."""
    editor.edit([("first", edit)])
    tensors, note = editor.edited_state()
    editor.edit([("second", other)])
    wanted = editor._made["second"].patches
    editor.detach()
    with TPatcher(tiny_llava, config()) as again:
        again.restore(tensors, note)
        again.edit([("second", other)])
        assert all(map(torch.equal, wanted.tensors, again._made["second"].patches.tensors))
        again.undo("first")
        assert answer_of(tiny_llava, other.question) == "deep well"


def test_patches_that_do_not_fit_are_not_restored(tiny_llava: Backbone, editor: TPatcher, edit: Edit) -> None:
    editor.edit([("edit", edit)])
    tensors, note = editor.edited_state()
    before = logits_of(tiny_llava, edit.question)
    with pytest.raises(CheckpointError, match="shapes"):
        editor.restore({**tensors, "keys": tensors["keys"][:, 1:]}, note)
    assert torch.equal(logits_of(tiny_llava, edit.question), before)


def test_hooks_go_with_the_editor_and_nobody_elses(tiny_llava: Backbone) -> None:
    own, _ = feed_forward(tiny_llava.layers[-1])
    mine = own.register_forward_hook(lambda module, arguments, output: None)
    try:
        TPatcher(tiny_llava, config()).detach()
        assert len(hooks_of(tiny_llava)) == 1
    finally:
        mine.remove()
