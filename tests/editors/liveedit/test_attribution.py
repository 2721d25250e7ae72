"""Attribution: maps against slow computations, routed edits against a real answer."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import reference
import torch
from forced_experts import features_of, forced_expert
from PIL import Image
from torch import Tensor

from liveedit.backbones import Backbone
from liveedit.backbones.families.blip2 import Blip2Backbone
from liveedit.backbones.tokens import TokenBatch
from liveedit.datasets.world import catalog
from liveedit.datasets.world.drawing import draw, draw_pose
from liveedit.datasets.world.questions import ask, topics
from liveedit.datasets.world.scene import Scene, draw_scene
from liveedit.editors.base import ExpertEditor
from liveedit.editors.heat_map import HeatMap
from liveedit.editors.liveedit import LiveEdit, LiveEditConfig
from liveedit.editors.liveedit.attention import _one_square_image, _through_queries
from liveedit.editors.liveedit.attribution import attribution, candidates
from liveedit.editors.liveedit.modules import left_pack
from liveedit.editors.occlusion import change_map
from liveedit.errors import InvalidInputError
from liveedit.pretraining.models import TINY_BLIP2
from liveedit.samples import Edit, EditCase, Question
from liveedit.testing.model_traces import hooks_of

ConfigMaker = Callable[..., LiveEditConfig]


@pytest.fixture(scope="module")
def random_blip2() -> Backbone:
    model = TINY_BLIP2.build(seed=1)
    with torch.no_grad():  # As transformers starts them, queries read the same of every patch.
        for name, parameter in model.named_parameters():
            if name.startswith(("vision_model", "qformer")):
                parameter.add_(0.2 * torch.randn_like(parameter))
    return Blip2Backbone("tiny-random-blip2", model, TINY_BLIP2.processor())


def values_of(found: HeatMap) -> np.ndarray:
    return np.array(found.values)


def slow_shares(editor: LiveEdit, question: Question, side: str) -> list[float]:
    """The attention of CA_phi2 over image tokens, head by head and feature vector by feature vector, as loops."""
    tokens = editor.read(editor.backbone.encode([question]))
    config = editor.config
    weights = reference.part_of(editor.modules.state_dict(), side)
    prompt, image = (
        tokens.hidden_states[0][mask[0]].double().tolist() for mask in (tokens.prompt_mask, tokens.image_mask)
    )
    phi0 = reference.matrix(weights["phi0"])
    asked = reference.cross_attention(phi0, [prompt], reference.part_of(weights, "attend_phi1"), config.heads)
    own = reference.part_of(weights, "attend_phi2")
    queries = reference.linear(reference.layer_norm(asked, own, "query_norm"), own, "query")
    keys = reference.linear(reference.layer_norm(image, own, "source_norms.0"), own, "keys.0")
    width = len(queries[0]) // config.heads
    total = [0.0] * len(keys)
    for query in queries:
        for head in range(config.heads):
            part = slice(head * width, (head + 1) * width)
            read = reference.softmax([reference.dot(query[part], key[part]) / math.sqrt(width) for key in keys])
            total = [before + share for before, share in zip(total, read, strict=True)]
    return [value / (len(queries) * config.heads) for value in total]


@pytest.mark.parametrize("side", ["query", "edit"])
def test_attention_over_patches_is_the_slow_one(editor: LiveEdit, questions: list[Question], side: str) -> None:
    found = editor.attention_map(questions[0], side)  # type: ignore[arg-type]
    assert (found.kind, found.over) == ("attention", "cells")
    assert values_of(found).shape == (4, 4)
    assert values_of(found).sum() == pytest.approx(1)
    assert values_of(found).flatten().tolist() == pytest.approx(
        slow_shares(editor, questions[0], {"query": "bar", "edit": "hat"}[side]), abs=1e-5
    )


def test_weights_of_cross_attention_are_those_it_reads_with(editor: LiveEdit, questions: list[Question]) -> None:
    """values weighted by `weights` are what `forward` gives, before the output projection; padding reads nothing."""
    attend = editor.modules.bar.attend_phi2
    tokens = editor.read(editor.backbone.encode(questions))
    image = (tokens.hidden_states, tokens.image_mask)
    asked = editor.modules.bar.asked(left_pack(tokens.hidden_states, tokens.prompt_mask))
    with torch.no_grad():
        weights = attend.weights(asked, [image])
        values = attend._split(attend.values[0](attend.source_norms[0](tokens.hidden_states)))
        read = attend.output((weights @ values).transpose(1, 2).flatten(2))
        torch.testing.assert_close(read, attend(asked, [image]))
    assert not weights[..., ~tokens.image_mask[0]][0].any()
    torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights.sum(-1)))


@pytest.fixture
def blip2_editor(random_blip2: Backbone, small_config: ConfigMaker) -> Iterator[LiveEdit]:
    hooks = hooks_of(random_blip2)
    with LiveEdit.untrained(random_blip2, small_config()) as editor:
        yield editor
    assert hooks_of(random_blip2) == hooks


def slow_cross_attention(backbone: Backbone, question: Question) -> Tensor:
    """What each query of the Q-Former reads of the vision tower, by hand: (queries, tokens), layers and heads' mean."""
    model: torch.nn.Module = backbone.model
    modules = [it.crossattention.attention for it in model.qformer.encoder.layer]  # type: ignore[union-attr]
    seen: list[tuple[Tensor, Tensor]] = []
    handles = [
        it.register_forward_pre_hook(
            lambda _, given, named: seen.append((named["hidden_states"], named["encoder_hidden_states"])),
            with_kwargs=True,
        )
        for it in modules
    ]
    with torch.no_grad():
        backbone.hidden_states(backbone.encode([question]), 3)
    for handle in handles:
        handle.remove()
    layers = []
    for module, (own, picture) in zip(modules, seen, strict=True):
        heads = module.num_attention_heads
        query, key = (
            layer(states)[0].double().unflatten(-1, (heads, -1)).transpose(0, 1)
            for layer, states in ((module.query, own), (module.key, picture))
        )
        layers.append((query @ key.transpose(1, 2) / math.sqrt(query.shape[-1])).softmax(-1).mean(0))
    return torch.stack(layers).mean(0).detach()


@pytest.mark.parametrize("way", ["eager", "sdpa"])
def test_a_q_formers_queries_hand_their_shares_on_to_the_patches(
    blip2_editor: LiveEdit, questions: list[Question], way: str
) -> None:
    config = blip2_editor.backbone.model.qformer.config  # type: ignore[union-attr]
    before = config._attn_implementation  # type: ignore[union-attr]
    config._attn_implementation = way  # type: ignore[union-attr]
    try:
        found = blip2_editor.attention_map(questions[0])
        assert config._attn_implementation == way  # type: ignore[union-attr]
    finally:
        config._attn_implementation = before  # type: ignore[union-attr]
    shares = torch.tensor(slow_shares(blip2_editor, questions[0], "bar")).double()
    patches = (shares @ slow_cross_attention(blip2_editor.backbone, questions[0]))[1:]
    wanted = (patches / patches.sum()).view(4, 4)
    assert (found.over, values_of(found).shape) == ("cells", (4, 4))
    assert values_of(found).flatten().tolist() == pytest.approx(wanted.flatten().tolist(), abs=1e-5)
    assert np.ptp(wanted.numpy()) > 1e-3, "the map is flat: nothing was tested"
    assert "Q-Former" in found.note


def test_looking_leaves_a_q_former_as_it_was_after_an_exception(
    blip2_editor: LiveEdit, questions: list[Question], monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = blip2_editor.backbone
    hooks = hooks_of(backbone)
    config = backbone.model.qformer.config  # type: ignore[union-attr]
    monkeypatch.setattr(config, "_attn_implementation", "sdpa")

    def fail(*_: object) -> None:
        raise RuntimeError("on purpose")

    monkeypatch.setattr(blip2_editor, "read", fail)
    with pytest.raises(RuntimeError, match="on purpose"):
        blip2_editor.attention_map(questions[0])
    assert hooks_of(backbone) == hooks
    assert config._attn_implementation == "sdpa"  # type: ignore[union-attr]


def test_tokens_without_places_give_a_map_over_tokens() -> None:
    shares = torch.tensor([0.75, 0.25])
    cross = torch.full((2, 7), 1 / 7)
    found = _through_queries(shares, cross)
    assert found.over == "tokens" and found.values == ((0.75, 0.25),)
    ids = torch.zeros(1, 1, dtype=torch.long)
    for shape, square in (((1, 3, 8, 8), True), ((1, 3, 8, 6), False), ((2, 3, 8, 8), False), ((1, 2, 3, 8, 8), False)):
        inputs = TokenBatch(ids, ids, extras={"pixel_values": torch.zeros(shape)})
        assert _one_square_image(inputs) is square


def test_change_is_what_covering_a_cell_does(editor: LiveEdit, picture: Callable[[int], Image.Image]) -> None:
    question = Question("What color is the hat?", picture(1))
    found = change_map(editor, question, 2)
    assert (found.kind, found.over, values_of(found).shape) == ("change", "cells", (2, 2))
    pixels = np.asarray(picture(1)).copy()
    pixels[32:, :32] = pixels.reshape(-1, 3).mean(0).round()  # Second row, first column.
    covered = Question(question.prompt, Image.fromarray(pixels))
    before, after = (features_of(editor, it).visual[0].double() for it in (question, covered))
    assert found.values[1][0] == pytest.approx(1 - float(before @ after / before.norm() / after.norm()), abs=1e-5)
    assert found.values[1][0] > 1e-5, "nothing changed: nothing was tested"


def test_nothing_changes_where_there_is_nothing_to_cover(editor: LiveEdit) -> None:
    plain = Question("What color is the hat?", Image.new("RGB", (64, 64), (90, 120, 30)))
    assert values_of(change_map(editor, plain, 2)).max() < 1e-6


def test_an_editor_without_features_of_its_own_is_measured_by_its_answers(
    editor: LiveEdit, picture: Callable[[int], Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`ExpertEditor`'s defaults: no attention map, and a map of changes of the first answer token's probabilities."""
    question = Question("What color is the hat?", picture(1))
    assert ExpertEditor.attention_map(editor, question) is None
    for name in ("occlusion_features", "occlusion_feature"):
        monkeypatch.setattr(LiveEdit, name, getattr(ExpertEditor, name))
    found = change_map(editor, question, 2)
    pixels = np.asarray(picture(1)).copy()
    pixels[32:, :32] = pixels.reshape(-1, 3).mean(0).round()
    covered = Question(question.prompt, Image.fromarray(pixels))
    with torch.no_grad():
        before, after = (
            editor.backbone.logits(editor.backbone.encode([it]))[0, -1].double().softmax(-1)
            for it in (question, covered)
        )
    expected = 1 - float(before @ after / before.norm() / after.norm())
    assert found.values[1][0] == pytest.approx(expected, abs=1e-6) and expected > 1e-5
    assert "probabilities of the first answer token" in found.note


def test_a_question_without_an_image_has_no_map_of_changes(editor: LiveEdit) -> None:
    with pytest.raises(InvalidInputError, match="without an image"):
        change_map(editor, Question("What is the capital of Coraland?"))


# -- routed edits ----------------------------------------------------------------------------------


@pytest.fixture
def crowd(editor: LiveEdit, questions: list[Question]) -> dict[str, Edit]:
    """Two edits that the first question reaches, and one that it does not."""
    editor.add("near", forced_expert(editor, questions[0], seed=0))
    editor.add("also near", forced_expert(editor, questions[0], seed=1, strength=1.0))
    editor.add("far", forced_expert(editor, questions[1], against=questions[:1], seed=2))
    return {
        "near": Edit(questions[0], "red"),
        "also near": Edit(questions[2], "four"),
        "far": Edit(questions[1], "deep well"),
    }


def test_candidates_are_what_the_model_was_answered_with(
    editor: LiveEdit, questions: list[Question], crowd: dict[str, Edit]
) -> None:
    sentinel, ranked = candidates(editor, questions[0], crowd)
    backbone = editor.backbone
    backbone.generate(backbone.encode(questions[:1], padding="left"), 2)
    fired = editor.fired()
    assert fired is not None and len(fired[0]) == 2
    by_id = {one.edit_id: one for one in ranked}
    for one in fired[0]:
        assert by_id[one.edit_id].passed
        assert by_id[one.edit_id].weight == pytest.approx(one.weight, rel=1e-5)
        assert by_id[one.edit_id].margin == pytest.approx(one.margin, rel=1e-4)
    assert not by_id["far"].passed and by_id["far"].weight == 0 and by_id["far"].margin < 0
    assert [one.margin for one in ranked] == sorted((one.margin for one in ranked), reverse=True)
    query = features_of(editor, questions[0])
    threshold = editor.modules.visual_score(query.visual[0], query.sentinel[0]).item()
    assert sentinel == pytest.approx(threshold, rel=1e-4)
    relative = reference.softmax([one.score for one in ranked])
    for one, share in zip(ranked, relative, strict=True):
        assert one.weight_of_all == pytest.approx(reference.sigmoid(one.score) * share, rel=1e-4, abs=1e-12)


def test_an_attribution_has_every_active_edit(
    editor: LiveEdit, questions: list[Question], crowd: dict[str, Edit]
) -> None:
    found = attribution(editor, questions[0], crowd, shown=2, max_new_tokens=3)
    backbone = editor.backbone
    asked = backbone.encode(questions[:1], padding="left")
    assert found.answer == backbone.generate(asked, 3)[0]
    with editor.paused():
        assert found.unedited_answer == backbone.generate(asked, 3)[0]
    assert len(found.candidates) == 3
    assert [one.attention is not None for one in found.candidates] == [True, True, False]
    for one in found.candidates[:2]:
        assert one.attention == editor.attention_map(crowd[one.edit_id].question, "edit")
        assert (one.prompt, one.answer) == (crowd[one.edit_id].question.prompt, crowd[one.edit_id].answer)
    assert len(found.change.values) == len(found.attention.values) == 4
    told = found.to_dict()
    assert told["candidates"][2]["edit_id"] == "far" and told["attention"]["values"] == found.attention.values


def test_edits_that_are_left_out_weigh_nothing(
    random_backbone: Backbone, small_config: ConfigMaker, questions: list[Question]
) -> None:
    with LiveEdit.untrained(random_backbone, small_config(top_experts=1)) as editor:
        experts = [forced_expert(editor, questions[0], seed=seed) for seed in range(3)]
        for place, expert in enumerate(experts):
            editor.add(str(place), expert)
        _, ranked = candidates(editor, questions[0], {str(place): Edit(questions[0], "red") for place in range(3)})
    assert all(one.passed for one in ranked)
    assert sorted(one.weight > 0 for one in ranked) == [False, False, True]


def test_without_edits_there_are_no_candidates(editor: LiveEdit, questions: list[Question]) -> None:
    found = attribution(editor, questions[0], {}, max_new_tokens=2)
    assert found.candidates == ()
    assert found.answer == found.unedited_answer


def test_questions_without_image_and_other_edits_are_refused(
    editor: LiveEdit, questions: list[Question], crowd: dict[str, Edit]
) -> None:
    with pytest.raises(InvalidInputError, match="without an image"):
        attribution(editor, Question("What is the capital of Coraland?"), crowd)
    with pytest.raises(InvalidInputError, match="Give the active edits"):
        attribution(editor, questions[0], {"near": crowd["near"]})


# -- what the shipped editor looks at ----------------------------------------------------------------


def scenes(count: int) -> list[tuple[Scene, Image.Image]]:
    rng = np.random.default_rng(5)
    creatures = catalog.held_out_creatures()
    found = [draw_scene(f"scene {index}", creatures[index], rng) for index in range(count)]
    return [(scene, draw(scene, draw_pose(rng))) for scene in found]


def test_the_map_moves_to_the_hat_when_the_hat_is_asked(tiny_llava: Backbone) -> None:
    """The hat lies in one cell of the first row; a creature's home has nothing to do with it."""
    rng = np.random.default_rng(1)
    with LiveEdit.load(tiny_llava) as editor:
        for scene, image in scenes(3):
            hat = (0, 1 if scene.side == "left" else 2)
            found = {}
            for topic in topics(scene):
                if topic.key in ("hat_color", "home"):
                    question = Question(ask(topic, "train", rng), image)
                    found[topic.key] = editor.attention_map(question), change_map(editor, question)
            attention, change = (values_of(it) for it in found["hat_color"])
            assert attention[hat] > 0.5 and change[hat] == change.max()
            attention, change = (values_of(it) for it in found["home"])
            assert attention[hat] < 0.1 and change[hat] < change.max() / 10


def test_an_edit_of_the_world_is_found_by_its_own_question(
    tiny_llava: Backbone, eval_cases: tuple[EditCase, ...]
) -> None:
    edits = {case.id: case.edit for case in eval_cases}
    with LiveEdit.load(tiny_llava) as editor:
        editor.edit(list(edits.items()))
        case = eval_cases[0]
        found = attribution(editor, case.edit.question, edits)
    first = found.candidates[0]
    assert (first.edit_id, first.passed) == (case.id, True) and first.weight > 0.9
    assert found.answer == case.edit.answer != found.unedited_answer
