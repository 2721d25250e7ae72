"""Experts as bytes: exact to the bit, and refused if they could not be used."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from safetensors.torch import save

from liveedit.errors import InvalidInputError
from liveedit.experts import ExpertRepository, LowRankExpert
from liveedit.experts.expert import expert_from_bytes, expert_to_bytes


def make_expert(seed: int = 0) -> LowRankExpert:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"u": (2, 3), "v": (2, 3), "visual_feature": (4,), "prompt_feature": (4,), "query_feature": (4,)}
    return LowRankExpert(**{name: torch.randn(shape, generator=generator) for name, shape in shapes.items()})


def bits(expert: LowRankExpert) -> dict[str, tuple[tuple[int, ...], bytes]]:
    """Shapes and bytes, which differ for -0.0 and 0.0 where `torch.equal` does not."""
    return {name: (tuple(part.shape), part.numpy().tobytes()) for name, part in expert.tensors.items()}


def test_experts_come_back_to_the_bit() -> None:
    odd = torch.tensor([-0.0, 1e-45, torch.finfo(torch.float32).max, 1 / 3])
    expert = LowRankExpert(odd.reshape(1, 4), odd.reshape(1, 4).flip(1), odd, odd, odd)
    found = expert_from_bytes(expert_to_bytes(expert), LowRankExpert)
    assert bits(found) == bits(expert)
    assert found.digest == expert.digest
    assert expert_to_bytes(found) == expert_to_bytes(expert)


def test_views_and_gradients_become_plain_numbers() -> None:
    wide = torch.randn(3, 2, generator=torch.Generator().manual_seed(0)).requires_grad_()
    # u and v share memory, and neither is contiguous.
    expert = LowRankExpert(wide.T, wide.T, wide[:, 0], wide[:, 1], wide[:, 1])
    found = expert_from_bytes(expert_to_bytes(expert), LowRankExpert)
    assert torch.equal(found.u, wide.detach().T)
    assert torch.equal(found.visual_feature, wide.detach()[:, 0])
    assert not found.u.requires_grad


def test_experts_of_a_repository_become_bytes_and_back() -> None:
    repository = ExpertRepository()
    for seed in range(3):
        repository.add(str(seed), make_expert(seed))
    repository.remove("1")
    for edit_id in repository.ids:
        found = expert_from_bytes(expert_to_bytes(repository.get(edit_id)), LowRankExpert)
        assert bits(found) == bits(make_expert(int(edit_id)))


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (torch.zeros(2, 3, dtype=torch.float64), "u is torch.float64; only float32 can be stored"),
        (torch.full((2, 3), torch.nan), "u holds NaN or infinity"),
        (torch.full((2, 3), torch.inf), "u holds NaN or infinity"),
    ],
)
def test_experts_that_cannot_be_stored(tensor: torch.Tensor, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        expert_to_bytes(dataclasses.replace(make_expert(), u=tensor))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"pickle?", "not safetensors"),
        (save({"u": torch.zeros(2)}), r"the parts are \['u'\], not"),
        (save({name: part.double() for name, part in make_expert().tensors.items()}), "a part is not float32"),
    ],
)
def test_bytes_that_are_no_such_expert(data: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        expert_from_bytes(data, LowRankExpert)
