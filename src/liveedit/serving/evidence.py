"""What an edit did, as the service tells it."""

from __future__ import annotations

from dataclasses import asdict

from pydantic import BaseModel, Field

from ..model import Receipt


class RephrasingEvidence(BaseModel):
    """What the model says to another wording, before and after."""

    prompt: str
    answer_before: str
    answer_after: str
    took: bool


class LocalityEvidence(BaseModel):
    """What the model says to a question that the edit should leave alone, before and after."""

    prompt: str
    image_sha256: str | None
    answer_before: str
    answer_after: str
    kept: bool


class EarlierEvidence(BaseModel):
    """What the model says to the question of an edit that was in force before, one of the nearest."""

    edit_id: str
    answer_before: str
    answer_after: str
    kept: bool


class CollisionEvidence(BaseModel):
    """An edit in force that fires on the new edit's question, or on whose question the new one fires."""

    edit_id: str
    weight_here: float = Field(description="Its weight in the answer to the new edit's question.")
    weight_there: float = Field(description="The new edit's weight in the answer to its question.")
    is_estimate: bool = Field(description="Whether weight_there is told from keys: the question could not be asked.")
    answers_differ: bool


class EditEvidence(BaseModel):
    """What the edit did. `milliseconds`: making it, without the answers around it."""

    answer_before: str
    answer_after: str
    took: bool = Field(description="Whether the model now gives the answer that was asked for.")
    rephrasings: list[RephrasingEvidence]
    locality: list[LocalityEvidence]
    earlier_edits: list[EarlierEvidence] = Field(description="Edits in force that were asked again.")
    collisions: list[CollisionEvidence]
    supersedes: list[str] = Field(description="Ids of the edits that left in the same change.")
    milliseconds: float
    refine_steps: int
    store_bytes: int


def evidence_of(receipt: Receipt) -> EditEvidence:
    """What is known of an edit that is stored."""
    return EditEvidence.model_validate({**vars(receipt), **asdict(receipt.evidence), "took": receipt.took})
