"""The inputs of a training: the probes of all cases, and which of them a step draws."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ...samples import LOCALITY, EditCase
from ..shared.scope_task import IN_SCOPE, CaseInputs

Names = list[list[str]]
"""Names of probes, a list for each case of a batch."""


@dataclass(frozen=True)
class RoutingProbes:
    """The probes that a routing loss compares.

    edits: one in the scope of each case's edit, which the edit side reads. inside, outside: what the query side reads,
    in that scope and outside of it.
    """

    edits: Names
    inside: Names
    outside: Names

    @property
    def queries(self) -> Names:
        """All that the query side reads."""
        return [[*inside, *outside] for inside, outside in zip(self.inside, self.outside, strict=True)]


class TrainingProbes:
    """The probes of all cases that the losses are about, and random choices of them.

    items: every probe with the answer that is expected. places: for each case the index in `items` of each of its
    probes, by name. labels: subject, relation and image of each item, as numbers; the first two are its scope.
    """

    def __init__(self, cases: Sequence[EditCase], text_locality: bool):
        inputs = CaseInputs.of(cases, lambda number, case: (*IN_SCOPE, *LOCALITY))
        self.items, self.places = inputs.items, inputs.places
        images: dict[str, int] = {}
        shown = [replace(question, subject=None).scope[0] for question, _ in self.items]
        self.labels = [
            (*scope, images.setdefault(image, len(images))) for scope, image in zip(inputs.scopes(), shown, strict=True)
        ]
        self._text_locality = text_locality

    def in_scope(self, case: int) -> list[str]:
        """The probes in the scope of the case's edit, the edit itself first."""
        return [name for name in IN_SCOPE if name in self.places[case]]

    def locality(self, case: int, has_image: bool = False) -> list[str]:
        """The case's locality inputs; with `has_image`, only those that have one."""
        skipped = () if self._text_locality and not has_image else ("text_locality",)
        return [name for name in LOCALITY if name in self.places[case] and name not in skipped]

    def every(self, chosen: Sequence[int]) -> Names:
        """All probes of these cases."""
        return [[*self.in_scope(case), *self.locality(case)] for case in chosen]

    def hard(self, chosen: Sequence[int], rng: np.random.Generator) -> RoutingProbes:
        """Random members of each scope, and the locality inputs that are hardest to route."""
        edits = [[self._random_in_scope(case, rng)] for case in chosen]
        inside = [[self._random_in_scope(case, rng), self._random_in_scope(case, rng)] for case in chosen]
        return RoutingProbes(edits, inside, [self._hard_negatives(case, rng) for case in chosen])

    def samples(self, chosen: Sequence[int], rng: np.random.Generator) -> tuple[Names, Names]:
        """D_g and D_l of section 4.3: one generality and one locality probe of each case, at random.

        Of a case without generality probes, the edit itself; of one without locality inputs, none.
        """
        generality = [self.in_scope(case)[1:] or ["reliability"] for case in chosen]
        locality = [self.locality(case) for case in chosen]
        general, outside = (
            [[names[rng.integers(len(names))]] if names else [] for names in kind] for kind in (generality, locality)
        )
        return general, outside

    def random_sides(self, general: Names, outside: Names, rng: np.random.Generator) -> RoutingProbes:
        """pi_1 and pi_2 of section 4.3.2: on either side of routing each case's edit or its generality probe."""
        on_edit_side, on_query_side = (
            [names if taken else ["reliability"] for names, taken in zip(general, side, strict=True)]
            for side in rng.integers(2, size=(2, len(general)))
        )
        return RoutingProbes(on_edit_side, on_query_side, outside)

    def _hard_negatives(self, case: int, rng: np.random.Generator) -> list[str]:
        """The near duplicate, which is the hardest to route, and one of the easier locality inputs."""
        names = self.locality(case, has_image=True)
        near = [name for name in names if name == "near_duplicate_locality"]
        easier = [name for name in names if name not in near]
        return near + ([easier[rng.integers(len(easier))]] if easier else [])

    def _random_in_scope(self, case: int, rng: np.random.Generator) -> str:
        names = self.in_scope(case)
        return names[rng.integers(len(names))]


def with_edits(general: Names, outside: Names) -> Names:
    """Each case's edit, then its samples."""
    return [["reliability", *inside, *others] for inside, others in zip(general, outside, strict=True)]
