"""Edits and the probes that measure them.

An `EditCase` is one row of a benchmark: an edit with its probes. Everything here is immutable and independent of
models and files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from PIL import Image

ImageSource = str | Path | bytes | Image.Image
"""An image: a file, the bytes of one, or a Pillow image."""

ProbeName = Literal[
    "reliability",
    "text_generality",
    "modal_generality",
    "joint_generality",
    "text_locality",
    "modal_locality",
    "same_image_locality",
    "same_question_locality",
    "near_duplicate_locality",
    "cross_modal",
    "portability",
]

GENERALITY: tuple[ProbeName, ...] = ("text_generality", "modal_generality", "joint_generality")
"""Probes that must follow the edit: the expected answer is the edit's."""

LOCALITY: tuple[ProbeName, ...] = (
    "text_locality",
    "modal_locality",
    "same_image_locality",
    "same_question_locality",
    "near_duplicate_locality",
)
"""Probes that must stay: the expected answer is the unedited model's own."""


@dataclass(frozen=True, slots=True)
class Question:
    """A prompt, with or without an image.

    `subject` is the entity or scene that is asked about, `relation` the property that is asked for. Two questions with
    equal `scope` must get the same answer: by this the bench avoids locality probes within the scope of another edit.
    If a data set does not give them, the image and the prompt are used instead.
    """

    prompt: str
    image: ImageSource | None = None
    subject: str | None = None
    relation: str | None = None

    @property
    def scope(self) -> tuple[str, str]:
        """(subject or image, relation or prompt)."""
        return (self.subject or self._image_key, self.relation or " ".join(self.prompt.lower().split()))

    @property
    def _image_key(self) -> str:
        if self.image is None:
            return ""
        if isinstance(self.image, str | Path):
            return Path(self.image).as_posix()
        return f"<{type(self.image).__name__} {id(self.image)}>"


@dataclass(frozen=True, slots=True)
class Edit:
    """A correction: the model should answer `question` with `answer`."""

    question: Question
    answer: str

    @property
    def scope(self) -> tuple[str, str]:
        """The scope of the question."""
        return self.question.scope


@dataclass(frozen=True, slots=True)
class Probe:
    """A question that measures an edit.

    `answer` is the expected answer of a generality or portability probe. For a locality probe it is the label of the
    data set and not used: locality is measured against the unedited model.
    """

    name: ProbeName
    question: Question
    answer: str | None = None


@dataclass(frozen=True, slots=True)
class EditCase:
    """One edit with the probes that belong to it."""

    id: str
    edit: Edit
    probes: tuple[Probe, ...] = ()
    answer_type: str = "answer"
    """The kind of answer (name, colour, caption, ...), for results by answer type."""
    answer_before: str | None = None
    """The model's answer before the edit, as given by the data set."""
    tags: tuple[str, ...] = ()
    """Further groups that results are reported by."""

    def named(self, *names: ProbeName) -> tuple[Probe, ...]:
        """The probes with one of these names, in their order."""
        return tuple(probe for probe in self.probes if probe.name in names)

    @property
    def labels(self) -> tuple[str, ...]:
        """The edit's answer and the answers of the probes, each once, in their order."""
        given = (self.edit.answer, *(probe.answer for probe in self.probes))
        return tuple(dict.fromkeys(str(answer) for answer in given if answer is not None))

    @property
    def reliability(self) -> Probe:
        """The edit itself as a probe."""
        return Probe("reliability", self.edit.question, self.edit.answer)


def edited_scopes(cases: Sequence[EditCase]) -> frozenset[tuple[str, str]]:
    """The scopes that these edits change: their own, and those of their rephrasings and redrawn images."""
    own = {case.edit.scope for case in cases}
    return frozenset(own | {probe.question.scope for case in cases for probe in case.named(*GENERALITY)})
