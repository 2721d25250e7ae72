"""Evidence of what an edit did: answers before and after it, and the edits it interferes with. Stored as JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, Final

from pydantic import TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError

from ..answers import is_broken
from ..errors import InvalidInputError


class AskedTwice:
    """A question that was asked before the edit and with it."""

    __slots__ = ()
    answer_before: str
    answer_after: str

    def is_broken(self, answer: str) -> bool | None:
        """Whether the answer with the edit is neither `answer`, the edit's, nor the one before it.

        None if it is not the edit's and the one before it is empty: it may have been purged.
        """
        if not is_broken(self.answer_after, (answer,)):
            return False
        return is_broken(self.answer_after, (self.answer_before,)) if self.answer_before else None


@dataclass(frozen=True, slots=True)
class Rephrased(AskedTwice):
    """The model's answers to another wording of the edit's question."""

    prompt: str
    answer_before: str
    answer_after: str
    took: bool
    """Whether the answer after the edit is the requested one."""


@dataclass(frozen=True, slots=True)
class LocalityProbe(AskedTwice):
    """The model's answers to a question that the edit should not change."""

    prompt: str
    image_sha256: str | None
    answer_before: str
    answer_after: str
    kept: bool
    """Whether the answer stayed the same."""


@dataclass(frozen=True, slots=True)
class EarlierEdit(AskedTwice):
    """The model's answers to the question of an edit that was active before."""

    edit_id: str
    answer_before: str
    answer_after: str
    kept: bool


@dataclass(frozen=True, slots=True)
class Collision:
    """An active edit that fires on the new edit's question, or on whose question the new edit fires.

    weight_here: its weight in the answer to the new edit's question. weight_there: the new edit's weight in the answer
    to its question. is_estimate: whether weight_there was estimated from the keys, because the question could not be
    asked again.
    """

    edit_id: str
    weight_here: float
    weight_there: float
    is_estimate: bool
    answers_differ: bool


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is known about an edit besides the answers to its own question.

    supersedes: ids of the edits deactivated in the same change. store_bytes: size of the expert's tensors in bytes.
    rank: the expert's rank, None if it has none. earlier_edits: the active edits nearest to the new one, asked again.
    """

    supersedes: tuple[str, ...] = ()
    store_bytes: int = 0
    rephrasings: tuple[Rephrased, ...] = ()
    locality: tuple[LocalityProbe, ...] = ()
    earlier_edits: tuple[EarlierEdit, ...] = ()
    collisions: tuple[Collision, ...] = ()
    rank: int | None = None

    @property
    def rephrasings_taken(self) -> int:
        """Number of rephrasings that get the requested answer."""
        return sum(rephrased.took for rephrased in self.rephrasings)

    @property
    def locality_kept(self) -> int:
        """Number of locality probes that kept their answer."""
        return sum(probe.kept for probe in self.locality)

    @property
    def earlier_kept(self) -> int:
        """Number of earlier edits asked again that kept their answer."""
        return sum(earlier.kept for earlier in self.earlier_edits)

    def to_dict(self, answer: str) -> dict[str, Any]:
        """For JSON, with `broken` for each question that was asked. answer: the edit's."""
        found = asdict(self)
        for name in ("rephrasings", "locality", "earlier_edits"):
            asked: tuple[AskedTwice, ...] = getattr(self, name)
            found[name] = tuple(
                {**values, "broken": one.is_broken(answer)} for values, one in zip(found[name], asked, strict=True)
            )
        return found

    def without(self, edit_id: str) -> Evidence:
        """The same evidence without the answers that quote another edit."""
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
    """The evidence as it is stored. Raises `InvalidInputError` for text that is not valid Unicode."""
    try:
        return _JSON.dump_json(evidence).decode()
    except PydanticSerializationError as error:
        raise InvalidInputError(
            f"A text of the evidence is not valid Unicode ({error}). Give text that can be written as UTF-8."
        ) from error


def evidence_from_json(text: str) -> Evidence:
    """Read what `evidence_to_json` wrote. Raises `ValueError` for anything else."""
    return _JSON.validate_json(text)


def evidence_or_none(text: str | None) -> Evidence | None:
    """As `evidence_from_json`, but None for damaged text: one bad row must not stop a list. `verify` reports it."""
    if text is None:
        return None
    try:
        return evidence_from_json(text)
    except ValidationError:
        return None
