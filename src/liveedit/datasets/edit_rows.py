"""Edits as rows of JSON Lines or CSV: what `liveedit edits add` reads and `liveedit edits export` writes.

    key                becomes
    prompt, answer     the edit: question, wanted answer; neither may be blank
    image              the image of the question (optional), a path
    rephrasings        text_generality: a list of other wordings (optional)
    locality           a list of {prompt, image}: questions whose answers should stay; image is optional
                       (text_locality, same_image_locality or modal_locality)
    id                 the case's id; otherwise file stem and row number (optional)
    author, note       who makes the edit, and why (optional)

Texts stay as they are in the file, white space included.
"""

from __future__ import annotations

from typing import Any, Final

from ..samples import LOCALITY, Edit, EditCase, ImageSource, Probe, Question
from .base import Reader, Row
from .mmedit import answer_type


def read_case(row: Row) -> EditCase:
    """One row as a case; problems are added to `row.problems`."""
    prompt, answer = row.verbatim("prompt"), row.answer("answer")
    for key, text in (("prompt", prompt), ("answer", answer)):
        if not text.strip() and not row.problems:
            row.problem(key, "is blank. Give some text.")
    edited = Question(prompt, row.optional_image("image"))
    row.used |= {"author", "note"}
    probes = (
        *(Probe("text_generality", Question(text, edited.image), answer) for text in row.texts("rephrasings")),
        *(
            locality_probe(edited, child.verbatim("prompt"), child.optional_image("image"))
            for child in row.children("locality")
        ),
    )
    return EditCase(row.name, Edit(edited, answer), probes, answer_type(answer))


def locality_probe(edited: Question, prompt: str, image: ImageSource | None, label: str | None = None) -> Probe:
    """A question whose answer should stay, under the name that its image gives it."""
    if image is None:
        return Probe("text_locality", Question(prompt), label)
    return Probe("same_image_locality" if image == edited.image else "modal_locality", Question(prompt, image), label)


def row_of(case: EditCase) -> dict[str, Any]:
    """A case as a row."""
    edited = case.edit.question
    return {
        "prompt": edited.prompt,
        "answer": case.edit.answer,
        "image": path_of(edited),
        "rephrasings": [probe.question.prompt for probe in case.named("text_generality")],
        "locality": [
            {"prompt": probe.question.prompt, "image": path_of(probe.question)} for probe in case.named(*LOCALITY)
        ],
    }


def path_of(question: Question) -> str | None:
    """The path of a question's image, as it is written into a row."""
    return None if question.image is None else str(question.image)


EDIT_ROWS: Final = Reader(
    "edits",
    "Edits: JSON Lines, CSV or a JSON list with prompt, answer, image, rephrasings, locality, ...",
    read_case,
    row_of,
)
