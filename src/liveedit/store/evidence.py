"""What an edit did: answers before and after it, and which edits it meets. Kept with the edit, as JSON."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from pydantic import TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError

from ..errors import InvalidInputError


@dataclass(frozen=True, slots=True)
class Rephrased:
    """What the model says to another wording of the edit's question."""

    prompt: str
    answer_before: str
    answer_after: str
    took: bool
    """Whether the answer after is the one that was asked for."""


@dataclass(frozen=True, slots=True)
class LocalityProbe:
    """What the model says to a question that the edit should leave alone."""

    prompt: str
    image_sha256: str | None
    answer_before: str
    answer_after: str
    kept: bool
    """Whether the answer stayed."""


@dataclass(frozen=True, slots=True)
class EarlierEdit:
    """What the model says to the question of an edit that was in force before."""

    edit_id: str
    answer_before: str
    answer_after: str
    kept: bool


@dataclass(frozen=True, slots=True)
class Collision:
    """An edit in force that fires on the new edit's question, or on whose question the new one fires.

    weight_here: its weight in the answer to the new edit's question. weight_there: the new edit's weight in the answer
    to its question; `is_estimate` where that was told from the keys, because the question could not be asked again.
    """

    edit_id: str
    weight_here: float
    weight_there: float
    is_estimate: bool
    answers_differ: bool


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is known of an edit besides its own answer before and after.

    supersedes: ids of the edits that left in the same change. store_bytes: the size of the expert. earlier_edits:
    of the edits in force those nearest to the new one, asked again.
    """

    supersedes: tuple[str, ...] = ()
    store_bytes: int = 0
    rephrasings: tuple[Rephrased, ...] = ()
    locality: tuple[LocalityProbe, ...] = ()
    earlier_edits: tuple[EarlierEdit, ...] = ()
    collisions: tuple[Collision, ...] = ()

    @property
    def rephrasings_taken(self) -> int:
        """How many rephrasings get the answer that was asked for."""
        return sum(rephrased.took for rephrased in self.rephrasings)

    @property
    def locality_kept(self) -> int:
        """How many locality probes kept their answer."""
        return sum(probe.kept for probe in self.locality)

    @property
    def earlier_kept(self) -> int:
        """How many of the earlier edits that were asked again kept their answer."""
        return sum(earlier.kept for earlier in self.earlier_edits)

    def without(self, edit_id: str) -> Evidence:
        """The same, without what the model said by this other edit."""
        earlier = tuple(
            replace(other, answer_before="", answer_after="") if other.edit_id == edit_id else other
            for other in self.earlier_edits
        )
        rephrasings = self.rephrasings
        if edit_id in self.supersedes:
            rephrasings = tuple(replace(rephrased, answer_before="") for rephrased in rephrasings)
        return replace(self, earlier_edits=earlier, rephrasings=rephrasings)


_JSON: Final = TypeAdapter(Evidence)


def evidence_to_json(evidence: Evidence) -> str:
    """As it is stored. Raises `InvalidInputError` for text that is not valid Unicode."""
    try:
        return _JSON.dump_json(evidence).decode()
    except PydanticSerializationError as error:
        raise InvalidInputError(
            f"A text of the evidence is not valid Unicode ({error}). Give text that can be written as UTF-8."
        ) from error


def evidence_from_json(text: str) -> Evidence:
    """What `evidence_to_json` wrote. Raises `ValueError` where it is anything else."""
    return _JSON.validate_json(text)


def evidence_or_none(text: str | None) -> Evidence | None:
    """The same for reading many: what is damaged is None here, and named by `verify`."""
    if text is None:
        return None
    try:
        return evidence_from_json(text)
    except ValidationError:
        return None
