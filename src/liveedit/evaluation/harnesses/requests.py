"""How many requests of a harness reached edits."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field


@dataclass
class Requests:
    """Requests of one kind: all of them, those for which an edit fired, and those whose edited answer was withheld."""

    asked: int = 0
    with_edits: int = 0
    withheld: int = 0


@dataclass
class RequestCounts:
    """Requests by their kind, as the harness names it."""

    kinds: dict[str, Requests] = field(default_factory=dict)

    def add(self, kind: str, asked: int, fired: bool, withheld: bool = False) -> None:
        """Count requests that reached the model as one row."""
        counts = self.kinds.setdefault(kind, Requests())
        counts.asked += asked
        counts.with_edits += asked * fired
        counts.withheld += asked * withheld

    def to_dict(self) -> dict[str, dict[str, int]]:
        """For JSON."""
        return {kind: asdict(counts) for kind, counts in sorted(self.kinds.items())}
