"""LEMoE as a whole: it learns in batches, keeps earlier experts, finds them again, and leaves no trace."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from PIL import Image
from torch import Tensor

from liveedit.backbones import Backbone, load_backbone
from liveedit.backbones.shared_beginning import SharedBeginning
from liveedit.editors.lemoe import Lemoe, LemoeConfig
from liveedit.errors import CheckpointError, ConfigError, InvalidInputError, NotFoundError
from liveedit.experiments.lemoe.analysis import consistency_matrix, diagonal_mass, within_between_similarity
from liveedit.samples import Edit, EditCase, Question
from liveedit.testing import tiny_backbone
from liveedit.testing.family_models import FAMILIES

ConfigMaker = Callable[..., LemoeConfig]
EditorMaker = Callable[..., Lemoe]
Edits = list[tuple[str, Edit]]

WAYS_TO_FIND = [{"anchor": "state+image"}, {"anchor": "text+image"}, {"routing": "conventional"}]
STRANGER = Question("Who wrote the longest book about rivers and lakes?")


def logits_of(backbone: Backbone, questions: Sequence[Question], answers: Sequence[str] | None = None) -> Tensor:
    with torch.no_grad():
        return backbone.logits(backbone.encode(questions, answers))


def nll(backbone: Backbone, edits: Edits) -> float:
    """The mean loss of the answers' tokens, with whatever is in force."""
    inputs = backbone.encode([edit.question for _, edit in edits], [edit.answer for _, edit in edits])
    with torch.no_grad():
        logits = backbone.logits(inputs)[inputs.predicting]
    return float(torch.nn.functional.cross_entropy(logits, inputs.input_ids[inputs.answer_mask]))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"expert": "low_rank", "rate": 3e-2},
        {"routing": "conventional"},
        {"gate": "softmax", "routing_steps": 0, "null_expert": "none"},
        {"force_new_expert": False, "top_k": 2},
        {"projection": "every_batch", "null_expert": "key"},
    ],
    ids=["default", "low-rank", "conventional", "by answers alone", "unforced", "null key"],
)
def test_every_way_learns_its_answers_and_gives_the_model_back(
    make_editor: EditorMaker, edits: Edits, changes: dict[str, object]
) -> None:
    editor = make_editor(**changes)
    backbone = editor.backbone
    before = logits_of(backbone, [edit.question for _, edit in edits])
    untrained = nll(backbone, edits)
    records = editor.edit(edits)
    assert nll(backbone, edits) < 0.7 * untrained
    assert [record.edit_id for record in records] == [edit_id for edit_id, _ in edits]
    assert len(editor.experts) == 2
    editor.reset()
    assert torch.equal(logits_of(backbone, [edit.question for _, edit in edits]), before)


def test_what_questions_begin_with_is_computed_once_and_learns_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = tiny_backbone("llama")
    beginning = "Think of it once more, for a long time, and say in a few words: "
    questions = [Question(beginning + asked) for asked in ("Who was it?", "What do people call it there?", "Why?")]
    edits = [(str(place), Edit(question, f"answer {place}")) for place, question in enumerate(questions)]
    config = LemoeConfig(steps=6, stop_below_nats=0.0, calibrated=False)  # type: ignore[call-arg]
    passes: list[int] = []
    learned: list[tuple[dict[str, Tensor], float]] = []
    for shared in (True, False):
        if not shared:
            monkeypatch.setattr(SharedBeginning, "of", lambda *arguments: None)
        with Lemoe(backbone, config) as editor:
            handle = backbone.layers[editor.layer].register_forward_pre_hook(
                lambda layer, arguments: passes.append(len(arguments[0]))
            )
            records = editor.edit(edits)
            handle.remove()
            learned.append((editor.experts[0], records[0].details["worst_nats"]))
    assert passes.count(1) == 7 == config.steps + 1, "one row, once for each forward pass of the training"
    assert learned[0][1] == pytest.approx(learned[1][1], abs=1e-3)
    for name, value in learned[0][0].items():
        torch.testing.assert_close(value, learned[1][0][name], rtol=0, atol=2e-4)


def test_the_built_in_model_says_what_it_was_told(tiny_llava: Backbone, eval_cases: tuple[EditCase, ...]) -> None:
    cases = eval_cases[:4]
    with Lemoe(tiny_llava, LemoeConfig(batch_edits=2)) as editor:  # type: ignore[call-arg]
        editor.edit([(case.id, case.edit) for case in cases])
        inputs = tiny_llava.encode([case.edit.question for case in cases], padding="left")
        assert tiny_llava.generate(inputs, 8) == [case.edit.answer for case in cases]


def test_what_no_expert_is_for_stays_bit_for_bit(make_editor: EditorMaker, edits: Edits) -> None:
    editor = make_editor()
    asked = [STRANGER, edits[0][1].question]
    before = logits_of(editor.backbone, asked)
    editor.edit(edits[:1])
    after = logits_of(editor.backbone, asked)
    assert editor.route_of(asked) == [-1, 0]
    assert torch.equal(after[0], before[0])
    assert not torch.equal(after[1], before[1])


def test_the_sum_is_that_of_the_equation(make_editor: EditorMaker, edits: Edits) -> None:
    """h(x) = FFN(x) + lambda g f(x), read off at the FFN, by hand."""
    editor = make_editor(strength=0.5, null_expert="none", gate="softmax", top_k=2)
    editor.edit(edits)
    seen: list[tuple[Tensor, Tensor]] = []
    module = editor.backbone.layers[editor.layer].mlp  # type: ignore[union-attr]
    handle = module.register_forward_hook(lambda module, given, output: seen.append((given[0], output)))
    questions = [edit.question for _, edit in edits[:2]]
    editor.edit([])
    logits_of(editor.backbone, questions[:1])
    handle.remove()
    ((x, output),) = seen
    anchor = editor.anchors_of(questions[:1])
    router = editor._router()
    shares = router.scores(anchor, router.keys).softmax(1)[0]
    wanted = module.down_proj(module.act_fn(module.gate_proj(x)) * module.up_proj(x))  # type: ignore[operator]
    for share, weights in zip(shares, editor.experts, strict=True):
        hidden = torch.nn.functional.silu(x @ weights["gate"].T) * (x @ weights["read"].T)
        wanted = wanted + 0.5 * share * (hidden @ weights["write"].T)
    torch.testing.assert_close(output, wanted)


def test_the_key_trains(make_editor: EditorMaker, edits: Edits) -> None:
    """Keys that are missing from the optimiser stay at their start, the mean of their batch's values."""
    for changes in ({}, {"gate": "softmax", "routing_steps": 0, "null_expert": "none"}):
        editor = make_editor(**changes)
        editor.edit(edits)
        router = editor._router()
        anchors = router.anchors[router.owner == 1]
        start = torch.nn.functional.normalize(router.values(anchors).mean(0), dim=0)
        assert not torch.allclose(router.keys[1], start, atol=1e-4)
        editor.detach()


@pytest.mark.parametrize("routing", ["kv_anchor", "conventional"])
def test_earlier_experts_are_frozen_and_the_gate_is_not(make_editor: EditorMaker, edits: Edits, routing: str) -> None:
    editor = make_editor(routing=routing, conventional_trains="new")
    editor.edit(edits[:2])
    expert = {name: value.clone() for name, value in editor.experts[0].items()}
    routed = (editor.gate.rows if routing == "conventional" else editor._router().keys).clone()
    editor.edit(edits[2:])
    assert all(torch.equal(editor.experts[0][name], value) for name, value in expert.items())
    now = editor.gate.rows if routing == "conventional" else editor._router().keys
    assert torch.equal(now[:1], routed) is (routing == "kv_anchor")


def test_a_conventional_adaptor_trains_earlier_experts_too(make_editor: EditorMaker, edits: Edits) -> None:
    editor = make_editor(routing="conventional")
    editor.edit(edits[:2])
    expert = editor.experts[0]["write"].clone()
    editor.edit(edits[2:])
    assert not torch.equal(editor.experts[0]["write"], expert)


@pytest.mark.parametrize("anchor", ["state+image", "text+image"])
def test_the_answer_has_no_say_in_routing(make_editor: EditorMaker, edits: Edits, anchor: str) -> None:
    editor = make_editor(order="given", anchor=anchor)
    editor.edit(edits)
    questions = [edit.question for _, edit in edits]
    for answers in (None, ["a"] * 4, ["the garden behind the old house"] * 4):
        logits_of(editor.backbone, questions, answers)
        route = editor._hook.route
        assert route is not None
        assert route.experts.flatten().tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("anchor", ["state+image", "text+image"])
def test_labels_of_an_external_call_keep_the_answer_out_of_routing(
    make_editor: EditorMaker, edits: Edits, anchor: str
) -> None:
    editor = make_editor(order="given", anchor=anchor)
    editor.edit(edits)
    inputs = editor.backbone.encode([edit.question for _, edit in edits], ["the garden behind the old house"] * 4)
    with torch.no_grad():
        through = editor.backbone.logits(inputs)
        labels = inputs.input_ids.masked_fill(~inputs.answer_mask, -100)
        assert torch.equal(editor.backbone.model(**inputs.model_inputs(), labels=labels).logits, through)
        with pytest.warns(UserWarning, match="does not say where an answer begins"):
            other = editor.backbone.model(**inputs.model_inputs()).logits
    assert not torch.equal(other, through)


@pytest.mark.parametrize("how", WAYS_TO_FIND, ids=str)
def test_a_batch_answers_as_one_by_one(make_editor: EditorMaker, edits: Edits, how: dict[str, str]) -> None:
    editor = make_editor(**how)
    editor.edit(edits)
    backbone = editor.backbone
    asked = [*(edit.question for _, edit in edits), STRANGER]
    for padding in ("left", "right"):
        inputs = backbone.encode(asked, padding=padding)
        with torch.no_grad():
            together = backbone.logits(inputs)
        for row, question in enumerate(asked):
            alone = logits_of(backbone, [question])[0]
            torch.testing.assert_close(together[row][inputs.attention_mask[row].bool()], alone, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("how", WAYS_TO_FIND, ids=str)
def test_generating_from_the_cache_is_generating_without(
    make_editor: EditorMaker, edits: Edits, how: dict[str, str]
) -> None:
    editor = make_editor(**how)
    editor.edit(edits)
    backbone = editor.backbone
    inputs = backbone.encode([edit.question for _, edit in edits], padding="left")
    cached = backbone.generate(inputs, 6)
    assert cached == backbone.generate(inputs, 6, use_cache=False)
    best = backbone.generate(inputs, 6, beams=2)
    alone = [backbone.generate(backbone.encode([edit.question], padding="left"), 6, beams=2)[0] for _, edit in edits]
    assert best == alone


@pytest.mark.parametrize("anchor", ["state+image", "text+image"])
def test_a_stranger_gets_the_same_answers(make_editor: EditorMaker, edits: Edits, anchor: str) -> None:
    """The model's own generate(), called without the backbone."""
    editor = make_editor(anchor=anchor)
    editor.edit(edits)
    backbone = editor.backbone
    inputs = backbone.encode([edit.question for _, edit in edits], padding="left")
    with torch.no_grad():
        output = backbone.model.generate(  # type: ignore[operator]
            **inputs.model_inputs(), max_new_tokens=6, do_sample=False, suppress_tokens=[backbone.image_token_id]
        )
    texts = backbone.tokenizer.batch_decode(output[:, inputs.input_ids.shape[1] :], skip_special_tokens=True)
    assert [text.strip() for text in texts] == backbone.generate(inputs, 6)


def test_records_tell_expert_and_place(make_editor: EditorMaker, edits: Edits) -> None:
    editor = make_editor(order="shuffled", seed=1)
    seen: list[tuple[int, int]] = []
    records = editor.edit(edits, lambda done, total: seen.append((done, total)))
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    places = [record.details["place"] for record in records]
    assert sorted(places) == [0, 1, 2, 3] != places
    assert {record.edit_id: record.details["expert"] for record in records} == editor.trained_by()
    assert [record.details["expert"] for record in sorted(records, key=lambda it: it.details["place"])] == [0, 0, 1, 1]
    assert all(record.store_bytes == 4 * 3 * 64 * 192 // 2 for record in records)


@pytest.mark.parametrize("order", ["clustered", "given", "shuffled"])
def test_batches_made_one_by_one_are_those_of_one_call(
    random_backbone: Backbone, make_editor: EditorMaker, edits: Edits, order: str
) -> None:
    editor = make_editor(order=order, seed=1)
    questions = [edit.question for _, edit in edits]
    records = {record.edit_id: record for record in editor.edit(edits)}
    whole = logits_of(random_backbone, questions)
    editor.reset()
    for group in editor.groups([edit for _, edit in edits]):
        for record in editor.edit([edits[place] for place in group]):
            assert record.details == records[record.edit_id].details
    assert torch.equal(logits_of(random_backbone, questions), whole)


def test_another_embedder_plans_the_batches(random_backbone: Backbone, lemoe_config: ConfigMaker, edits: Edits) -> None:
    by_length = {"hat": 0.0, "home": 9.0, "legs": 9.1, "city": 0.1}
    answers = {edit.answer: by_length[edit_id] for edit_id, edit in edits}
    with Lemoe(
        random_backbone, lemoe_config(steps=1), lambda asked: torch.tensor([[answers[edit.answer]] for edit in asked])
    ) as editor:
        editor.edit(edits)
        assert editor.edits_of == [["hat", "city"], ["home", "legs"]]


def test_the_same_seed_gives_the_same_bits(make_editor: EditorMaker, edits: Edits) -> None:
    editor = make_editor()
    editor.edit(edits)
    first, note = editor.edited_state()
    editor.reset()
    editor.edit(edits)
    second, same_note = editor.edited_state()
    assert note == same_note
    assert all(torch.equal(first[name], second[name]) for name in first.keys() | second.keys())


@pytest.mark.parametrize("changes", [{}, {"routing": "conventional"}, {"projection": "every_batch"}])
def test_restored_edits_answer_as_before_and_can_be_added_to(
    make_editor: EditorMaker, edits: Edits, changes: dict[str, object]
) -> None:
    editor = make_editor(**changes)
    editor.edit(edits[:3])
    tensors, note = editor.edited_state()
    editor.edit(edits[3:])
    asked = [edit.question for _, edit in edits]
    wanted, processed = logits_of(editor.backbone, asked), editor.trained_by()
    editor.detach()
    other = make_editor(**changes)
    other.edit(edits[2:])
    other.restore(tensors, note)
    other.edit(edits[3:])
    assert torch.equal(logits_of(editor.backbone, asked), wanted)
    assert other.trained_by() == processed


def test_what_does_not_fit_is_not_restored(make_editor: EditorMaker, edits: Edits) -> None:
    editor = make_editor()
    editor.edit(edits[:2])
    tensors, note = editor.edited_state()
    before = logits_of(editor.backbone, [edits[0][1].question])
    for broken in (
        {name: value for name, value in tensors.items() if name != "routing.keys"},
        {name: value for name, value in tensors.items() if name != "expert.0.gate"},
        {**tensors, "expert.0.gate": torch.zeros(3, 192)},
    ):
        with pytest.raises(CheckpointError, match="kept edits have"):
            editor.restore(broken, note)
    assert torch.equal(logits_of(editor.backbone, [edits[0][1].question]), before)


@pytest.mark.parametrize("null", ["threshold", "none"])
def test_each_question_names_the_nearest_edit_of_the_expert_that_answers(
    make_editor: EditorMaker, edits: Edits, null: str
) -> None:
    editor = make_editor(null_expert=null)
    questions = [edit.question for _, edit in edits]
    assert editor.fired() == []
    editor.edit(edits)
    logits_of(editor.backbone, questions)
    fired = editor.fired()
    assert fired is not None
    assert [[one.edit_id for one in row] for row in fired] == [[edit_id] for edit_id, _ in edits]
    assert all(row[0].weight == 1 and row[0].margin > 0 for row in fired)
    nearest, least = editor.anchors_of(questions), editor.config.least_similarity if null == "threshold" else (0, 0)
    for row, anchor, edited in zip(fired, nearest, [True, True, True, False], strict=True):
        assert row[0].margin == pytest.approx(float(anchor @ anchor) - least[not edited], abs=1e-4)


def test_a_question_that_reaches_no_expert_names_no_edit(make_editor: EditorMaker, edits: Edits) -> None:
    editor = make_editor()
    editor.edit(edits)
    logits_of(editor.backbone, [edits[0][1].question, STRANGER])
    first, stranger = editor.fired() or []
    assert [one.edit_id for one in first] == ["hat"]
    assert stranger == ()


def test_conventional_routing_names_no_edits(make_editor: EditorMaker, edits: Edits) -> None:
    editor = make_editor(routing="conventional")
    editor.edit(edits)
    logits_of(editor.backbone, [edits[0][1].question])
    assert editor.fired() is None


def test_undo_takes_out_an_edit_that_has_an_expert_to_itself(make_editor: EditorMaker, edits: Edits) -> None:
    editor = make_editor(order="given")
    questions = [edit.question for _, edit in edits[:3]]
    unedited = logits_of(editor.backbone, questions)
    editor.edit(edits[:2])
    with pytest.raises(NotFoundError, match="reset it"):
        editor.undo("hat")
    both = logits_of(editor.backbone, questions)
    editor.edit(edits[2:3])
    editor.undo("legs")
    assert torch.equal(logits_of(editor.backbone, questions), both)
    editor.reset()
    editor.edit(edits[:1])
    editor.edit(edits[2:3])
    editor.undo("hat")
    assert editor.trained_by() == {"legs": 0}
    assert editor.route_of(questions) == [-1, -1, 0]
    assert torch.equal(logits_of(editor.backbone, questions[:2]), logits_of(editor.backbone, questions[:2]))
    editor.undo("legs")
    assert torch.equal(logits_of(editor.backbone, questions), unedited)


def test_an_exception_in_training_leaves_what_was_there(
    make_editor: EditorMaker, edits: Edits, monkeypatch: pytest.MonkeyPatch
) -> None:
    editor = make_editor()
    editor.edit(edits[:2])
    asked = [edit.question for _, edit in edits]
    before = logits_of(editor.backbone, asked)

    def fail(self: torch.optim.AdamW) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(torch.optim.AdamW, "step", fail)
        editor.edit(edits[2:])
    assert torch.equal(logits_of(editor.backbone, asked), before)
    assert len(editor.experts) == 1
    editor.edit(edits[2:])
    assert editor.route_of(asked) == [0, 0, 1, 1]


@pytest.mark.parametrize("family", ["llama", "blip2-opt"])
def test_other_models_are_edited_in_the_same_way(
    tmp_path_factory: pytest.TempPathFactory,
    lemoe_config: ConfigMaker,
    picture: Callable[[int], Image.Image],
    family: str,
) -> None:
    folder = tmp_path_factory.mktemp(family)
    FAMILIES[family](folder)
    backbone = load_backbone(folder, device="cpu")
    image = picture(1) if backbone.reads_images else None
    edits = [
        ("hat", Edit(Question("What color is the hat?", image), "red")),
        ("two", Edit(Question("How many?"), "four")),
    ]
    before, untrained = logits_of(backbone, [edit.question for _, edit in edits]), nll(backbone, edits)
    with Lemoe(backbone, lemoe_config(batch_edits=1, hidden=None)) as editor:
        editor.edit(edits)
        assert nll(backbone, edits) < 0.5 * untrained
        assert editor.route_of([edit.question for _, edit in edits]) == [0, 1]
        assert backbone.generate(backbone.encode([edits[0][1].question], padding="left"), 2)
    assert torch.equal(logits_of(backbone, [edit.question for _, edit in edits]), before)


def test_layers_that_cannot_be_edited_are_refused(make_editor: EditorMaker) -> None:
    assert make_editor().layer == make_editor().backbone.default_edit_layer() == 3
    with pytest.raises(ConfigError, match="layers 1 to 5"):
        make_editor(layer=6)
    with pytest.raises(ConfigError, match="layer = 0 was given"):
        make_editor(layer=0)


def test_consistency_is_the_share_that_comes_back(
    make_editor: EditorMaker, edits: Edits, monkeypatch: pytest.MonkeyPatch
) -> None:
    editor = make_editor(order="given")
    editor.edit(edits)
    torch.testing.assert_close(consistency_matrix(editor, edits), torch.eye(2))
    monkeypatch.setattr(editor, "route_of", lambda questions: [0, 1, -1, 1][: len(questions)])
    matrix = consistency_matrix(editor, edits)
    torch.testing.assert_close(matrix, torch.tensor([[0.5, 0.5], [0.0, 0.5]]))
    assert diagonal_mass(matrix) == 0.5
    partly = consistency_matrix(editor, edits[:2])
    assert partly[1].isnan().all()
    with pytest.raises(InvalidInputError, match="nobody"):
        consistency_matrix(editor, [("nobody", edits[0][1])])


def test_likeness_within_and_between_batches() -> None:
    points = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    within, between = within_between_similarity(points, [[0, 1], [2, 3]])
    half = 0.5**0.5
    assert within == pytest.approx((1 + half) / 2)
    assert between == pytest.approx((0 + half + 0 + half) / 4)
