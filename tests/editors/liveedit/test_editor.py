"""LiveEdit as an editor: undo, order, saving and loading."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import torch
from forced_experts import fired_ids, forced_expert
from torch import Tensor

from liveedit.backbones import Backbone
from liveedit.editors.liveedit import LiveEdit, LiveEditConfig
from liveedit.editors.shared.routing import Combining
from liveedit.errors import BackboneError, CheckpointError, InvalidInputError, NotFoundError
from liveedit.experts import LowRankExpert
from liveedit.samples import Edit, Question

ConfigMaker = Callable[..., LiveEditConfig]


def logits_of(editor: LiveEdit, questions: list[Question]) -> Tensor:
    with torch.no_grad():
        return editor.backbone.logits(editor.backbone.encode(questions))


def overlapping(editor: LiveEdit, questions: list[Question]) -> dict[str, LowRankExpert]:
    """Experts that all fire for the first question."""
    return {f"edit-{seed}": forced_expert(editor, questions[0], seed=seed) for seed in range(3)}


def test_undo_leaves_no_trace(editor: LiveEdit, questions: list[Question]) -> None:
    unedited = logits_of(editor, questions)
    experts = overlapping(editor, questions)
    editor.add("edit-0", experts["edit-0"])
    one = logits_of(editor, questions)
    assert not torch.equal(one, unedited)
    editor.add("edit-1", experts["edit-1"])
    editor.add("edit-2", experts["edit-2"])
    assert not torch.equal(logits_of(editor, questions), one)
    assert len(fired_ids(editor)[0]) == 3
    editor.undo("edit-1")
    editor.undo("edit-2")
    assert torch.equal(logits_of(editor, questions), one)
    editor.undo("edit-0")
    assert torch.equal(logits_of(editor, questions), unedited)


def test_undoing_the_first_leaves_the_later_ones_as_if_alone(editor: LiveEdit, questions: list[Question]) -> None:
    experts = overlapping(editor, questions)
    editor.add("edit-1", experts["edit-1"])
    editor.add("edit-2", experts["edit-2"])
    later = logits_of(editor, questions)
    editor.reset()
    for edit_id, expert in experts.items():
        editor.add(edit_id, expert)
    editor.undo("edit-0")
    assert torch.equal(logits_of(editor, questions), later)
    assert len(fired_ids(editor)[0]) == 2


def test_the_order_of_edits_does_not_change_a_bit(editor: LiveEdit, questions: list[Question]) -> None:
    experts = overlapping(editor, questions)
    found = []
    for order in itertools.permutations(experts):
        editor.reset()
        for edit_id in order:
            editor.add(edit_id, experts[edit_id])
        found.append(logits_of(editor, questions))
        assert len(fired_ids(editor)[0]) == 3
    assert all(torch.equal(found[0], other) for other in found[1:])


@pytest.mark.parametrize("combine", ["sum", "nearest"])
def test_an_unrelated_edit_of_another_rank_changes_no_bit(
    editor: LiveEdit, questions: list[Question], combine: Literal["sum", "nearest"]
) -> None:
    editor.combining = Combining(combine=combine)
    for edit_id, expert in overlapping(editor, questions).items():
        editor.add(edit_id, expert)
    before = logits_of(editor, questions[:1])
    unrelated = forced_expert(editor, questions[1], against=questions[:1])
    longer = replace(unrelated, u=unrelated.u.repeat(4, 1)[:7], v=unrelated.v.repeat(4, 1)[:7])
    editor.add("longer", longer)
    assert torch.equal(logits_of(editor, questions[:1]), before)
    logits_of(editor, questions)
    assert "longer" in fired_ids(editor)[1] and "longer" not in fired_ids(editor)[0]
    editor.undo("edit-1")
    editor.add("edit-1", overlapping(editor, questions)["edit-1"])
    editor.number({"edit-1": 1})
    assert torch.equal(logits_of(editor, questions[:1]), before)
    editor.undo("longer")
    assert torch.equal(logits_of(editor, questions[:1]), before)


def test_the_nearest_edit_answers_as_if_alone(editor: LiveEdit, questions: list[Question]) -> None:
    experts = overlapping(editor, questions)
    editor.combining = Combining(combine="nearest")
    editor.add("edit-2", experts["edit-2"])
    alone = logits_of(editor, questions[:1])
    editor.reset()
    for edit_id, expert in experts.items():
        editor.add(edit_id, expert)
    assert torch.equal(logits_of(editor, questions[:1]), alone)
    assert fired_ids(editor) == [["edit-2"]], "the newest of three edits of one question"
    assert editor.estimated_weights(experts["edit-0"], 1.0) == {}


def test_an_edit_below_the_threshold_does_not_fire_and_changes_no_bit(
    editor: LiveEdit, questions: list[Question]
) -> None:
    unedited = logits_of(editor, questions)
    expert = forced_expert(editor, questions[0])
    editor.add("edit", replace(expert, prompt_feature=-0.01 * expert.prompt_feature))
    faint = logits_of(editor, questions)
    assert not torch.equal(faint, unedited) and fired_ids(editor)[0] == ["edit"], "by the paper it has a weight"
    editor.combining = Combining(weight_threshold=0.5)
    assert torch.equal(logits_of(editor, questions), unedited)
    assert editor.fired() == []


def test_scaled_weights_are_as_before_after_the_block(editor: LiveEdit, questions: list[Question]) -> None:
    unedited = logits_of(editor, questions)
    editor.add("edit", forced_expert(editor, questions[0]))
    edited, fired = logits_of(editor, questions), editor.fired()
    assert fired
    with editor.scaled_weights(0.5):
        halved = logits_of(editor, questions)
        assert [one.weight for one in (editor.fired() or [])[0]] == [pytest.approx(fired[0][0].weight / 2)]
        with editor.scaled_weights(0.0):
            assert torch.equal(logits_of(editor, questions), unedited)
        assert torch.equal(logits_of(editor, questions), halved)
    assert not torch.equal(halved, edited) and not torch.equal(halved, unedited)
    assert torch.equal(logits_of(editor, questions), edited) and editor.fired() == fired
    with pytest.raises(ValueError, match="on purpose"), editor.scaled_weights(0.3):
        raise ValueError("on purpose")
    assert torch.equal(logits_of(editor, questions), edited) and editor.fired() == fired


def test_moved_edits_keep_their_order(editor: LiveEdit, questions: list[Question]) -> None:
    """Numbers are kept, so that an edit which comes back later is as new among them as it was made."""
    experts = overlapping(editor, questions)
    for edit_id in ("edit-1", "edit-2"):
        editor.add(edit_id, experts[edit_id])
    editor.number({"edit-1": 11, "edit-2": 12})
    editor.keep_experts_on("host")
    editor.add("edit-0", experts["edit-0"])
    assert editor.ids_by_age == ["edit-1", "edit-2", "edit-0"]
    editor.number({"edit-0": 10})
    assert editor.ids_by_age == ["edit-0", "edit-1", "edit-2"]


def test_unknown_edits_cannot_be_undone(editor: LiveEdit) -> None:
    with pytest.raises(NotFoundError, match="no edit 'x'"):
        editor.undo("x")


def test_detach_twice_is_detach(editor: LiveEdit, questions: list[Question]) -> None:
    unedited = logits_of(editor, questions)
    editor.add("edit", forced_expert(editor, questions[0]))
    editor.detach()
    editor.detach()
    assert torch.equal(logits_of(editor, questions), unedited)
    assert not editor.fired()


def test_making_experts_does_not_see_the_edits_in_force(editor: LiveEdit, questions: list[Question]) -> None:
    edit = Edit(questions[0], "red")
    (before,) = editor.make_experts([edit])
    editor.add("edit", forced_expert(editor, questions[0]))
    logits_of(editor, questions[:1])
    assert fired_ids(editor) == [["edit"]]
    (after,) = editor.make_experts([edit])
    assert before.digest == after.digest


def test_experts_made_together_are_those_made_alone(editor: LiveEdit, questions: list[Question]) -> None:
    edits = [Edit(question, answer) for question, answer in zip(questions, ("red", "a deep well", "four"), strict=True)]
    together = editor.make_experts(edits)
    for edit, one in zip(edits, together, strict=True):
        (alone,) = editor.make_experts([edit])
        for name, part in alone.tensors.items():
            torch.testing.assert_close(one.tensors[name], part, atol=1e-4, rtol=1e-3)


def test_the_answer_decides_the_expert_but_not_its_features(editor: LiveEdit, questions: list[Question]) -> None:
    (red,) = editor.make_experts([Edit(questions[0], "red")])
    (blue,) = editor.make_experts([Edit(questions[0], "blue")])
    assert not torch.allclose(red.u, blue.u)
    torch.testing.assert_close(red.visual_feature, blue.visual_feature, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(red.prompt_feature, blue.prompt_feature, atol=1e-5, rtol=1e-4)


def test_store_bytes_are_those_of_the_tensors(editor: LiveEdit, questions: list[Question]) -> None:
    (record,) = editor.edit([("edit", Edit(questions[0], "red"))])
    config = editor.config
    numbers = 2 * config.rank * config.width + 3 * config.feature_parts * config.module_width
    assert record.store_bytes == 4 * numbers


def test_saved_and_loaded_is_the_same_editor(editor: LiveEdit, questions: list[Question], tmp_path: Path) -> None:
    edit = Edit(questions[0], "red")
    (expert,) = editor.make_experts([edit])
    editor.save_pretrained(tmp_path)
    with LiveEdit.from_pretrained(tmp_path, editor.backbone) as loaded:
        assert loaded.config == editor.config
        assert loaded.digest() == editor.digest()
        assert loaded.make_experts([edit])[0].digest == expert.digest


def test_saving_in_half_precision_stays_close(editor: LiveEdit, questions: list[Question], tmp_path: Path) -> None:
    (expert,) = editor.make_experts([Edit(questions[0], "red")])
    editor.round_weights()
    editor.save_pretrained(tmp_path)
    assert (tmp_path / "editor.safetensors").stat().st_size < 2.2 * sum(
        parameter.numel() for parameter in editor.modules.parameters()
    )
    with LiveEdit.load(editor.backbone, str(tmp_path)) as loaded:
        (again,) = loaded.make_experts([Edit(questions[0], "red")])
    assert all(parameter.dtype == torch.float32 for parameter in loaded.modules.parameters())
    torch.testing.assert_close(again.u, expert.u, atol=2e-2, rtol=2e-2)


def test_digests_tell_editors_apart(random_backbone: Backbone, small_config: ConfigMaker) -> None:
    digests = set()
    kinds: list[dict[str, object]] = [
        {},
        {"top_experts": 3},
        {"soft_routing": False},
        {"soft_factors": "absolute"},
        {"hard_prompt": False},
    ]
    for config, seed in ((small_config(), 1), *((small_config(**changes), 0) for changes in kinds)):
        with LiveEdit.untrained(random_backbone, config, seed) as editor:
            digests.add(editor.digest())
    assert len(digests) == 6


def test_the_shipped_editor_has_the_digest_that_edits_are_bound_to(tiny_llava: Backbone) -> None:
    """Edits files name the digest of their editor, so that a change of it makes them unreadable."""
    with LiveEdit.load(tiny_llava) as editor:
        assert editor.digest() == "d1267909fcac5cace4536545fa851a81beb4d08c538d020e643864f527d94813"


@pytest.mark.parametrize("changes", [{"hard_prompt": False}, {"soft_routing": False}, {"soft_factors": "relative"}])
def test_ablated_editors_are_saved_and_loaded(
    random_backbone: Backbone,
    small_config: ConfigMaker,
    questions: list[Question],
    tmp_path: Path,
    changes: dict[str, object],
) -> None:
    edit = Edit(questions[0], "red")
    with LiveEdit.untrained(random_backbone, small_config(**changes)) as editor:
        editor.save_pretrained(tmp_path)
        (expert,) = editor.make_experts([edit])
        digest = editor.digest()
    with LiveEdit.from_pretrained(tmp_path, random_backbone) as loaded:
        assert loaded.digest() == digest
        assert loaded.make_experts([edit])[0].digest == expert.digest


def test_kept_edits_answer_as_before_in_a_fresh_editor(editor: LiveEdit, questions: list[Question]) -> None:
    unedited = logits_of(editor, questions)
    for edit_id, expert in overlapping(editor, questions).items():
        editor.add(edit_id, expert)
    editor.undo("edit-0")
    edited, fired = logits_of(editor, questions), editor.fired()
    state = editor.edited_state()
    with LiveEdit(editor.backbone, editor.modules) as fresh:
        editor.reset()
        assert torch.equal(logits_of(fresh, questions), unedited)
        fresh.restore(*state)
        assert torch.equal(logits_of(fresh, questions), edited)
        assert fresh.fired() == fired
        assert sorted(fresh.repository.ids) == ["edit-1", "edit-2"]


def test_kept_edits_answer_the_same_whatever_their_order(editor: LiveEdit, questions: list[Question]) -> None:
    """Their order is kept, as it decides between edits whose questions are equal; elsewhere it changes no bit."""
    experts = overlapping(editor, questions)
    found = []
    for order in (list(experts), list(experts)[::-1]):
        editor.reset()
        for edit_id in order:
            editor.add(edit_id, experts[edit_id])
        tensors, note = editor.edited_state()
        assert note == {"ids": order} == {"ids": editor.ids_by_age}
        editor.reset()
        editor.restore(tensors, note)
        assert editor.ids_by_age == order
        found.append((logits_of(editor, questions), editor.fired()))
    assert torch.equal(found[0][0], found[1][0])
    assert found[0][1] == found[1][1] and len(fired_ids(editor)[0]) == 3


def test_nothing_is_kept_and_restored_of_no_edits(editor: LiveEdit, questions: list[Question]) -> None:
    state = editor.edited_state()
    editor.add("edit", forced_expert(editor, questions[0]))
    editor.restore(*state)
    assert len(editor.repository) == 0


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        ("shape", "A saved edit has the shapes"),
        ("rank", "A saved edit has the shapes"),
        ("missing", "A saved edit has the shapes"),
        ("ids", "A saved edit has the shapes"),
        ("twice", "Saved edits need a list of ids"),
        ("no ids", "Saved edits need a list of ids"),
    ],
)
def test_kept_edits_that_do_not_fit_change_nothing(
    editor: LiveEdit, questions: list[Question], damage: str, told: str
) -> None:
    editor.add("edit", forced_expert(editor, questions[0]))
    before = logits_of(editor, questions)
    tensors, note = editor.edited_state()
    if damage == "shape":
        tensors["0.prompt_feature"] = tensors["0.prompt_feature"][1:]
    elif damage == "rank":
        tensors["0.u"] = tensors["0.u"][:1]
    elif damage == "missing":
        del tensors["0.v"]
    else:
        note = {"ids": {"ids": ["edit", "other"], "twice": ["edit", "edit"]}.get(damage)}
    with pytest.raises(CheckpointError, match=told):
        editor.restore(tensors, note)
    assert torch.equal(logits_of(editor, questions), before)
    assert fired_ids(editor)[0] == ["edit"]


@pytest.mark.parametrize("changes", [{"width": 96}, {"layer": 5}, {"layer": 9}])
def test_an_editor_for_another_backbone_is_refused(
    random_backbone: Backbone, small_config: ConfigMaker, changes: dict[str, int]
) -> None:
    with pytest.raises(BackboneError, match=r"width 192 and 6 layers"):
        LiveEdit.untrained(random_backbone, small_config(**changes))


def test_missing_and_damaged_folders_are_told(editor: LiveEdit, tmp_path: Path) -> None:
    backbone = editor.backbone
    with pytest.raises(NotFoundError, match="Train one"):
        LiveEdit.load(backbone, str(tmp_path))
    editor.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "editor.json").read_text())
    (tmp_path / "editor.json").write_text(json.dumps({**config, "rank": config["rank"] + 1}))
    with pytest.raises(CheckpointError, match="do not fit"):
        LiveEdit.load(backbone, str(tmp_path))
    (tmp_path / "editor.json").write_text("{")
    with pytest.raises(CheckpointError, match="could not be read"):
        LiveEdit.load(backbone, str(tmp_path))
    (tmp_path / "editor.json").write_text(json.dumps(config))
    (tmp_path / "editor.safetensors").write_bytes(b"no tensors")
    with pytest.raises(CheckpointError, match="could not be read"):
        LiveEdit.load(backbone, str(tmp_path))


def test_an_expert_of_another_shape_is_refused(
    editor: LiveEdit, random_expert: Callable[..., LowRankExpert], questions: list[Question]
) -> None:
    editor.add("edit", forced_expert(editor, questions[0]))
    for other in (random_expert(0, width=96), random_expert(0, features=32)):
        with pytest.raises(InvalidInputError, match="another editor"):
            editor.add("other", other)
    logits_of(editor, questions[:1])
    assert fired_ids(editor) == [["edit"]]
