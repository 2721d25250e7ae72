"""SelfCheckGPT's hallucinations as edits: `hallucination-edit.json` and `hallucination-train.json`. Text alone.

Manakul et al., "SelfCheckGPT" (EMNLP 2023): GPT-3's Wikipedia passages about people, with hallucinations. Hartvigsen
et al. (GRACE, NeurIPS 2023) made them into edits, Wang et al. (WISE, NeurIPS 2024) into these files. A file is a JSON
list of objects:

    key                       becomes
    prompt, target_new        the edit: the passage so far, and the true sentence that is to follow it
    subject                   whom the passage is about: the scope, with the prompt
    locality_prompt           text_locality: a beginning of unrelated web text
    locality_ground_truth     its label, how the text goes on (blank in some rows; locality is measured against the
                              unedited model's own words)

There is no rephrasing, so generality is not measured. Edits are measured by the perplexity of their target, see
`evaluation.perplexity`. An id is optional; otherwise it is the file's stem and the row number.

**Prompts are running text** and stay as they are, line breaks and double spaces included, because the model
continues them. Only white space at the ends is removed: the model generates the space before its continuation.
(Locality prompts are cut after 150 characters, often in the middle of a word.)
"""

from __future__ import annotations

from typing import Final

from ..samples import Edit, EditCase, Probe, Question
from .base import Reader, Row

ANSWER_TYPE: Final = "sentence"
"""The kind of all answers of these files."""


def read_case(row: Row) -> EditCase:
    """One row as a case; problems are added to `row.problems`."""
    edited = Question(row.passage("prompt"), None, row.optional_text("subject"))
    unrelated = Question(row.passage("locality_prompt"))
    return EditCase(
        row.name,
        Edit(edited, row.answer("target_new")),
        (Probe("text_locality", unrelated, row.nullable_answer("locality_ground_truth")),),
        ANSWER_TYPE,
    )


SELFCHECKGPT: Final = Reader(
    "selfcheckgpt",
    "SelfCheckGPT's hallucinations (WISE's files): text alone, a JSON list with prompt, target_new, subject, ...",
    read_case,
)
