"""`Receipt`: what an edit did, as the caller of `EditedModel.edit` gets it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Self

from ..answers import same_answer
from ..store.evidence import Evidence
from ..store.records import StoredEdit


@dataclass(frozen=True)
class Receipt:
    """The result of an edit: its id, the answers before and after, its cost, and its effect on other answers."""

    id: str
    prompt: str
    answer: str
    answer_before: str
    answer_after: str
    milliseconds: float
    """Time to make the edit, without its trial."""
    refine_steps: int
    store_bytes: int
    evidence: Evidence = field(default_factory=Evidence)
    author: str | None = None
    note: str | None = None
    replayed: bool = field(default=False, compare=False)
    """Whether the same request had made the edit before, so that nothing happened this time."""

    @classmethod
    def of(cls, edit: StoredEdit) -> Self:
        """The receipt of an edit that is stored."""
        evidence = edit.evidence or Evidence()
        return cls(
            edit.id,
            edit.prompt,
            edit.answer,
            edit.answer_before or "",
            edit.answer_after or "",
            edit.milliseconds,
            edit.refine_steps,
            evidence.store_bytes,
            evidence,
            edit.author,
            edit.note,
            edit.is_replay,
        )

    @property
    def took(self) -> bool:
        """Whether the model gives the requested answer."""
        return same_answer(self.answer_after, self.answer)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "evidence": self.evidence.to_dict(self.answer), "took": self.took}
