"""FT-L: it learns the edit, and its traces go."""

from __future__ import annotations

import pytest
import torch

from liveedit.backbones import Backbone
from liveedit.editors.ft import FineTuneConfig, FineTuneLast
from liveedit.samples import Edit, EditCase


@pytest.fixture
def edit(eval_cases: tuple[EditCase, ...]) -> Edit:
    return Edit(eval_cases[0].edit.question, "teal")


def answer_of(backbone: Backbone, edit: Edit) -> str:
    return backbone.generate(backbone.encode([edit.question], padding="left"), 8)[0]


def bits_of(backbone: Backbone) -> list[bytes]:
    return [parameter.detach().numpy().tobytes() for parameter in backbone.model.parameters()]


def test_it_learns_the_edit_in_the_last_layer_alone(tiny_llava: Backbone, edit: Edit) -> None:
    before = {name: value.clone() for name, value in tiny_llava.model.state_dict().items()}
    unedited = answer_of(tiny_llava, edit)
    assert unedited != "teal"
    with FineTuneLast(tiny_llava) as editor:
        (record,) = editor.edit([("edit", edit)])
        assert answer_of(tiny_llava, edit) == "teal"
        assert 0 < record.refine_steps <= editor.config.steps
        changed = {
            name for name, value in tiny_llava.model.state_dict().items() if not torch.equal(value, before[name])
        }
        assert changed
        assert all("language_model.layers.5." in name for name in changed)
    assert answer_of(tiny_llava, edit) == unedited


def test_reset_puts_every_bit_back(tiny_llava: Backbone, edit: Edit) -> None:
    before = bits_of(tiny_llava)
    editor = FineTuneLast(tiny_llava)
    editor.edit([("edit", edit)])
    assert bits_of(tiny_llava) != before
    editor.reset()
    assert bits_of(tiny_llava) == before


def test_an_exception_leaves_no_trace(tiny_llava: Backbone, edit: Edit, monkeypatch: pytest.MonkeyPatch) -> None:
    before, seen = bits_of(tiny_llava), []

    def step_and_fail(self: torch.optim.AdamW) -> None:
        with torch.no_grad():
            for group in self.param_groups:
                for parameter in group["params"]:
                    parameter.add_(1.0)
        seen.append(bits_of(tiny_llava) != before)
        raise KeyboardInterrupt

    monkeypatch.setattr(torch.optim.AdamW, "step", step_and_fail)
    with pytest.raises(KeyboardInterrupt), FineTuneLast(tiny_llava) as editor:
        editor.edit([("edit", edit)])
    assert seen == [True]
    assert bits_of(tiny_llava) == before
    assert not any(parameter.requires_grad for parameter in tiny_llava.model.parameters())
    assert all(parameter.grad is None for parameter in tiny_llava.model.parameters())


def test_what_is_known_already_takes_no_step(tiny_llava: Backbone, edit: Edit) -> None:
    before = bits_of(tiny_llava)
    with FineTuneLast(tiny_llava, FineTuneConfig(stop_below_nats=1e9)) as editor:  # type: ignore[call-arg]
        (record,) = editor.edit([("edit", edit)])
        assert record.refine_steps == 0
        assert bits_of(tiny_llava) == before


def test_it_cannot_tell_edits_apart(tiny_llava: Backbone, edit: Edit) -> None:
    with FineTuneLast(tiny_llava) as editor:
        editor.edit([("edit", edit)])
        assert editor.fired() is None
        with pytest.raises(LookupError, match="reset it"):
            editor.undo("edit")
