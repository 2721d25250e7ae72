"""CounterFact in both of its forms: ROME's own file, and the flat one of later releases. Text alone, no images.

Meng et al., "Locating and Editing Factual Associations in GPT" (NeurIPS 2022). A file is a JSON list of objects; a row
with `requested_rewrite` is read in ROME's form, any other in the flat one.

    flat key                  becomes
    prompt, target_new        the edit: the beginning of a sentence, and how it is to go on
    subject                   the scope of the edit and of its rephrasing, with the prompt
    rephrase_prompt           text_generality, with the edit's answer
    locality_prompt           text_locality: the same property of another subject
    locality_ground_truth     its label (may be null)
    ground_truth              the true answer; checked, not used

    ROME's key                becomes
    requested_rewrite         prompt (its {} is the subject), subject, target_new.str: the edit
      .relation_id            with the subject the scope (without it, the prompt)
      .target_true.str        the true answer; checked, not used
    paraphrase_prompts        text_generality, one probe each
    neighborhood_prompts      text_locality, one probe each, with target_true as label
    attribute_prompts, generation_prompts, pararel_idx    not used

`case_id`, or `id`, is the id of a case; without them it is the file's stem and the row number.

**Locality is measured against the unedited model's own answer**, as everywhere here, and not by the probability of the
true answer against that of the edit's, as ROME does: figures by that protocol are not comparable. A neighbour's subject
is not named. If its wording is that of an edited prompt, it is left out as any probe in the scope of an edit.

**Prompts are beginnings of sentences** and stay as they are, line breaks included; many rephrasings begin with an
unrelated sentence. To a chat model they are the user's turn, as any question.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from ..samples import Edit, EditCase, Probe, Question, normalize_prompt
from .base import Reader, Row
from .mmedit import answer_type

_PLACE: Final = "{}"
"""Where the subject belongs in a prompt of ROME's form."""


def read_case(row: Row) -> EditCase:
    """One row as a case; problems are added to `row.problems`."""
    edit, probes = _rewrite(row) if row.has("requested_rewrite") else _flat(row)
    given = row.optional_answer("case_id")
    name = row.name if row.has("id") or not given else given
    return EditCase(name, edit, probes, answer_type(edit.answer))


def _flat(row: Row) -> tuple[Edit, tuple[Probe, ...]]:
    edited = _edited(row.passage("prompt"), row.optional_text("subject"), None)
    answer = row.answer("target_new")
    row.optional_answer("ground_truth")
    return Edit(edited, answer), (
        Probe("text_generality", replace(edited, prompt=row.passage("rephrase_prompt")), answer),
        Probe("text_locality", Question(row.passage("locality_prompt")), row.nullable_answer("locality_ground_truth")),
    )


def _rewrite(row: Row) -> tuple[Edit, tuple[Probe, ...]]:
    rewrite = row.child("requested_rewrite")
    subject, template = rewrite.passage("subject"), rewrite.passage("prompt")
    if template and template.count(_PLACE) != 1:
        rewrite.problem("prompt", f"holds {template!r}. Give a text with one {_PLACE}, where the subject belongs.")
    edited = _edited(template.replace(_PLACE, subject), subject, rewrite.optional_text("relation_id"))
    answer = rewrite.child("target_new").answer("str")
    true = rewrite.child("target_true").answer("str") if rewrite.has("target_true") else None
    row.used |= {"attribute_prompts", "generation_prompts", "pararel_idx"}
    rephrased = [replace(edited, prompt=text) for text in row.passages("paraphrase_prompts")]
    neighbours = [Question(text) for text in row.passages("neighborhood_prompts")]
    return Edit(edited, answer), (
        *(Probe("text_generality", question, answer) for question in rephrased),
        *(Probe("text_locality", question, true) for question in neighbours),
    )


def _edited(prompt: str, subject: str | None, relation: str | None) -> Question:
    return Question(prompt, None, subject or None, relation or normalize_prompt(prompt))


COUNTERFACT: Final = Reader(
    "counterfact",
    "CounterFact, ROME's form or the flat one: text alone, a JSON list with prompt, target_new, subject, ...",
    read_case,
)
