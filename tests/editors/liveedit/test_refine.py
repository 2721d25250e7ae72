"""Verify and refine on the built-in backbone, with an untrained generator: every edit needs it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from forced_experts import fired_ids, forced_expert

from liveedit.backbones import Backbone
from liveedit.editors.ft import FineTuneLast
from liveedit.editors.liveedit import LiveEditConfig, LiveEditRefine, RefineConfig
from liveedit.editors.liveedit.modules import LiveEditModules
from liveedit.editors.shared.fitting import Fitting, Passage
from liveedit.editors.shared.routing import AS_PUBLISHED
from liveedit.errors import ConfigError, InvalidInputError
from liveedit.experts import LowRankExpert
from liveedit.samples import Edit, EditCase


@pytest.fixture
def refining(tiny_llava: Backbone, small_config: Callable[..., LiveEditConfig]) -> Iterator[LiveEditRefine]:
    torch.manual_seed(0)
    with LiveEditRefine(tiny_llava, LiveEditModules(small_config())) as editor:
        yield editor


@pytest.fixture
def edit(eval_cases: tuple[EditCase, ...]) -> Edit:
    return Edit(eval_cases[0].edit.question, "teal")


def answer_with(editor: LiveEditRefine, edit: Edit, expert: LowRankExpert) -> str:
    """What the model says with this expert alone, which is made to pass both routers."""
    passing = forced_expert(editor, edit.question)
    editor.add("edit", replace(passing, u=expert.u, v=expert.v))
    try:
        inputs = editor.backbone.encode([edit.question], padding="left")
        (text,) = editor.backbone.generate(inputs, 8)
        assert fired_ids(editor) == [["edit"]]
    finally:
        editor.undo("edit")
    return text


def test_refining_makes_an_edit_take(refining: LiveEditRefine, edit: Edit) -> None:
    (generated,) = refining.make_experts([edit])
    assert answer_with(refining, edit, generated) != edit.answer
    refined, steps = refining.refine(edit, generated)
    assert 0 < steps <= refining.refining.steps
    assert answer_with(refining, edit, refined) == edit.answer


def test_steps_change_u_and_v_alone(tiny_llava: Backbone, refining: LiveEditRefine, edit: Edit) -> None:
    """Where the edit's own query reaches its expert anyway, the features stay as they were generated."""
    anyway = RefineConfig(visual_margin=-1e9, prompt_score=-1e9)  # type: ignore[call-arg]
    with LiveEditRefine(tiny_llava, refining.modules, anyway) as editor:
        (generated,) = editor.make_experts([edit])
        refined, steps = editor.refine(edit, generated)
    assert steps > 0
    assert not torch.equal(refined.u, generated.u)
    assert not torch.equal(refined.v, generated.v)
    assert torch.equal(refined.visual_feature, generated.visual_feature)
    assert torch.equal(refined.prompt_feature, generated.prompt_feature)
    assert not refined.u.requires_grad


def test_the_edits_own_query_reaches_its_expert(refining: LiveEditRefine, edit: Edit) -> None:
    (generated,) = refining.make_experts([edit])
    expert, _ = refining.make_expert(edit)
    assert not torch.equal(expert.visual_feature, generated.visual_feature)
    refining.add("edit", expert)
    refining.backbone.generate(refining.backbone.encode([edit.question], padding="left"), 1)
    fired = refining.fired()
    assert fired is not None
    ((own,),) = fired
    assert own.margin > 0.99  # `visual_margin`
    assert own.weight > 0.98  # sigmoid of `prompt_score`, 4
    assert expert.visual_feature.norm().item() == pytest.approx(1, abs=1e-4)


def test_refining_twice_does_the_same(refining: LiveEditRefine, edit: Edit) -> None:
    first, steps = refining.make_expert(edit)
    second, again = refining.make_expert(edit)
    assert steps == again > 0
    assert first.digest == second.digest


def test_what_is_right_already_is_left_alone(refining: LiveEditRefine, edit: Edit) -> None:
    refined, _ = refining.refine(edit, refining.make_experts([edit])[0])
    untouched, steps = refining.refine(edit, refined)
    assert steps == 0
    assert untouched.digest == refined.digest


def test_no_steps_leave_the_generated_expert(tiny_llava: Backbone, refining: LiveEditRefine, edit: Edit) -> None:
    (generated,) = refining.make_experts([edit])
    with LiveEditRefine(tiny_llava, refining.modules, RefineConfig(steps=0)) as pure:  # type: ignore[call-arg]
        expert, steps = pure.make_expert(edit)
    assert steps == 0
    assert torch.equal(expert.u, generated.u) and torch.equal(expert.v, generated.v)


def test_records_tell_the_steps(refining: LiveEditRefine, edit: Edit) -> None:
    (record,) = refining.edit([("edit", edit)])
    assert record.refine_steps == refining.make_expert(edit)[1] > 0


def test_refining_leaves_no_gradients_on_the_backbone(refining: LiveEditRefine, edit: Edit) -> None:
    refining.make_expert(edit)
    assert all(
        parameter.grad is None and not parameter.requires_grad for parameter in refining.backbone.model.parameters()
    )


def test_the_configuration_holds_both_parts(refining: LiveEditRefine) -> None:
    found = refining.configuration()
    assert found["refine"] == RefineConfig().model_dump()  # type: ignore[call-arg]
    assert found["rank"] == refining.config.rank


class PassCounter:
    """Counts forward passes of the vision tower and of the first decoder layer, and encoded batches."""

    def __init__(self, backbone: Backbone, monkeypatch: pytest.MonkeyPatch):
        self.encoded = self.vision = self.first_layer = 0
        original = backbone.encode

        def encode(*arguments: Any, **options: Any) -> Any:
            self.encoded += 1
            return original(*arguments, **options)

        monkeypatch.setattr(backbone, "encode", encode)
        tower = backbone.model.model.vision_tower  # type: ignore[union-attr]
        self._handles = [
            tower.register_forward_hook(lambda *_: self._count("vision")),  # type: ignore[operator,union-attr]
            backbone.layers[0].register_forward_hook(lambda *_: self._count("first_layer")),
        ]

    def _count(self, name: str) -> None:
        setattr(self, name, getattr(self, name) + 1)

    @property
    def counts(self) -> tuple[int, int, int]:
        return self.encoded, self.vision, self.first_layer

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()


def test_an_edit_that_takes_at_once_reads_its_prompt_once(
    tiny_llava: Backbone, eval_cases: tuple[EditCase, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    with LiveEditRefine.load(tiny_llava) as editor:
        counter = PassCounter(tiny_llava, monkeypatch)
        try:
            expert, steps = editor.make_expert(eval_cases[0].edit)
        finally:
            counter.remove()
        assert steps == 0
        assert counter.counts == (1, 1, 1)
        (generated,) = editor.make_experts([eval_cases[0].edit])
        again, _ = editor.refine(eval_cases[0].edit, generated)
        for name, tensor in expert.tensors.items():  # Generated in batches of other sizes.
            torch.testing.assert_close(tensor, again.tensors[name])


def test_an_edit_that_is_refined_reads_each_wording_once(
    refining: LiveEditRefine, edit: Edit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The prompt alone, then 23 other wordings, five at a time; steps run the later layers alone."""
    counter = PassCounter(refining.backbone, monkeypatch)
    try:
        _, steps = refining.make_expert(edit)
    finally:
        counter.remove()
    assert steps > 6
    assert counter.counts == (6, 6, 6)


def test_settings_change_how_answers_are_kept_whole(
    refining: LiveEditRefine, tmp_path: Path, tiny_llava: Backbone
) -> None:
    refining.save_pretrained(tmp_path)
    refining.detach()
    changed = {"combine": "sum", "weight_threshold": None, "answer_confidence": 0}
    with LiveEditRefine.configured(tiny_llava, changed, str(tmp_path)) as editor:
        assert editor.combining == AS_PUBLISHED
        assert editor.answer_confidence == 0
        assert editor.digest() == refining.digest()
    with pytest.raises(ConfigError, match="combine"):
        LiveEditRefine.configured(tiny_llava, {"combine": "both"}, str(tmp_path))
    with pytest.raises(InvalidInputError, match="no trained parts"):
        FineTuneLast.configured(tiny_llava, {"steps": 3}, str(tmp_path))


@pytest.mark.parametrize("count", [1, 5])
def test_an_edit_is_verified_in_several_wordings(
    tiny_llava: Backbone, eval_cases: tuple[EditCase, ...], monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    """One wording in which the generated expert is not right is enough for gradient steps."""
    verified: list[list[str]] = []
    original = Fitting.is_right

    def right_but_for_the_last(fitting: Fitting, passage: Passage, u: torch.Tensor, v: torch.Tensor) -> bool:
        verified.append(tiny_llava.tokenizer.batch_decode(passage.inputs.input_ids))
        return original(fitting, passage, u, v) and (len(verified) > 1 or count == 1)

    monkeypatch.setattr(Fitting, "is_right", right_but_for_the_last)
    with LiveEditRefine.configured(tiny_llava, {"verified_wordings": count}) as editor:
        _, steps = editor.make_expert(eval_cases[0].edit)
    assert len(verified[0]) == count == len(set(verified[0]))
    assert (steps > 0) is (count > 1)
