"""VLKEB: the MMEdit schema over photographs of named entities, with portability questions.

Huang et al., "VLKEB: A Large Vision-Language Model Knowledge Editing Benchmark" (NeurIPS 2024). The keys are
those of `mmedit`, and its normalisation of prompts applies. Three things differ:

- `port_new`, in the one-hop file only: a list of {port_q, port_a, port_edit_q, port_edit_a}. Each becomes a
  portability probe that asks `port_q` about the edited image. `port_edit_q` is the same question with the
  entity's name in place of the image; it tests what the model knows beforehand, not the edit, and
  is left out.
- An image's folder (`m.010bnr/google_13.jpg`) is the entity's id in MMKG. It is the subject if
  the row names none, so that all photographs of one entity are in one scope. In the released files
  a row's two images always share their folder, and an entity is never edited to two different answers. The
  relation of the generality probes is then the edit's question: a rephrasing asks the same thing.
- Every answer is an entity's name, also where it is long or a number ("11" is a film): `answer_type` is
  "entity".
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Final

from ..samples import GENERALITY, Edit, EditCase, ImageSource, Probe, Question, normalize_prompt
from .base import Reader, Row
from .mmedit import read_case as read_mmedit_case


def read_case(row: Row) -> EditCase:
    """One row as a case; problems are added to `row.problems`."""
    case = read_mmedit_case(row)
    question = _with_entity(case.edit.question, row)
    question = replace(question, relation=question.relation or normalize_prompt(question.prompt))
    probes = tuple(_placed(probe, question, row) for probe in case.probes)
    return replace(
        case,
        edit=Edit(question, case.edit.answer),
        probes=probes + _portability(row, question),
        answer_type=row.optional_text("answer_type") or "entity",
    )


def _placed(probe: Probe, edited: Question, row: Row) -> Probe:
    question = _with_entity(probe.question, row)
    if probe.name in GENERALITY and question.subject == edited.subject:
        question = replace(question, relation=question.relation or edited.relation)
    return replace(probe, question=question)


def _portability(row: Row, edited: Question) -> tuple[Probe, ...]:
    # The relation stays open: a hop asks something else of the subject than the edit does.
    return tuple(
        Probe(
            "portability",
            Question(child.prompt("port_q"), edited.image, edited.subject),
            child.answer("port_a"),
        )
        for child in row.children("port_new")
    )


def _with_entity(question: Question, row: Row) -> Question:
    return replace(question, subject=question.subject or _entity(question.image, row.images_dir))


def _entity(image: ImageSource | None, images_dir: Path) -> str | None:
    """The name of the image's folder if that is below the image folder."""
    if not isinstance(image, Path) or image.parent == images_dir:
        return None
    return image.parent.name or None


VLKEB: Final = Reader(
    "vlkeb",
    "VLKEB: the MMEdit keys over entity photographs, with port_new in the one-hop file",
    read_case,
)
