"""Tuned weights: their values, and that the backbone's own come back bit for bit."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from PIL import Image
from torch import nn
from transformers import OPTConfig, OPTForCausalLM

from liveedit.backbones import Backbone
from liveedit.backbones.families.parts import Parts
from liveedit.backbones.families.text_only import TextBackbone
from liveedit.editors.lte import LearningToEdit
from liveedit.editors.lte.tuning import TunedWeights, Tuning, linear_layers, tuned_layers
from liveedit.errors import BackboneError
from liveedit.pretraining.tokenizer import build_tokenizer
from liveedit.samples import Question


def tuning_of(backbone: Backbone, **settings: object) -> Tuning:
    config = LearningToEdit.new_config(backbone, **settings)
    return Tuning(backbone, config)


def stir(tuning: nn.Module, seed: int = 1) -> None:
    """Give a change that was nothing yet random values."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in tuning.parameters():
            parameter.copy_(0.05 * torch.randn(parameter.shape, generator=generator))


def bits(backbone: Backbone) -> dict[str, bytes]:
    return {name: value.numpy().tobytes() for name, value in backbone.model.state_dict().items()}


@pytest.mark.parametrize("settings", [{"tuning": "lora", "rank": 3, "alpha": 6.0}, {"tuning": "all"}])
def test_tuned_weights_are_those_of_a_slow_reference(random_backbone: Backbone, settings: dict[str, object]) -> None:
    tuning = tuning_of(random_backbone, **settings)
    stir(tuning)
    weights = TunedWeights(random_backbone, tuning)
    linears = linear_layers(random_backbone)
    own = {name: linear.weight.double() for name, linear in linears.items()}
    state = {name: value.double() for name, value in tuning.state_dict().items()}
    weights.activate()
    try:
        for name, linear in linears.items():
            part = f"changes.{name.replace('.', '/')}"
            if settings["tuning"] == "all":
                change = state[f"{part}.whole"]
            else:
                change = 2.0 * state[f"{part}.up"] @ state[f"{part}.down"]
            torch.testing.assert_close(linear.weight.double(), own[name] + change, atol=1e-6, rtol=1e-6)
    finally:
        weights.deactivate()
    assert len(linears) == 7 * len(random_backbone.layers)


def test_the_backbones_own_weights_come_back_bit_for_bit_and_as_the_same_objects(random_backbone: Backbone) -> None:
    before, own = bits(random_backbone), {name: id(part) for name, part in random_backbone.model.named_parameters()}
    tuning = tuning_of(random_backbone)
    stir(tuning)
    weights = TunedWeights(random_backbone, tuning)
    weights.activate()
    weights.activate()
    tuned = bits(random_backbone)
    assert weights.active and tuned != before and list(tuned) == list(before)
    with pytest.raises(KeyboardInterrupt), weights.paused():
        assert bits(random_backbone) == before
        raise KeyboardInterrupt
    assert bits(random_backbone) == tuned
    weights.deactivate()
    weights.deactivate()
    assert bits(random_backbone) == before
    assert {name: id(part) for name, part in random_backbone.model.named_parameters()} == own


def test_a_change_begins_as_none(random_backbone: Backbone) -> None:
    for settings in ({"tuning": "lora"}, {"tuning": "all"}):
        weights = TunedWeights(random_backbone, tuning_of(random_backbone, **settings))
        before = bits(random_backbone)
        weights.activate()
        try:
            assert bits(random_backbone) == before
        finally:
            weights.deactivate()


def test_gradients_reach_the_change_alone(random_backbone: Backbone, picture: Callable[[int], Image.Image]) -> None:
    tuning = tuning_of(random_backbone)
    stir(tuning)
    before = bits(random_backbone)
    inputs = random_backbone.encode([Question("What is this?", picture(1))], ["red"])
    with TunedWeights(random_backbone, tuning).training():
        loss = random_backbone.logits(inputs)[inputs.predicting].logsumexp(-1).sum()
    loss.backward()
    assert all(parameter.grad is not None and bool(parameter.grad.any()) for parameter in tuning.parameters())
    assert all(parameter.grad is None for parameter in random_backbone.model.parameters())
    assert bits(random_backbone) == before
    weights = TunedWeights(random_backbone, tuning)
    weights.activate()
    try:
        with torch.no_grad():
            again = random_backbone.logits(inputs)[inputs.predicting].logsumexp(-1).sum()
    finally:
        weights.deactivate()
    assert again.item() == pytest.approx(loss.item(), rel=1e-6)


def test_weights_that_are_not_numbers_of_their_own_cannot_be_tuned(
    random_backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    linear = linear_layers(random_backbone)["0.self_attn.q_proj"]
    with monkeypatch.context() as patch:
        patch.setitem(linear._parameters, "weight", nn.Parameter(torch.empty(2, 2, device="meta")))
        with pytest.raises(BackboneError, match=r"0\.self_attn\.q_proj is quantized or offloaded"):
            linear_layers(random_backbone)


def test_learned_positions_are_tuned_with_all_of_the_decoder_and_word_embeddings_never() -> None:
    torch.manual_seed(5)
    shape = OPTConfig(
        vocab_size=1000,
        hidden_size=32,
        word_embed_proj_dim=32,
        ffn_dim=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        dropout=0.0,
        max_position_embeddings=64,
    )
    backbone = TextBackbone("opt", OPTForCausalLM(shape), Parts(build_tokenizer(), None, None))
    linears = set(linear_layers(backbone))
    assert len(linears) == 6 * 2
    every, low_rank = (
        set(tuned_layers(backbone, LearningToEdit.new_config(backbone, tuning=tuning))) for tuning in ("all", "lora")
    )
    assert every - linears == {"embed_positions"} and low_rank == linears
    tuning = tuning_of(backbone)
    stir(tuning)
    before, weights = bits(backbone), TunedWeights(backbone, tuning)
    weights.activate()
    changed = {name for name, value in bits(backbone).items() if value != before[name]}
    weights.deactivate()
    assert "model.decoder.embed_positions.weight" in changed
    assert not any("embed_tokens" in name or "lm_head" in name for name in changed)
    assert bits(backbone) == before
