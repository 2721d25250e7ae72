"""Edits and the probes that measure them, and when two prompts are the same.

An `EditCase` is one row of a benchmark: an edit with its probes. Everything here is immutable and independent of
models and files.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Final, Literal

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

_SENTENCE_ENDS: Final = ".?!。؟۔"
"""Marks that end a sentence, as they are after NFKC, which makes the full-width ones and "…" plain."""

_SENTENCE_STARTS: Final = "¿¡"


def normalize_prompt(prompt: str) -> str:
    """Return the form in which two prompts are compared.

    1. Unicode NFKC, except for superscripts and fractions (`plain_unicode`). Full-width characters become plain ones,
       and "…" becomes "...".
    2. Lower case (Unicode case folding), and NFKC again, which case folding can undo.
    3. Runs of white space become one space; none is left at the ends.
    4. The marks . ? ! 。 ؟ ۔ are trimmed from the end, ¿ and ¡ from the beginning, with the white space next to them.

    All else counts: "C++?" is not "C?", "3.5" is not "35". A prompt of nothing but such marks ("?") would become empty;
    it is compared as it is after step 3. Edits files store digests of this form: changing it needs a new schema
    version (`store/schema.py`).
    """
    folded = " ".join(plain_unicode(plain_unicode(prompt).casefold()).split())
    return folded.rstrip(f"{_SENTENCE_ENDS} ").lstrip(f"{_SENTENCE_STARTS} ") or folded


def plain_unicode(text: str) -> str:
    """Unicode NFKC, but superscripts and fractions stay: NFKC would turn 10² into 102 and 2½ into 21/2."""
    runs = groupby(text, key=_loses_its_value_under_nfkc)
    return "".join("".join(run) if keep else unicodedata.normalize("NFKC", "".join(run)) for keep, run in runs)


def _loses_its_value_under_nfkc(character: str) -> bool:
    return unicodedata.decomposition(character).startswith(("<super>", "<fraction>"))


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
        return (self.subject or self._image_key, self.relation or normalize_prompt(self.prompt))

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
    follows: str | None = None
    """The id of an earlier case that is to be edited before this one, and measured together with it. If both are of one
    scope, this edit overrules that one."""

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
    """The scopes that these edits change: their own, and those of their rephrasings and redrawn images.

    The same wording without an image and without a known subject is in their scope as well: some files name the subject
    of an edit and not that of a locality probe.
    """
    inside = [case.edit.question for case in cases]
    inside += [probe.question for case in cases for probe in case.named(*GENERALITY)]
    worded = frozenset(("", normalize_prompt(question.prompt)) for question in inside if question.image is None)
    return worded | {question.scope for question in inside}
