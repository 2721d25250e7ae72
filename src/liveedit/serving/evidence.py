"""What an edit did, as the service tells it."""

from __future__ import annotations

from dataclasses import asdict

from pydantic import BaseModel, Field

from ..edited.model import Receipt
from ..store.evidence import Collision, EarlierEdit, LocalityProbe, Rephrased


class EditEvidence(BaseModel):
    """What the edit did. `milliseconds`: making it, without the answers around it."""

    answer_before: str
    answer_after: str
    took: bool = Field(description="Whether the model now gives the answer that was asked for.")
    rephrasings: list[Rephrased]
    locality: list[LocalityProbe]
    earlier_edits: list[EarlierEdit] = Field(description="Edits in force that were asked again.")
    collisions: list[Collision]
    supersedes: list[str] = Field(description="Ids of the edits that left in the same change.")
    milliseconds: float
    refine_steps: int
    store_bytes: int


def evidence_of(receipt: Receipt) -> EditEvidence:
    """What is known of an edit that is stored."""
    return EditEvidence.model_validate({**vars(receipt), **asdict(receipt.evidence), "took": receipt.took})
