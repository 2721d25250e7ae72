"""Requests of EasyEdit, a library of editing methods: a JSON list of objects, read and written.

Wang et al., "EasyEdit: An Easy-to-use Knowledge Editing Framework for Large Language Models" (ACL 2024).

    key                     becomes
    prompt, target_new      the edit: question, wanted answer
    image                   the image of the question (optional)
    subject                 the scope of the edit and of its rephrasings, with the prompt (optional)
    ground_truth            `answer_before` (optional), if it is a text
    rephrase_prompt         text_generality: a text, or a list of texts (optional)
    image_rephrase, or rephrase_image
                            modal_generality and, with rephrase_prompt, joint_generality (optional)
    locality_inputs         {NAME: {prompt, ground_truth, image}}: text_locality, or with an image same_image_locality
                            or modal_locality (optional)
    portability_inputs      the same for portability; without an image it is asked about the edit's (optional)

Under a name, prompt, ground_truth and image are single values, or lists with one value for each prompt. Written are
those without an image under "text", those with one under "vision". Texts stay as they are, white space included.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Final

from ..samples import LOCALITY, Edit, EditCase, Probe, Question, normalize_prompt
from .base import Reader, Row
from .edit_rows import locality_probe, path_of
from .mmedit import answer_type


def read_case(row: Row) -> EditCase:
    """One row as a case; problems are added to `row.problems`."""
    prompt, answer = row.verbatim("prompt"), row.answer("target_new")
    edited = Question(prompt, row.optional_image("image"), row.optional_text("subject"), normalize_prompt(prompt))
    probes = (
        *_generality(row, edited, answer),
        *(
            locality_probe(edited, each.verbatim("prompt"), each.optional_image("image"), _label(each))
            for each in _inputs(row, "locality_inputs")
        ),
        *(
            Probe("portability", _about_the_edit(each, edited), _label(each))
            for each in _inputs(row, "portability_inputs")
        ),
    )
    return EditCase(row.name, Edit(edited, answer), probes, answer_type(answer), _label(row))


def _generality(row: Row, edited: Question, answer: str) -> Iterator[Probe]:
    rephrased = [replace(edited, prompt=text) for text in _one_or_more(row, "rephrase_prompt")]
    yield from (Probe("text_generality", question, answer) for question in rephrased)
    image = row.optional_image("image_rephrase") or row.optional_image("rephrase_image")
    if image is not None:
        yield Probe("modal_generality", replace(edited, image=image), answer)
        yield from (Probe("joint_generality", replace(question, image=image), answer) for question in rephrased)


def _one_or_more(row: Row, key: str) -> tuple[str, ...]:
    if not row.has(key):
        return ()
    return row.texts(key) if isinstance(row.parsed(key), list) else (row.verbatim(key),)


def _about_the_edit(row: Row, edited: Question) -> Question:
    return Question(row.verbatim("prompt"), row.optional_image("image") or edited.image, edited.subject)


def _label(row: Row) -> str | None:
    """The answer that a request gives for comparison, if it is a text; it may be a list of alternatives."""
    row.used.add("ground_truth")
    value = row.values.get("ground_truth")
    return str(value) if isinstance(value, str) else None


def _inputs(row: Row, key: str) -> Iterator[Row]:
    """The questions under the names of an object, each as a row of prompt, ground_truth and image."""
    if not row.has(key):
        return
    named = row.child(key)
    for name in named.values:
        inputs = named.child(name)
        prompts = inputs.values.get("prompt")
        if isinstance(prompts, list):
            yield from (inputs.inner(f"[{place}]", _at(inputs, place)) for place in range(len(prompts)))
        elif inputs.has("prompt"):
            yield inputs


def _at(inputs: Row, place: int) -> dict[str, Any]:
    """The values of one place of lists that are side by side."""
    lists = {key: value for key, value in inputs.values.items() if isinstance(value, list)}
    return {key: value[place] for key, value in lists.items() if place < len(value)}


def row_of(case: EditCase) -> dict[str, Any]:
    """A case as a request."""
    edited = case.edit.question
    rephrasings = [probe.question.prompt for probe in case.named("text_generality")]
    locality = case.named(*LOCALITY)
    inputs = {
        "text": [probe for probe in locality if probe.question.image is None],
        "vision": [probe for probe in locality if probe.question.image is not None],
    }
    row = {
        "prompt": edited.prompt,
        "target_new": case.edit.answer,
        "ground_truth": case.answer_before,
        "subject": edited.subject,
        "image": path_of(edited),
        "rephrase_prompt": rephrasings[0] if len(rephrasings) == 1 else rephrasings or None,
        "locality_inputs": {name: _side_by_side(probes) for name, probes in inputs.items() if probes} or None,
    }
    return {key: value for key, value in row.items() if value is not None}


def _side_by_side(probes: Sequence[Probe]) -> dict[str, Any]:
    values = {
        "prompt": [probe.question.prompt for probe in probes],
        "ground_truth": [probe.answer for probe in probes],
        "image": [path_of(probe.question) for probe in probes],
    }
    kept = {key: several for key, several in values.items() if any(value is not None for value in several)}
    return {key: several[0] for key, several in kept.items()} if len(probes) == 1 else kept


EASYEDIT: Final = Reader(
    "easyedit",
    "EasyEdit's requests: a JSON list with prompt, target_new, image, rephrase_prompt, locality_inputs, ...",
    read_case,
    row_of,
)
