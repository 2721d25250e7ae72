"""8-bit copies of vectors: estimated products against float64, and the bounds on their errors."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from liveedit.experts import coarse
from liveedit.experts.coarse import CoarseBlock

ROUNDING = 1e-5


def unit_vectors(rows: int, width: int = 96, seed: int = 0) -> Tensor:
    return F.normalize(torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)), dim=-1)


def with_flags(vectors: Tensor, last: float = 0.0) -> Tensor:
    """As features of fitted experts: two components are 0 or 1, much larger than the others, and one is 0 in edits and
    1 in queries."""
    flags = torch.arange(len(vectors))[:, None] % 2 == torch.arange(2)
    return torch.cat([vectors, flags.float(), torch.full((len(vectors), 1), last)], 1)


def steep(rows: int) -> Tensor:
    """Components of very different sizes, one of which is always 0."""
    return unit_vectors(rows, seed=2) * torch.logspace(-6, 3, 96) * (torch.arange(96) != 40)


KINDS = {
    "unit vectors": (unit_vectors(200), unit_vectors(7, seed=1)),
    "flags beside unit vectors": (with_flags(unit_vectors(200)), with_flags(unit_vectors(7, seed=1), 1.0)),
    "steep": (steep(200), steep(7)),
    "zeros": (torch.zeros(20, 5), torch.zeros(3, 5)),
    "two components": (torch.randn(20, 2), torch.randn(3, 2)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_products_are_off_by_less_than_their_bounds(kind: str) -> None:
    vectors, queries = KINDS[kind]
    found, bounds = CoarseBlock(vectors).products(queries, len(vectors))
    exact = queries.double() @ vectors.double().T
    assert found.shape == bounds.shape == exact.shape
    size = queries.norm(dim=1, keepdim=True) * vectors.norm(dim=1)
    assert ((found - exact).abs() <= bounds + ROUNDING * size).all()


@pytest.mark.parametrize("kind", ["unit vectors", "flags beside unit vectors"])
def test_bounds_are_tight_enough_to_decide_most_pairs(kind: str) -> None:
    """The flags alone decide nothing: without them the bounds must be as small as for unit vectors."""
    vectors, queries = KINDS[kind]
    assert CoarseBlock(vectors).products(queries, len(vectors))[1].max() < 0.04


def test_large_components_would_spoil_the_bounds_without_their_own_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coarse, "_WIDE", float("inf"))
    vectors, queries = KINDS["flags beside unit vectors"]
    assert CoarseBlock(vectors).products(queries, len(vectors))[1].max() > 0.08


def test_a_row_that_is_written_again_is_the_new_one() -> None:
    """Also if it is larger than the scales of the block allow: its bound says so."""
    vectors, queries = KINDS["unit vectors"]
    block = CoarseBlock(vectors)
    before = block.products(queries, len(vectors))
    vectors = vectors.clone()
    vectors[5] = 3 * queries[0]
    block.write(slice(5, 6), vectors[5:6])
    found, bounds = block.products(queries, len(vectors))
    exact = queries.double() @ vectors.double().T
    assert ((found - exact).abs() <= bounds + ROUNDING * 3).all()
    assert bounds[0, 5] > 10 * bounds[0, 6]
    others = torch.arange(len(vectors)) != 5
    assert torch.equal(found[:, others], before[0][:, others]) and torch.equal(bounds[:, others], before[1][:, others])


def test_a_row_that_is_written_again_may_have_what_no_other_has() -> None:
    vectors, queries = KINDS["flags beside unit vectors"]
    block = CoarseBlock(vectors)
    vectors = vectors.clone()
    vectors[5, -1] = 1.0
    block.write(slice(5, 6), vectors[5:6])
    found, bounds = block.products(queries, len(vectors))
    assert ((found - queries.double() @ vectors.double().T).abs() <= bounds + ROUNDING * 3).all()


def test_only_the_first_rows_are_compared() -> None:
    vectors, queries = KINDS["unit vectors"]
    whole, some = CoarseBlock(vectors).products(queries, 200), CoarseBlock(vectors).products(queries, 3)
    assert all(torch.equal(part, all_of_it[:, :3]) for part, all_of_it in zip(some, whole, strict=True))


@pytest.mark.parametrize("rows", [1, 17])
def test_the_largest_numbers_do_not_overflow(rows: int) -> None:
    """All levels at their ends: 4,096 products of 127 and 63 are added up."""
    vectors, queries = torch.full((rows, 4096), -1.0), torch.full((2, 4096), 1.0)
    queries[1] = -1.0
    found, _ = CoarseBlock(vectors).products(queries, rows)
    assert torch.allclose(found, torch.tensor([[-4096.0], [4096.0]]).expand(2, rows))
