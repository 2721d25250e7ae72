"""Experts in buffers of a fixed size add what `expert_residual` adds. vLLM itself is not needed."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from liveedit.editors.liveedit import LiveEditConfig
from liveedit.editors.shared.routing import Routing, expert_residual
from liveedit.vllm.slots import ExpertSlots

WIDTH = 24


def routing(experts: int, rank: int, seed: int) -> Routing:
    generator = torch.Generator().manual_seed(seed)
    shape = (1, experts, rank, WIDTH)
    u, v = (torch.randn(shape, generator=generator) for _ in range(2))
    return Routing(u, v, torch.rand(1, experts, generator=generator), ((),), (0.0,))


@pytest.fixture(params=["normed", "states"])
def config(request: pytest.FixtureRequest) -> LiveEditConfig:
    return LiveEditConfig.create(width=WIDTH, layer=1, image_tokens=4, rank=2, expert_input=request.param)


def states(tokens: int) -> Tensor:
    return torch.randn(tokens, WIDTH, generator=torch.Generator().manual_seed(99))


def wanted(found: Routing, tokens: Tensor, config: LiveEditConfig) -> Tensor:
    return expert_residual(tokens[None], found.u, found.v, found.weights, config)[0]


def test_each_request_gets_its_own_experts(config: LiveEditConfig) -> None:
    slots = ExpertSlots(config, WIDTH, torch.device("cpu"), slots=2)
    many = [routing(1 + number, 2 + number, number) for number in range(5)]
    taken = [slots.take(one) for one in many]
    assert len(set(taken)) == 5
    prompt = states(7)
    for slot, one in zip(taken, many, strict=True):
        torch.testing.assert_close(slots.residual(prompt, slot), wanted(one, prompt, config))
    single = states(5)
    together = slots.residual_of_each(single, torch.tensor(taken))
    one_by_one = [wanted(one, single[[place]], config)[0] for place, one in enumerate(many)]
    torch.testing.assert_close(together, torch.stack(one_by_one))


def test_a_freed_slot_keeps_nothing_of_its_last_request(config: LiveEditConfig) -> None:
    slots = ExpertSlots(config, WIDTH, torch.device("cpu"), slots=1)
    large, small = routing(3, 4, 1), routing(1, 2, 2)
    slots.release(slots.take(large))
    tokens = states(3)
    torch.testing.assert_close(slots.residual(tokens, slots.take(small)), wanted(small, tokens, config))
