"""Harder kinds of cases that a world can have, and how many of each."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, fields
from typing import Literal, Self, cast, get_args

import numpy as np

from ...errors import InvalidInputError

Kind = Literal["plain", "captions", "long_names", "conflicts", "combined", "things"]
HARDER_KINDS: tuple[Kind, ...] = get_args(Kind)[1:]

_MOST = {"conflicts": 0.5}
"""Kinds that not all cases can be of."""

_PLAN_STREAM = 13
"""The order of the kinds has random numbers of its own."""


@dataclass(frozen=True, slots=True)
class HarderShares:
    """The shares of a world's cases that are harder, each from 0 to 1; the rest are the usual cases.

    captions: the answer is a caption of the image with one changed fact. long_names: the answer is a name of four and
    more syllables. conflicts: the edit changes the fact of an earlier case once more. combined: two cases change two
    facts of one image. things: the question is about one of two to four things in the image.

    Raises `InvalidInputError` for shares that do not fit together.
    """

    captions: float = 0.0
    long_names: float = 0.0
    conflicts: float = 0.0
    combined: float = 0.0
    things: float = 0.0

    def __post_init__(self) -> None:
        shares = self.to_dict()
        if not all(0 <= share <= 1 for share in shares.values()) or sum(shares.values()) > 1 + 1e-9:
            raise InvalidInputError(
                f"The shares of harder cases are {self or 'none'}. Give numbers from 0 to 1 that add up to 1 at most."
            )
        if 2 * self.conflicts + self.combined > 1 + 1e-9:
            raise InvalidInputError(
                f"conflicts = {self.conflicts:g} was given. Each such case needs an earlier case that is neither one "
                f"nor a combined one: give {(1 - self.combined) / 2:g} at most."
            )

    def to_dict(self) -> dict[Kind, float]:
        """The shares by kind."""
        return {cast(Kind, field.name): getattr(self, field.name) for field in fields(self)}

    def __bool__(self) -> bool:
        return any(self.to_dict().values())

    def __str__(self) -> str:
        """The form that `parse` reads: captions=0.5,conflicts=0.2."""
        return ",".join(f"{_written(kind)}={share:g}" for kind, share in self.to_dict().items() if share)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read KIND or KIND=SHARE, several with commas. Without a share, as many cases as possible are of a kind."""
        shares: dict[str, float] = {}
        for part in text.split(","):
            name, equals, share = part.partition("=")
            kind = name.strip().replace("-", "_")
            try:
                shares[kind] = float(share) if equals else _MOST.get(kind, 1.0)
            except ValueError:
                kind = ""
            if kind not in HARDER_KINDS:
                raise InvalidInputError(
                    f"{part!r} is no kind of harder cases. Give {', '.join(map(_written, HARDER_KINDS))}, each with "
                    "=SHARE or alone, as in captions=0.5,conflicts=0.2."
                )
        return cls(**shares)


def _written(kind: Kind) -> str:
    return kind.replace("_", "-")


def plan(shares: HarderShares, count: int, seed: list[int]) -> list[Kind]:
    """The kind of each of `count` cases, in random order. Combined cases come in pairs, one right after the other.

    Of the cases before a conflict, enough are neither conflicts nor combined for it and for all earlier conflicts.
    """
    counts = _counts(shares, count)
    pairs = counts.pop("combined") // 2
    units: list[Kind] = list(counts.elements())
    units.extend("combined" for _ in range(pairs))
    order = np.random.default_rng([*seed, _PLAN_STREAM]).permutation(len(units))
    waiting = [units[place] for place in order]
    found: list[Kind] = []
    free = 0
    while waiting:
        kind = waiting.pop(next(place for place, kind in enumerate(waiting) if kind != "conflicts" or free))
        free += {"conflicts": -1, "combined": 0}.get(kind, 1)
        found += [kind] * (2 if kind == "combined" else 1)
    return found


def _counts(shares: HarderShares, count: int) -> Counter[Kind]:
    counts: Counter[Kind] = Counter({kind: round(share * count) for kind, share in shares.to_dict().items()})
    counts["combined"] -= counts["combined"] % 2
    counts["conflicts"] = min(counts["conflicts"], (count - counts["combined"]) // 2)
    rounded_up: tuple[Kind, ...] = ("captions", "long_names", "things")
    for kind in rounded_up:  # Rounding can make a few too many.
        counts[kind] -= min(counts[kind], max(0, counts.total() - count))
    counts["plain"] = count - counts.total()
    return counts
