"""What is kept of prompts: the logits and gradients are those of all tokens together, in every family."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from liveedit.backbones import Backbone, TokenBatch
from liveedit.backbones.kept_prompt import KeptPrompt
from liveedit.editors.shared.routing import changed_tokens
from liveedit.samples import Question
from liveedit.testing import tiny_backbone, tiny_families


class Form:
    """Changes the last token of the prompt, and the answer."""

    rank, expert_input, expert_scale, residual_tokens = 1, "normed", "none", "answer"


def asked(backbone: Backbone, image: Image.Image | None) -> tuple[TokenBatch, int, Tensor, Tensor]:
    """Questions of different lengths with one answer, a layer, their hidden states there, and what is changed."""
    prompts = ("What is this called?", "Look at it once more. What is this thing called by the people there?")
    shown = image if backbone.reads_images else None
    inputs = backbone.encode([Question(prompt, shown) for prompt in prompts], ["a red one"] * 2)
    layer = max(backbone.first_edit_layer, len(backbone.layers) // 2 - 1)
    return inputs, layer, backbone.hidden_states(inputs, layer), changed_tokens(inputs, Form())  # type: ignore[arg-type]


@pytest.fixture
def text_backbone() -> Backbone:
    return tiny_backbone("llama")


def gradient_of(logits: Tensor, change: Tensor) -> Tensor:
    (found,) = torch.autograd.grad(logits.square().mean(), change)
    return found


@pytest.mark.parametrize("family", tiny_families())
def test_logits_and_gradients_are_those_of_all_tokens(family: str, picture: Callable[[int], Image.Image]) -> None:
    backbone = tiny_backbone(family)
    inputs, layer, states, changed = asked(backbone, picture(1))
    states = states.detach().float()
    kept = KeptPrompt.of(backbone, inputs, layer, states, changed)
    assert kept is not None
    found = []
    for logits_of in (kept.logits, lambda edited, wanted: backbone.logits_from(edited, inputs, layer, wanted)):
        change = torch.linspace(-1, 1, states.shape[-1]).requires_grad_()
        logits = logits_of(states + change * changed[..., None], inputs.predicting)
        found.append((logits.detach(), gradient_of(logits, change)))
    (few, from_few), (every, from_every) = found
    assert few.shape == every.shape
    assert torch.allclose(few, every, atol=1e-4), (few - every).abs().max()
    assert torch.allclose(from_few, from_every, atol=1e-4 * float(from_every.abs().max()) + 1e-6)
    unedited = backbone.logits_from(states, inputs, layer, inputs.predicting)
    assert not torch.allclose(few, unedited, atol=1e-3), "the change counts"


def test_it_can_be_asked_again(text_backbone: Backbone) -> None:
    """Nothing of one pass is left for the next."""
    inputs, layer, states, changed = asked(text_backbone, None)
    kept = KeptPrompt.of(text_backbone, inputs, layer, states, changed)
    assert kept is not None
    edited = states + 0.2 * changed[..., None]
    first, _, again = (kept.logits(one, inputs.predicting) for one in (edited, states, edited))
    assert torch.equal(first, again)


@pytest.mark.parametrize("stateful", [True, False])
def test_nothing_is_kept_where_nothing_can_be(
    text_backbone: Backbone, stateful: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs, layer, states, changed = asked(text_backbone, None)
    given: Any = (text_backbone, inputs, layer, states)
    if stateful:
        monkeypatch.setattr(text_backbone.model, "_is_stateful", True, raising=False)
    else:
        changed = torch.ones_like(changed)
    assert KeptPrompt.of(*given, changed) is None


def test_layers_that_keep_something_else_are_run_whole(
    text_backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs, layer, states, changed = asked(text_backbone, None)
    attention = text_backbone.layers[-1].self_attn
    plain = attention.forward

    def without_keys(*arguments: Any, **named: Any) -> Any:
        return plain(*arguments, **{**named, "past_key_values": None})

    monkeypatch.setattr(attention, "forward", without_keys)
    assert KeptPrompt.of(text_backbone, inputs, layer, states, changed) is None
