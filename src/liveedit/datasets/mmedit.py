"""The MMEdit schema: E-VQA, E-IC, and the synthetic worlds of LiveEdit.

Cheng et al., "Can We Edit Multimodal Large Language Models?" (EMNLP 2023). A file is a JSON list of objects:

    key                    becomes
    src, image, alt        the edit: question, image, wanted answer
    pred                   `answer_before`: what the model said before the edit (may be null)
    rephrase               text_generality (rephrased question, same image)
    image_rephrase         modal_generality (same question, another image of the same thing)
                           and, with rephrase, joint_generality
    loc, loc_ans           text_locality (no image; the label may be null)
    m_loc, m_loc_q, m_loc_a  modal_locality (the label may be null)
    (src without image)  cross_modal: the label is the edit's answer; neither good nor bad by itself

Further keys, all optional:

    id                     the case's id; otherwise file stem and row number, `vqa_eval-17`
    answer_type            otherwise see `answer_type`
    tags                   a list of further groups that results are reported by
    subject, relation      the scope of the edit and of its generality probes; cross_modal keeps the relation
                           only, because without an image the subject is unknown
    loc_subject, loc_relation, m_loc_subject, m_loc_relation
                           the scopes of the two locality probes
    follows                the id of an earlier case that is edited before this one: see `EditCase.follows`
    probes                 a list of {name, prompt, image, answer, subject, relation}, all but name and prompt
                           optional or null: further probes under any name of `samples.ProbeName`

Other keys, which derived data sets add, are ignored; `check` lists them.

**Prompts** (src, rephrase, loc, m_loc_q, probes[].prompt) are normalised:

- Runs of white space become one space, none is left at the ends. Some 30 questions of E-VQA have doubled
  spaces, and some rephrasings are several lines long. No letter changes: the quotation marks and "Rewritten:"
  that a language model left in some 2,300 rephrasings are part of the published benchmark.
- Byte-order marks and zero-width spaces, which a dozen text questions contain, are removed: nobody types them.
- The "nq question: " that MEND put before every Natural Questions prompt is removed from `loc`. It names the source
  of the question, and VLKEB has the same questions without it.

Templates such as "Question: ... Short answer:" belong to the backbone, not to the data.

**Answers** are never changed, see `Row.answer`: 2 and "2" are both "2", "0" stays "0", true becomes "true",
the empty string stays empty.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final, cast, get_args

from ..samples import Edit, EditCase, Probe, ProbeName, Question
from .base import Reader, Row

NQ_PREFIX: Final = "nq question:"
"""What MEND put before every Natural Questions prompt."""

CAPTION_WORDS: Final = 5
"""An answer of more words than this counts as a caption."""

_NUMBER: Final = re.compile(r"[+-]?\d[\d,]*(\.\d+)?|[+-]?\.\d+")


def answer_type(answer: str) -> str:
    """The kind of an answer if the data set does not give it.

    "yes/no" for those two words, "number" for digits (with sign, thousands and decimals), "caption" for more
    than `CAPTION_WORDS` words, "other" for the rest. The first two and the last are VQA's names. VQA's own
    labels come from its annotators and are not in these files, so "two" is "other" here.
    """
    text = answer.strip().rstrip(".").lower()
    if text in ("yes", "no"):
        return "yes/no"
    if _NUMBER.fullmatch(text):
        return "number"
    return "caption" if len(text.split()) > CAPTION_WORDS else "other"


def read_case(row: Row) -> EditCase:
    """One row as a case; problems are added to `row.problems`."""
    subject, relation = row.optional_text("subject"), row.optional_text("relation")
    prompt, image, answer = row.prompt("src"), row.image("image"), row.answer("alt")
    rephrased, redrawn = row.prompt("rephrase"), row.image("image_rephrase")

    def about_the_edit(prompt: str, image: Path) -> Question:
        return Question(prompt, image, subject, relation)

    probes = (
        Probe("text_generality", about_the_edit(rephrased, image), answer),
        Probe("modal_generality", about_the_edit(prompt, redrawn), answer),
        Probe("joint_generality", about_the_edit(rephrased, redrawn), answer),
        _text_locality(row),
        _modal_locality(row),
        Probe("cross_modal", Question(prompt, None, None, relation), answer),
        *further_probes(row),
    )
    return EditCase(
        row.name,
        Edit(about_the_edit(prompt, image), answer),
        probes,
        row.optional_text("answer_type") or answer_type(answer),
        row.nullable_answer("pred"),
        row.texts("tags"),
        row.optional_text("follows"),
    )


def further_probes(row: Row) -> tuple[Probe, ...]:
    """The probes listed under `probes`."""
    return tuple(
        Probe(
            _probe_name(child),
            Question(
                child.prompt("prompt"),
                child.optional_image("image"),
                child.optional_text("subject"),
                child.optional_text("relation"),
            ),
            child.optional_answer("answer"),
        )
        for child in row.children("probes")
    )


def _text_locality(row: Row) -> Probe:
    question = Question(
        row.prompt("loc", drop_prefix=NQ_PREFIX),
        None,
        row.optional_text("loc_subject"),
        row.optional_text("loc_relation"),
    )
    return Probe("text_locality", question, row.nullable_answer("loc_ans"))


def _modal_locality(row: Row) -> Probe:
    question = Question(
        row.prompt("m_loc_q"),
        row.image("m_loc"),
        row.optional_text("m_loc_subject"),
        row.optional_text("m_loc_relation"),
    )
    return Probe("modal_locality", question, row.nullable_answer("m_loc_a"))


def _probe_name(row: Row) -> ProbeName:
    name = row.prompt("name")
    allowed = get_args(ProbeName)
    if name not in allowed and isinstance(row.values.get("name"), str):
        row.problem("name", f"holds {name!r}, which is no name of a probe. Give one of {', '.join(allowed)}.")
    return cast(ProbeName, name)


MMEDIT: Final = Reader(
    "mmedit",
    "MMEdit: E-VQA, E-IC and drawn worlds, a JSON list with src, alt, image, ...",
    read_case,
)
