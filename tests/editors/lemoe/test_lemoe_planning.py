"""Order planning: batches are full, alike within, and the same for the same seed."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from liveedit.editors.lemoe.planning import clustered_batches, k_means, plan_batches


def groups(sizes: list[int], spread: float = 0.01) -> tuple[Tensor, list[int]]:
    """Points around corners far apart, shuffled, and the corner of each."""
    generator = torch.Generator().manual_seed(3)
    corners = torch.eye(len(sizes)) * 10
    home = torch.cat([torch.full((size,), corner) for corner, size in enumerate(sizes)])
    home = home[torch.randperm(len(home), generator=generator)]
    points = corners[home] + spread * torch.randn(len(home), len(sizes), generator=generator)
    return points, home.tolist()


def test_each_batch_is_one_group_where_groups_fit() -> None:
    points, home = groups([4, 4, 4])
    batches = plan_batches(points, 4, "clustered", seed=0)
    assert sorted(place for batch in batches for place in batch) == list(range(12))
    assert all(len({home[place] for place in batch}) == 1 for batch in batches)


def test_centres_are_the_groups_means() -> None:
    points, home = groups([3, 5])
    centres = k_means(points, 2, torch.Generator().manual_seed(0))
    means = torch.stack([points[[place for place, own in enumerate(home) if own == group]].mean(0) for group in (0, 1)])
    nearest = torch.cdist(means, centres).argmin(1)
    assert sorted(nearest.tolist()) == [0, 1]
    torch.testing.assert_close(centres[nearest], means)


@pytest.mark.parametrize(("count", "size"), [(7, 3), (10, 4), (11, 10), (13, 2), (5, 1)])
def test_all_batches_are_full_but_the_last(count: int, size: int) -> None:
    points = torch.randn(count, 3, generator=torch.Generator().manual_seed(count))
    batches = clustered_batches(points, size, torch.Generator().manual_seed(0))
    lengths = [len(batch) for batch in batches]
    assert lengths[:-1] == [size] * (len(lengths) - 1)
    assert lengths[-1] == count - size * (len(lengths) - 1) > 0
    assert sorted(place for batch in batches for place in batch) == list(range(count))


def test_equal_points_are_planned_too() -> None:
    batches = plan_batches(torch.ones(6, 2), 2, "clustered", seed=0)
    assert sorted(map(len, batches)) == [2, 2, 2]


def test_the_given_order_is_kept_and_a_shuffled_one_is_not() -> None:
    points = torch.zeros(20, 0)
    assert plan_batches(points, 8, "given", 0) == [list(range(8)), list(range(8, 16)), list(range(16, 20))]
    shuffled = [plan_batches(points, 8, "shuffled", seed) for seed in (0, 0, 1)]
    assert shuffled[0] == shuffled[1] != shuffled[2]
    assert sorted(place for batch in shuffled[0] for place in batch) == list(range(20))


def test_the_seed_decides() -> None:
    points = torch.randn(30, 4, generator=torch.Generator().manual_seed(9))
    plans = [plan_batches(points, 5, "clustered", seed) for seed in (0, 0, 1)]
    assert plans[0] == plans[1]
    assert plans[0] != plans[2]
