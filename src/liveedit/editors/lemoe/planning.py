"""Which edits share a batch: K-means on edit embeddings, so that edits of a batch are similar and batches differ."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from ...samples import Edit

Embedder = Callable[[Sequence[Edit]], Tensor]
"""(edits, any width) embeddings that edits are clustered by."""

_ROUNDS = 25


def plan_batches(
    embeddings: Tensor, size: int, order: Literal["clustered", "given", "shuffled"], seed: int
) -> list[list[int]]:
    """Numbers of edits, batch by batch, each batch of `size` but the last.

    embeddings: (edits, width); only "clustered" uses more than their number.
    """
    count = len(embeddings)
    generator = torch.Generator().manual_seed(seed)
    if order == "clustered" and count > size:
        return clustered_batches(embeddings.float().cpu(), size, generator)
    places = torch.randperm(count, generator=generator).tolist() if order == "shuffled" else list(range(count))
    return [places[start : start + size] for start in range(0, count, size)]


def clustered_batches(points: Tensor, size: int, generator: torch.Generator) -> list[list[int]]:
    """As many clusters as batches; the edit nearest to a centre is placed first, until the cluster is full.

    points: (edits, width). The batch with the fewest edits comes last; the others in the order of their first edit.
    """
    count = len(points)
    clusters = -(-count // size)
    distances = torch.cdist(points, k_means(points, clusters, generator))
    batches: list[list[int]] = [[] for _ in range(clusters)]
    # All batches but one are full: the free places of the one must not be spread over several.
    spare = clusters * size - count
    home: set[int] = set()
    for pair in distances.flatten().argsort(stable=True).tolist():
        edit, cluster = divmod(pair, clusters)
        if edit in home or len(batches[cluster]) == size:
            continue
        batches[cluster].append(edit)
        home.add(edit)
        if len(home) == count:
            break
    batches = [sorted(batch) for batch in _filled(batches, size, distances) if batch] if spare else batches
    ordered = [sorted(batch) for batch in batches]
    return sorted(ordered, key=lambda batch: (len(batch) < size, batch[0]))


def _filled(batches: list[list[int]], size: int, distances: Tensor) -> list[list[int]]:
    """Empties the smallest batch into the others' free places, until all but one are full."""
    batches = [list(batch) for batch in batches]
    while True:
        open_batches = [number for number, batch in enumerate(batches) if 0 < len(batch) < size]
        if len(open_batches) < 2:
            return batches
        smallest = min(open_batches, key=lambda number: (len(batches[number]), number))
        others = [number for number in open_batches if number != smallest]
        pairs = [(float(distances[edit, other]), edit, other) for edit in batches[smallest] for other in others]
        _, edit, other = min(pairs)
        batches[smallest].remove(edit)
        batches[other].append(edit)


def k_means(points: Tensor, clusters: int, generator: torch.Generator) -> Tensor:
    """Centres, (clusters, width), of Lloyd's algorithm from k-means++ seeds (Arthur and Vassilvitskii 2007).

    A cluster without any nearest point keeps its centre.
    """
    centres = _seeds(points, clusters, generator)
    nearest = torch.full((len(points),), -1)
    for _ in range(_ROUNDS):
        found = torch.cdist(points, centres).argmin(1)
        if torch.equal(found, nearest):
            break
        nearest = found
        sums = torch.zeros_like(centres).index_add_(0, nearest, points)
        counts = torch.bincount(nearest, minlength=clusters)[:, None]
        centres = torch.where(counts > 0, sums / counts.clamp(min=1), centres)
    return centres


def _seeds(points: Tensor, clusters: int, generator: torch.Generator) -> Tensor:
    """k-means++: each next seed is drawn by its squared distance to the nearest seed so far."""
    first = int(torch.randint(len(points), (1,), generator=generator))
    chosen = [first]
    squared = (points - points[first]).square().sum(1)
    while len(chosen) < clusters:
        weights = squared if bool(squared.sum() > 0) else torch.ones_like(squared)
        chosen.append(int(torch.multinomial(weights, 1, generator=generator)))
        squared = torch.minimum(squared, (points - points[chosen[-1]]).square().sum(1))
    return points[chosen].clone()
