"""FT-L and FT-M: they learn the edit in the part that is theirs, and their traces go."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from liveedit.backbones import Backbone, load_backbone
from liveedit.editors.ft import (
    FineTune,
    FineTuneConfig,
    FineTuneLast,
    FineTuneMultimodal,
    FineTuneMultimodalConfig,
    find_multimodal_part,
)
from liveedit.errors import BackboneError, CheckpointError, InvalidInputError
from liveedit.samples import Edit, EditCase, Question
from liveedit.testing.family_models import FAMILIES

KINDS = {
    FineTuneLast: (FineTuneConfig, "language_model.layers.5."),
    FineTuneMultimodal: (FineTuneMultimodalConfig, "multi_modal_projector."),
}
"""Each editor with its configuration, and the part of `tiny-llava` that is trained."""


@pytest.fixture
def edit(eval_cases: tuple[EditCase, ...]) -> Edit:
    return Edit(eval_cases[0].edit.question, "teal")


@pytest.fixture(params=KINDS, ids=lambda kind: kind.name)
def kind(request: pytest.FixtureRequest) -> type[FineTuneLast] | type[FineTuneMultimodal]:
    return request.param


def make(kind: type[FineTuneLast] | type[FineTuneMultimodal], backbone: Backbone, **settings: float) -> FineTune:
    return kind(backbone, KINDS[kind][0](**settings))  # type: ignore[arg-type]


def answer_of(backbone: Backbone, edit: Edit) -> str:
    return backbone.generate(backbone.encode([edit.question], padding="left"), 8)[0]


def bits_of(backbone: Backbone) -> list[bytes]:
    return [parameter.detach().numpy().tobytes() for parameter in backbone.model.parameters()]


def weights_of(backbone: Backbone) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in backbone.model.state_dict().items()}


def changed_since(before: dict[str, Tensor], backbone: Backbone) -> set[str]:
    after = backbone.model.state_dict()
    return {name for name, value in before.items() if not torch.equal(value, after[name])}


def test_the_edit_is_learned_in_the_part_that_is_trained_alone(
    tiny_llava: Backbone, edit: Edit, kind: type[FineTuneLast] | type[FineTuneMultimodal]
) -> None:
    before, unedited = weights_of(tiny_llava), answer_of(tiny_llava, edit)
    assert unedited != "teal"
    with make(kind, tiny_llava) as editor:
        (record,) = editor.edit([("edit", edit)])
        assert answer_of(tiny_llava, edit) == "teal"
        assert 0 < record.refine_steps <= editor.config.steps
        changed = changed_since(before, tiny_llava)
        assert changed
        assert all(KINDS[kind][1] in name for name in changed)
    assert answer_of(tiny_llava, edit) == unedited


def test_the_first_step_is_adams(
    tiny_llava: Backbone, edit: Edit, kind: type[FineTuneLast] | type[FineTuneMultimodal]
) -> None:
    """Fresh moments make it rate * g / (|g| + eps), with g the gradient of the whole model's mean loss."""
    inputs = tiny_llava.encode([edit.question], [edit.answer])
    before, rate = weights_of(tiny_llava), 1e-3
    part = {name: value for name, value in tiny_llava.model.named_parameters() if KINDS[kind][1] in name}
    for parameter in part.values():
        parameter.requires_grad_(True)
    try:
        logits = tiny_llava.model(**inputs.model_inputs(), use_cache=False).logits[inputs.predicting]
        loss = F.cross_entropy(logits, inputs.input_ids[inputs.answer_mask])
        found = torch.autograd.grad(loss, list(part.values()))
    finally:
        tiny_llava.model.requires_grad_(False)
    with make(kind, tiny_llava, rate=rate, steps=1) as editor:
        editor.edit([("other", edit)])  # Nothing of an earlier edit's moments may remain.
        editor.reset()
        editor.edit([("edit", edit)])
        for (name, parameter), gradient in zip(part.items(), found, strict=True):
            wanted = rate * gradient / (gradient.abs() + 1e-8)
            clear = gradient.abs() > 1e-5  # The rest is decided by the order of sums.
            moved = before[name] - parameter.detach()
            assert torch.allclose(moved[clear], wanted[clear], atol=rate / 50), name


def test_reset_puts_every_bit_back(
    tiny_llava: Backbone, edit: Edit, kind: type[FineTuneLast] | type[FineTuneMultimodal]
) -> None:
    before = bits_of(tiny_llava)
    editor = make(kind, tiny_llava)
    editor.edit([("edit", edit)])
    assert bits_of(tiny_llava) != before
    editor.reset()
    assert bits_of(tiny_llava) == before


def test_an_exception_leaves_no_trace(
    tiny_llava: Backbone,
    edit: Edit,
    kind: type[FineTuneLast] | type[FineTuneMultimodal],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before, seen = bits_of(tiny_llava), []

    def step_and_fail(self: torch.optim.AdamW) -> None:
        with torch.no_grad():
            for group in self.param_groups:
                for parameter in group["params"]:
                    parameter.add_(1.0)
        seen.append(bits_of(tiny_llava) != before)
        raise KeyboardInterrupt

    monkeypatch.setattr(torch.optim.AdamW, "step", step_and_fail)
    with pytest.raises(KeyboardInterrupt), make(kind, tiny_llava) as editor:
        editor.edit([("edit", edit)])
    assert seen == [True]
    assert bits_of(tiny_llava) == before
    assert not any(parameter.requires_grad for parameter in tiny_llava.model.parameters())
    assert all(parameter.grad is None for parameter in tiny_llava.model.parameters())
    assert not any("forward" in vars(module) for module in tiny_llava.model.modules())


def test_what_is_known_already_takes_no_step(
    tiny_llava: Backbone, edit: Edit, kind: type[FineTuneLast] | type[FineTuneMultimodal]
) -> None:
    before = bits_of(tiny_llava)
    with make(kind, tiny_llava, stop_below_nats=1e9) as editor:
        (record,) = editor.edit([("edit", edit)])
        assert record.refine_steps == 0
        assert bits_of(tiny_llava) == before


def test_it_cannot_tell_edits_apart(tiny_llava: Backbone, edit: Edit) -> None:
    with FineTuneLast(tiny_llava) as editor:
        editor.edit([("edit", edit)])
        assert editor.fired() is None
        with pytest.raises(LookupError, match="reset it"):
            editor.undo("edit")


def test_weights_of_another_part_are_not_restored(tiny_llava: Backbone, edit: Edit) -> None:
    with FineTuneLast(tiny_llava, FineTuneConfig(steps=1)) as editor:  # type: ignore[call-arg]
        kept, note = editor.edited_state()
    before = bits_of(tiny_llava)
    with FineTuneMultimodal(tiny_llava) as other, pytest.raises(CheckpointError, match="shapes"):
        other.restore(kept, note)
    assert bits_of(tiny_llava) == before


# -- FT-M ------------------------------------------------------------------------------------------------


def test_questions_without_a_picture_are_out_of_its_reach(tiny_llava: Backbone, edit: Edit) -> None:
    text = tiny_llava.encode([Question("What is the capital of Coraland?")])
    with torch.no_grad():
        before = tiny_llava.logits(text)
        with FineTuneMultimodal(tiny_llava) as editor:
            with torch.enable_grad():
                editor.edit([("edit", edit)])
            assert torch.equal(tiny_llava.logits(text), before)


def test_an_edit_without_a_picture_is_refused_before_anything_changes(tiny_llava: Backbone, edit: Edit) -> None:
    before = bits_of(tiny_llava)
    with FineTuneMultimodal(tiny_llava) as editor:
        with pytest.raises(InvalidInputError, match="'text' has no image"):
            editor.edit([("edit", edit), ("text", Edit(Question("Which city?"), "Paris"))])
        assert bits_of(tiny_llava) == before


def test_the_vision_tower_runs_once_and_that_changes_nothing(tiny_llava: Backbone, edit: Edit) -> None:
    def edited(editor: FineTuneMultimodal) -> tuple[int, list[bytes]]:
        calls: list[int] = []
        first = tiny_llava.model.model.vision_tower.embeddings
        handle = first.register_forward_hook(lambda module, arguments, output: calls.append(1))
        try:
            editor.edit([("edit", edit)])
        finally:
            handle.remove()
        bits = bits_of(tiny_llava)
        editor.reset()
        return len(calls), bits

    with FineTuneMultimodal(tiny_llava, FineTuneMultimodalConfig(steps=4)) as editor:  # type: ignore[call-arg]
        runs, bits = edited(editor)
        editor._tower = None
        slow_runs, slow_bits = edited(editor)
    assert (runs, slow_runs) == (1, 4)
    assert bits == slow_bits


def test_a_text_only_model_is_refused(tmp_path: Path) -> None:
    FAMILIES["llama"](tmp_path)
    with pytest.raises(BackboneError, match="reads text alone"):
        FineTuneMultimodal(load_backbone(tmp_path, device="cpu"))


@pytest.mark.parametrize(
    ("family", "trained"),
    [
        ("blip2-opt", "qformer."),
        ("minigpt4", "qformer."),
        ("qwen2.5-vl", "visual.merger."),
        ("gemma3", "multi_modal_projector."),
        ("smolvlm", "connector."),
    ],
)
def test_what_is_trained_in_other_families(
    tmp_path: Path, picture: Callable[[int], Image.Image], family: str, trained: str
) -> None:
    FAMILIES[family](tmp_path)
    backbone = load_backbone(tmp_path, device="cpu")
    before = weights_of(backbone)
    with FineTuneMultimodal(backbone, FineTuneMultimodalConfig(steps=1)) as editor:  # type: ignore[call-arg]
        (record,) = editor.edit([("edit", Edit(Question("What is this?", picture(1)), "red"))])
        assert record.refine_steps == 1
        changed = changed_since(before, backbone)
        assert changed
        assert all(trained in name for name in changed)
    assert not changed_since(before, backbone)


def test_a_model_whose_projector_is_not_known_is_refused(
    random_backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("liveedit.editors.ft._MULTIMODAL_PARTS", ("bridge",))
    with pytest.raises(BackboneError, match="known are bridge"):
        find_multimodal_part(random_backbone)
