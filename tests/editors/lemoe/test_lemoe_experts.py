"""Experts: what they compute, where they stand, and that a new one is nothing."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from liveedit.backbones import Backbone, load_backbone
from liveedit.editors.lemoe import LemoeConfig
from liveedit.editors.lemoe.experts import FeedForward, expert_output, mixed_output, new_expert
from liveedit.errors import BackboneError
from liveedit.samples import Question
from liveedit.testing.family_models import FAMILIES

ConfigMaker = Callable[..., LemoeConfig]


@pytest.fixture(scope="module")
def families(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Backbone]:
    """A model with a gated FFN and no pictures, and one with OPT's FFN."""
    found = {}
    for name in ("llama", "blip2-opt"):
        folder = tmp_path_factory.mktemp(name)
        FAMILIES[name](folder)
        found[name] = load_backbone(folder, device="cpu")
    return found


def silu(x: float) -> float:
    return x / (1 + math.exp(-x))


def test_each_form_is_its_equation() -> None:
    x = torch.tensor([1.0, -2.0])
    gated = {
        "gate": torch.tensor([[1.0, 1.0]]),
        "read": torch.tensor([[3.0, 1.0]]),
        "write": torch.tensor([[2.0], [0]]),
    }
    assert expert_output(gated, x, F.silu).tolist() == pytest.approx([2 * silu(-1.0) * 1.0, 0.0])
    plain = {
        "read": torch.tensor([[1.0, 0.0], [0.0, 1.0]]),
        "read_bias": torch.tensor([0.5, 0.5]),
        "write": torch.tensor([[1.0, 1.0], [0.0, 1.0]]),
    }
    assert expert_output(plain, x, F.relu).tolist() == pytest.approx([1.5, 0.0])
    low_rank = {"read": torch.tensor([[1.0, 1.0]]), "write": torch.tensor([[3.0], [1.0]])}
    assert expert_output(low_rank, x, F.relu).tolist() == pytest.approx([-3.0, -1.0])


def test_experts_are_mixed_row_by_row() -> None:
    experts = [{"read": torch.eye(2), "write": factor * torch.eye(2)} for factor in (1.0, 10.0, 100.0)]
    x = torch.tensor([[[1.0, 2.0]], [[3.0, 4.0]], [[5.0, 6.0]]])
    chosen = torch.tensor([[0, 2], [-1, -1], [1, -1]])
    weights = torch.tensor([[0.25, 0.5], [0.0, 0.0], [1.0, 0.0]])
    mixed = mixed_output(experts, chosen, weights, x, F.silu)
    assert mixed.tolist() == [[[50.25, 100.5]], [[0.0, 0.0]], [[50.0, 60.0]]]


@pytest.mark.parametrize("family", ["llama", "blip2-opt"])
@pytest.mark.parametrize("start", ["copy", "random"])
def test_a_new_expert_has_the_layers_form_and_gives_nothing(
    families: dict[str, Backbone], lemoe_config: ConfigMaker, family: str, start: str
) -> None:
    backbone = families[family]
    layer = backbone.layers[1]
    place = FeedForward.of(layer)
    config = lemoe_config(hidden=None, start=start)
    made = new_expert(place, backbone.width, config, torch.Generator().manual_seed(0), torch.device("cpu"))
    parts = dict(layer.named_parameters())
    own = (
        {"gate": "mlp.gate_proj.weight", "read": "mlp.up_proj.weight", "write": "mlp.down_proj.weight"}
        if family == "llama"
        else {"read": "fc1.weight", "read_bias": "fc1.bias", "write": "fc2.weight"}
    )
    assert {name: value.shape for name, value in made.items()} == {
        name: parts[other].shape for name, other in own.items()
    }
    assert all(torch.equal(made[name], parts[own[name]]) is (start == "copy") for name in ("read",))
    x = torch.randn(3, backbone.width)
    assert torch.equal(expert_output(made, x, place.activation), torch.zeros(3, backbone.width))


@pytest.mark.parametrize("family", ["llama", "blip2-opt"])
def test_an_expert_with_the_layers_weights_doubles_its_ffn(families: dict[str, Backbone], family: str) -> None:
    """Found and computed in the model's own form: with the FFN's own weights, the sum is twice the FFN."""
    layer = families[family].layers[1]
    place = FeedForward.of(layer)
    parts = dict(layer.named_parameters())
    if family == "llama":
        expert = {"gate": parts["mlp.gate_proj.weight"], "read": parts["mlp.up_proj.weight"]}
        expert |= {"write": parts["mlp.down_proj.weight"]}
        bias: Tensor | float = 0.0
    else:
        expert = {"read": parts["fc1.weight"], "read_bias": parts["fc1.bias"], "write": parts["fc2.weight"]}
        bias = parts["fc2.bias"]
    outputs: list[Tensor] = []

    def keep(module: nn.Module, arguments: object, output: Tensor) -> None:
        outputs.append(output)

    before = place.exit.register_forward_hook(keep)
    with torch.no_grad(), place.beside(lambda x: expert_output(expert, x, place.activation) + bias):
        after = place.exit.register_forward_hook(keep)
        families[family].hidden_states(families[family].encode([Question("What color is the hat?")]), 1)
    before.remove()
    after.remove()
    plain, changed = outputs
    torch.testing.assert_close(changed, 2 * plain)


def test_a_layer_without_a_known_ffn_is_refused() -> None:
    with pytest.raises(BackboneError, match="Linear has no FFN that is known"):
        FeedForward.of(nn.Linear(2, 2))
