"""ZsRE as a benchmark of edits: MEND's evaluation file, `zsre_mend_eval.json`. Text alone, no images.

Levy et al., "Zero-Shot Relation Extraction via Reading Comprehension" (CoNLL 2017), as questions and edits by
Mitchell et al., "Fast Model Editing at Scale" (ICLR 2022). A file is a JSON list of objects:

    key               becomes
    src, alt          the edit: question, wanted answer
    rephrase          text_generality (rephrased question, the edit's answer)
    loc, loc_ans      text_locality, a Natural Questions prompt and its label (may be null)
    subject           the scope of the edit and of its rephrasing, with the question (see below)
    pred              `answer_before`: what MEND's base model said (may be null)
    answers           the true answers; checked, not used
    cond              "pred >> alt || src", the text that MEND's own editors condition on; ignored

**`alt` is the edit's target**, and not the true answer in `answers`. MEND draws `alt` as the label of an edit, and its
`cond` says so row by row; WISE and EasyEdit edit to `alt` likewise. ROME and MEMIT read the same file the other way
and edit to `answers[0]`: results by that protocol are not comparable with ours.

**Scopes.** The file names the subject of a question and not its relation: the edit's question, as `normalize_prompt`
returns it, is taken as the relation of the edit and of its rephrasing. Two rows that ask the same of one subject in
different words (the file has such pairs, with contradicting targets) are two scopes therefore.

Further keys, all optional, as in `mmedit`: id, answer_type, tags, relation, loc_subject, loc_relation, probes. The
invented facts are written with them. Prompts are normalised as in `mmedit`, "nq question: " included; answers are never
changed.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from ..samples import Edit, EditCase, Probe, Question, normalize_prompt
from .base import Reader, Row
from .mmedit import NQ_PREFIX, answer_type, further_probes


def read_case(row: Row) -> EditCase:
    """One row as a case; problems are added to `row.problems`."""
    prompt, answer = row.prompt("src"), row.answer("alt")
    subject = row.optional_text("subject")
    edited = Question(prompt, None, subject, row.optional_text("relation") or normalize_prompt(prompt))
    if row.has("answers"):
        row.texts("answers")
    row.used.add("cond")
    probes = (
        Probe("text_generality", replace(edited, prompt=row.prompt("rephrase")), answer),
        Probe("text_locality", _locality(row), row.nullable_answer("loc_ans")),
        *further_probes(row),
    )
    return EditCase(
        row.name,
        Edit(edited, answer),
        probes,
        row.optional_text("answer_type") or answer_type(answer),
        row.optional_answer("pred"),
        row.texts("tags"),
    )


def _locality(row: Row) -> Question:
    prompt = row.prompt("loc", drop_prefix=NQ_PREFIX)
    return Question(prompt, None, row.optional_text("loc_subject"), row.optional_text("loc_relation"))


ZSRE: Final = Reader(
    "zsre",
    "ZsRE as MEND's evaluation file: text alone, a JSON list with subject, src, alt, rephrase, loc, ...",
    read_case,
)
