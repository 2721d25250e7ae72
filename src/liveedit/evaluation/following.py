"""Cases that belong together: they are chosen together, edited in order, and the last edit of one fact is right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ..samples import EditCase

_SEQUENCE_STREAM = 78
"""The order in a group has random numbers of its own."""


def edit_groups(cases: Sequence[EditCase], edits: int, fewest: int, seed: int) -> list[list[EditCase]]:
    """Groups of `edits` cases, the last one possibly smaller: as many as `fewest` cases need, and one at least.

    cases: in the order in which they are chosen. A case that follows another one is chosen together with it, and comes
    after it in a random place of the group. If a group has too little room for all that follow a case, the last ones
    of these are left out. Where no case follows another one, the groups are the cases in their order.
    """
    count = min(len(cases), max(edits, fewest))
    if all(case.follows is None for case in cases):
        return [list(cases[start : min(start + edits, count)]) for start in range(0, count, edits)]
    groups: list[list[list[EditCase]]] = []
    chosen = room = 0
    for chain in _chains(cases):
        if chosen == count:
            break
        if not room:
            room = min(edits, count - chosen)
            groups.append([])
        part = chain[:room]
        groups[-1].append(part)
        room -= len(part)
        chosen += len(part)
    return [_mixed(group, [seed, _SEQUENCE_STREAM, number]) for number, group in enumerate(groups)]


def _chains(cases: Sequence[EditCase]) -> list[list[EditCase]]:
    """Each case that follows none of the others, in their order, with all that follow it directly or indirectly."""
    by_id = {case.id: case for case in cases}
    followers: dict[str, list[EditCase]] = {}
    heads = []
    for case in cases:
        if case.follows is None or case.follows not in by_id:
            heads.append(case)
        else:
            followers.setdefault(case.follows, []).append(case)
    chains = []
    for head in heads:
        chain = [head]
        for case in chain:  # It grows meanwhile.
            chain += followers.get(case.id, ())
        chains.append(chain)
    return chains


def _mixed(chains: Sequence[Sequence[EditCase]], seed: Sequence[int]) -> list[EditCase]:
    """The cases of all chains in random order, those of each chain in its own order."""
    labels = np.repeat(np.arange(len(chains)), [len(chain) for chain in chains])
    remaining = [iter(chain) for chain in chains]
    return [next(remaining[label]) for label in np.random.default_rng(list(seed)).permutation(labels)]


def overruled(cases: Sequence[EditCase]) -> Mapping[str, EditCase]:
    """Of the cases whose fact a later one edits once more, by their ids: the last one that does.

    cases: in the order of their edits. Only a case that follows the other one overrules it: files without `follows` may
    have rows of one scope that do not mean to contradict each other.
    """
    places = {case.id: place for place, case in enumerate(cases)}
    found: dict[str, EditCase] = {}
    for place in range(len(cases) - 1, -1, -1):
        case = cases[place]
        earlier = None if case.follows is None else places.get(case.follows)
        if earlier is not None and earlier < place and cases[earlier].edit.scope == case.edit.scope:
            found.setdefault(cases[earlier].id, found.get(case.id, case))
    return found
